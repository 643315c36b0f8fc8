import sys

import pytest
import torch

from flasepformer.metrics import PESQ_MAX_SECONDS, estoi, pesq, why_no_estoi, why_no_pesq


def babble(seconds, seed=0):
    """Noise in syllables of 0.2 s, four in a second: enough for both models to take it for speech."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(round(seconds * 8000), generator=generator)
    return 0.1 * noise * (torch.arange(len(noise)) % 2000 < 1600)


def test_pesq_of_a_copy_is_the_highest_score_and_noise_lowers_it():
    pytest.importorskip("pesq")
    source, noise = babble(2), torch.randn(16000, generator=torch.Generator().manual_seed(9))
    estimates = torch.stack([source, source + 0.003 * noise, source + 0.1 * noise])
    scores = pesq(estimates, source.expand(3, -1), 8000)
    assert scores[0].item() == pytest.approx(4.5486, abs=1e-3)  # 4.5 on the raw scale, mapped as in P.862.1
    assert scores[0] > scores[1] > scores[2] > 1


def test_pesq_has_no_value_for_silence_and_for_too_short_or_too_long_recordings():
    pytest.importorskip("pesq")
    source, silence = babble(1), torch.zeros(8000)
    assert pesq(torch.stack([source, silence]), torch.stack([silence, source]), 8000).isnan().all()
    assert pesq(babble(0.2), babble(0.2), 8000).isnan()
    too_long = babble(PESQ_MAX_SECONDS + 0.1)
    assert pesq(too_long, too_long, 8000).isnan()


def test_pesq_refuses_rates_that_it_is_not_defined_for():
    pytest.importorskip("pesq")
    with pytest.raises(ValueError, match="8000 and 16000 Hz, got 44100"):
        pesq(babble(1), babble(1), 44100)


def test_estoi_of_a_copy_is_1_and_of_other_noise_about_0():
    source = babble(2)
    estimates = torch.stack([source, 10 * source, babble(2, seed=1)])
    scores = estoi(estimates, source.expand(3, -1), 8000).tolist()
    assert scores[:2] == pytest.approx([1, 1], abs=1e-4)
    assert abs(scores[2]) < 0.5


def test_estoi_has_no_value_for_silence_and_for_too_little_speech():
    source, silence = babble(1), torch.zeros(8000)
    assert estoi(torch.stack([source, silence]), torch.stack([silence, source]), 8000).isnan().all()
    assert estoi(babble(0.3), babble(0.3), 8000).isnan()


@pytest.mark.parametrize("n_samples", [1, 10, 255, 3199])
def test_estoi_has_no_value_for_less_than_a_frame(n_samples):
    source = torch.randn(2, n_samples, generator=torch.Generator().manual_seed(0))
    assert estoi(source, source, 8000).isnan().all()
    assert why_no_estoi(n_samples, 8000) == "ESTOI is defined for recordings of 0.4 s and more"


def test_reasons_are_given_where_there_is_no_value_only():
    pytest.importorskip("pesq")
    for seconds in (0.2, 0.3, 1.0, PESQ_MAX_SECONDS + 0.1):
        source = babble(seconds)
        assert bool(why_no_pesq(len(source), 8000)) == (not 0.25 <= seconds <= PESQ_MAX_SECONDS)
        if why_no_pesq(len(source), 8000):
            assert pesq(source, source, 8000).isnan()
    assert not why_no_estoi(len(babble(1)), 8000)
    assert not estoi(babble(1), babble(1), 8000).isnan()


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        estoi(torch.rand(2, 80), torch.rand(80), 8000)


@pytest.mark.parametrize(("package", "score"), [("pesq", pesq), ("pystoi", estoi)])
def test_a_missing_package_is_named_with_its_extra(package, score, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # what Python notes of a module that is not to be found
    with pytest.raises(ImportError, match=r"pip install .*\[perceptual\]"):
        score(torch.rand(80), torch.rand(80), 8000)
