"""The network that segments hears how many talk in the real speech of the demo."""

import numpy as np
import pytest
import soundfile
from tests.conversation.test_voices import DEMO

from flasepformer.audio import resample
from flasepformer.conversation.counting import between
from flasepformer.conversation.segmentation import segmented_chances
from flasepformer.training.counting import speaks

RATE = 16_000


@pytest.fixture(scope="module")
def talk():
    """Nobody for 2 s, one for 4 s, two for 4 s, the other for 4 s: (time,); and how many do in each frame."""
    read = [soundfile.read(DEMO / f"source{k}.flac", dtype="float32")[0] for k in (1, 2)]
    samples = np.zeros((2, 14 * RATE), np.float32)
    for track, said, (first, last) in zip(samples, read, ((2, 10), (6, 14)), strict=True):
        piece = np.resize(said, (last - first) * RATE)
        track[first * RATE : last * RATE] = 0.05 * piece / piece.std()
    return samples.sum(0), np.sum([speaks(track, RATE) for track in samples], axis=0)


@pytest.mark.parametrize("rate", [RATE, 8000, 44_100])
def test_it_counts_who_talks_at_any_rate(talk, passed_of, rate):
    samples, counts = talk
    recording = resample(samples, RATE, rate).astype(np.float32)
    chances = segmented_chances(passed_of(recording, rate, np.zeros((2, 8000), np.float32)), len(counts))
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-5)
    found = chances.argmax(0)
    assert (found == counts).mean() > 0.75  # it hears more pauses
    assert (found[:100] == 0).all()
    assert (found[counts == 2] == 2).mean() > 0.6


def test_a_moment_is_heard_alike_wherever_windows_begin(talk, passed_of):
    samples, counts = talk
    later = np.concatenate([np.zeros(3 * RATE, np.float32), samples])
    estimates = np.zeros((2, 8000), np.float32)
    first = segmented_chances(passed_of(samples, RATE, estimates), len(counts))
    second = segmented_chances(passed_of(later, RATE, estimates), len(counts) + 150)[:, 150:]
    assert (first.argmax(0) == second.argmax(0)).mean() > 0.95


@pytest.mark.parametrize("n_samples", [1, 300, 1200, 20_000, 160_000, 160_001])
def test_recordings_of_any_length_have_a_count_for_every_frame(passed_of, n_samples):
    recording = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    n_frames = -(-n_samples // 320)
    for samples in (0.1 * recording, 0 * recording):
        found = segmented_chances(passed_of(samples, RATE, np.zeros((2, 100), np.float32)), n_frames)
        assert found.shape == (3, n_frames)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_what_is_believed_lies_between_both():
    sure = np.float32([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.02, 0.08, 0.9]]).T
    found = between(sure, sure)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    assert found.argmax(0).tolist() == [0, 1, 2]
    one, two = np.float32([[0.0], [1.0], [0.0]]), np.float32([[0.0], [0.0], [1.0]])
    assert between(one, two).argmax(0) == 2  # of who talks at a time, the second network knows more,
    assert between(two, one).argmax(0) == 1
    nobody = np.float32([[1.0], [0.0], [0.0]])
    assert between(nobody, one).argmax(0) == 0  # of pauses the first
    assert between(one, nobody).argmax(0) == 1
    assert np.isfinite(between(nobody, two)).all()
