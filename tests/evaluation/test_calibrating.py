"""The confidence of tracks is fitted to tracks whose quality is known."""

import numpy as np
import pytest
import soundfile

from flasepformer.data import read_utterances
from flasepformer.evaluation.calibrating import KINDS, Judged, draw_mixtures, fit, main, qualities, tables
from flasepformer.inference import Separator

RATE = 8000


@pytest.fixture
def speech(tmp_path):
    """Three talkers in each of two splits, of noise that is loud and quiet by turns."""
    rng = np.random.default_rng(0)
    for split in ("valid", "test"):
        for talker in "abc":
            (tmp_path / split / talker).mkdir(parents=True)
            loudness = np.repeat(rng.random(30) ** 3, RATE // 10)
            samples = 0.1 * loudness * rng.standard_normal(3 * RATE)
            soundfile.write(tmp_path / split / talker / "0.wav", samples, RATE)
    return tmp_path


def test_mixtures_are_the_same_for_the_same_seed_and_as_loud_as_they_say(speech):
    utterances = read_utterances(speech, "valid")
    drawn, again = (list(draw_mixtures(utterances, None, 20, 1, RATE)) for _ in range(2))
    assert [kind for kind, _, _ in drawn] == list(KINDS)
    for (kind, mixture, talkers), (_, other, _) in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(mixture, other)
        levels = 10 * np.log10(np.square(talkers).mean(axis=1))
        if kind == "15 to 22 dB apart":
            assert 10 <= levels[0] - levels[1] <= 27
        if kind in ("two talkers", "three talkers"):
            np.testing.assert_allclose(mixture, talkers.sum(axis=0), atol=1e-6)
            assert levels == pytest.approx([20 * np.log10(0.05)] * len(levels), abs=2.6)
        assert len(talkers) == {"three talkers": 3, "one alone": 1}.get(kind, 0 if "alone" in kind else 2)


def test_the_quality_of_a_track_is_against_the_talker_that_fits_it():
    rng = np.random.default_rng(0)
    talkers = rng.standard_normal((3, RATE)).astype(np.float32)
    tracks = np.stack([talkers[2] + 0.1 * talkers[0], talkers[1]])
    assert qualities(tracks, talkers) == pytest.approx([20.0, 100.0], abs=0.3)
    assert qualities(tracks, talkers[:0]) == [-np.inf, -np.inf]
    [first, second] = qualities(tracks, talkers[1:2])
    assert (first, second) == (-np.inf, pytest.approx(100.0, abs=0.3))


def test_a_logistic_model_that_made_the_answers_is_found_again():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4000, 2)) * [1.0, 5.0]
    good = rng.random(4000) < 1 / (1 + np.exp(-(features @ [1.0, -0.3] + 0.5)))
    weights, constant = fit(features, good)
    assert [*weights, constant] == pytest.approx([1.0, -0.3, 0.5], abs=0.12)


def test_tables_count_how_often_it_is_right():
    said, good = np.array([0.9, 1.0, 0.85, 0.1]), np.array([True, True, False, False])
    text = tables(Judged(np.array(["two talkers"] * 4), np.zeros((4, 8)), good), said)
    assert "| 80 to 100% | 3 | 67% |" in text
    assert "| two talkers | 4 | 71% | 50% | 25% |" in text
    assert text.endswith("sure is right in 67% of 3 tracks; area under the curve 1.00")


@pytest.mark.slow
def test_the_module_prints_weights_and_tables(speech, capsys, monkeypatch):
    fast = Separator.from_pretrained("default-fast", "cpu")
    monkeypatch.setattr(Separator, "from_pretrained", lambda **_: fast)
    main([str(speech), "--count", "2", "--test-count", "2"])
    said = capsys.readouterr().out
    assert said.count("constant") == 2
    assert said.count("| three talkers | 2 |") == 3
