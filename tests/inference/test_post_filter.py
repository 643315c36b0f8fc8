"""The Wiener filter behind a model, against its definition and on the demo's speech."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import istft, stft
from tests.conversation.test_voices import DEMO
from tests.networks import tiny

from flasepformer.audio import BLOCK_LENGTH
from flasepformer.errors import InputError
from flasepformer.inference import Separator
from flasepformer.inference.finishing import array_reader
from flasepformer.inference.post_filter import PostFiltered
from flasepformer.metrics import si_snr
from flasepformer.models import convert_checkpoint, save_model

RATE = 8000


@pytest.fixture(scope="module")
def speech():
    """Mixture, and its sources with a third of the other: (time,), (source, time)."""
    sources = np.stack([soundfile.read(DEMO / f"source{k}.flac", dtype="float32")[0] for k in (1, 2)])
    sources = sources[:, :40_001] / sources[:, :40_001].std(axis=1, keepdims=True)
    return sources.sum(0), sources + 0.3 * sources[::-1], sources


def behind(mixture, estimates, share, rate=RATE):
    return PostFiltered(array_reader(mixture), array_reader(estimates), len(mixture), rate, share)


def test_it_is_the_mixture_times_the_share_that_each_estimate_has_of_the_power(speech):
    mixture, estimates, _ = speech
    window = {"fs": RATE, "nperseg": 1024, "noverlap": 768}
    x, s = stft(mixture, **window)[2], stft(estimates, **window)[2]
    powers = np.abs(s) ** 2
    gains = powers / (powers.sum(0) + np.abs(x - s.sum(0)) ** 2 + 1e-20)
    expected = istft(gains * x, **window)[1][:, : len(mixture)]
    found = behind(mixture, estimates, 1.0)(0, len(mixture))
    inner = slice(1024, -1024)  # scipy divides by fewer windows at the ends
    np.testing.assert_allclose(found[:, inner], expected[:, inner], atol=1e-5)
    half = behind(mixture, estimates, 0.5)(0, len(mixture))
    np.testing.assert_allclose(half, (found + estimates) / 2, atol=1e-6)
    assert np.array_equal(behind(mixture, estimates, 0.0)(0, len(mixture)), estimates)


@pytest.mark.parametrize("n_samples", [1, 255, 256, 1025, 2 * BLOCK_LENGTH + 77])
def test_samples_are_the_same_wherever_pieces_begin(n_samples):
    rng = np.random.default_rng(0)
    estimates = rng.standard_normal((3, n_samples)).astype(np.float32)
    filtered = behind(estimates.sum(0) + 0.1, estimates, 0.6)
    whole = filtered(0, n_samples)
    assert whole.shape == (3, n_samples)
    cuts = sorted({0, n_samples, *rng.integers(0, n_samples + 1, 9).tolist()})
    pieces = [filtered(first, last) for first, last in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5)
    assert filtered(0, 0).shape == (3, 0)


def test_estimates_that_are_the_sources_of_no_common_bin_stay_and_silence_stays_silent():
    moments = np.arange(RATE) / RATE
    tones = np.stack([np.sin(2 * np.pi * f * moments) for f in (500, 1500)]).astype(np.float32)
    found = behind(tones.sum(0), tones, 1.0)(1024, RATE - 1024)
    np.testing.assert_allclose(found, tones[:, 1024:-1024], atol=1e-4)
    assert not behind(0 * tones[0], 0 * tones, 1.0)(0, RATE).any()


def test_noise_that_no_estimate_has_is_not_given_back(speech):
    mixture, _, sources = speech
    noise = 0.5 * np.random.default_rng(0).standard_normal(len(mixture)).astype(np.float32)
    found = behind(mixture + noise, sources, 1.0)(0, len(mixture))
    left = np.mean(np.square(found.sum(0) - mixture))
    assert left < 0.5 * np.mean(np.square(noise))


def test_what_leaks_into_speech_is_less_behind_it(speech):
    mixture, estimates, sources = speech
    found = behind(mixture, estimates, 0.6)(0, len(mixture))
    before, after = (si_snr(torch.from_numpy(x), torch.from_numpy(sources)) for x in (estimates, found))
    assert (after > before + 1).all()


def test_a_model_brings_its_share_and_users_choose_another(tmp_path, voices):
    save_model(tiny(layer_scale=0.5), tmp_path / "model", {"post_filter": 0.6})
    mixture = voices(6000)
    known = Separator.from_pretrained(tmp_path / "model", "cpu")
    assert known.post_filter == 0.6
    assert known.alike({}).post_filter == known.alike({"post_filter": None}).post_filter == 0.6
    assert known.within(10**9).post_filter == 0.6
    without = Separator.from_pretrained(tmp_path / "model", "cpu", post_filter=0.0)
    tracks, plain = known.separate(mixture, RATE), without.separate(mixture, RATE)
    np.testing.assert_allclose(tracks, behind(mixture - mixture.mean(), plain, 0.6)(0, 6000), atol=1e-4)
    assert not np.allclose(tracks, plain, atol=1e-3)
    assert Separator(known.model, "cpu").post_filter == 0  # of a network alone, nothing is known
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="post_filter must be from 0 to 1"):
            Separator(known.model, "cpu", post_filter=share)


def test_a_converted_model_keeps_its_share(tmp_path):
    save_model(tiny(), tmp_path / "model", {"post_filter": 1})
    convert_checkpoint(tmp_path / "model", tmp_path / "half", dtype=torch.float16)
    assert Separator.from_pretrained(tmp_path / "half", "cpu").post_filter == 1


def test_a_share_that_makes_no_sense_in_a_checkpoint_counts_as_none(tmp_path):
    for share in (7.0, "much", None, True):
        save_model(tiny(), tmp_path / "model", {"post_filter": share})
        assert Separator.from_pretrained(tmp_path / "model", "cpu").post_filter == 0
