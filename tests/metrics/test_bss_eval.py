import pytest
import torch

from flasepformer.metrics import sdr, sir_sar


def noise_in_turn(n_signals, seed=0):
    """White noises of unit energy, far apart in time, so that no filter of 512 taps links them."""
    signals = torch.zeros(n_signals, 6000 * n_signals)
    generator = torch.Generator().manual_seed(seed)
    for k, signal in enumerate(signals):
        signal[6000 * k : 6000 * k + 4000] = torch.randn(4000, generator=generator)
    return signals / signals.norm(dim=-1, keepdim=True)


def test_interference_and_artefacts_are_told_apart_and_add_up_to_the_distortion():
    first, second, artefact = noise_in_turn(3)
    sources = torch.stack([first, second])
    estimates = sources + 0.1 * sources.flip(0) + 0.01**0.5 * torch.stack([artefact, 10 * artefact])
    sir, sar = sir_sar(estimates, sources)
    assert sir.tolist() == pytest.approx([20, 20], abs=1e-3)  # energy 1 against 0.01
    # 1.01 of the talkers against 0.01 and against 1 of nobody
    assert sar.tolist() == pytest.approx([20.0432, 0.0432], abs=1e-3)
    # 1 against 0.02 and against 1.01
    assert sdr(estimates, sources).tolist() == pytest.approx([16.9897, -0.0432], abs=1e-3)


def test_a_filter_of_the_source_is_forgiven_and_a_later_echo_is_not():
    sources = noise_in_turn(2)
    near, far = sources.roll(500, -1), sources.roll(600, -1)
    assert sir_sar(sources + 0.5 * near, sources)[1].tolist() == pytest.approx([100, 100])
    assert max(sir_sar(sources + 0.5 * far, sources)[1].tolist()) < 10


def test_the_mixture_has_the_ratio_of_the_levels_as_its_sir_and_no_artefacts():
    sources = noise_in_turn(2) * torch.tensor([[1.0], [0.1]])
    sir, sar = sir_sar(sources.sum(0).expand(2, -1), sources)
    assert sir.tolist() == pytest.approx([20, -20], abs=1e-3)
    assert sar.tolist() == [100, 100]


def test_silent_sources_are_not_applicable_and_harm_no_other():
    first, _, artefact = noise_in_turn(3)
    estimate = first + 0.1 * artefact
    sources, estimates = torch.stack([first, torch.zeros_like(first)]), estimate.expand(2, -1)
    sir, sar = sir_sar(estimates, sources)
    assert sir.isnan().all()  # nobody interferes
    assert sar[0].item() == pytest.approx(20, abs=1e-3)
    assert sar[1].isnan()
    assert sir_sar(torch.zeros_like(sources), sources)[1][0].item() == -100


def test_equations_without_a_single_solution_have_values():
    tone = torch.cos(2 * torch.pi * 500 * torch.arange(8000) / 8000)
    sources = torch.stack([tone, tone, torch.zeros(8000)])
    noise = torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))
    sir, sar = sir_sar(tone + 0.1 * noise, sources)
    assert sir[:2].isfinite().all()
    assert sar[:2].tolist() == pytest.approx([17, 17], abs=1)  # energy 4000 against 80


@pytest.mark.slow
def test_a_batch_is_scored_one_by_one_whatever_the_levels():
    sources = torch.randn(2, 3, 2000, generator=torch.Generator().manual_seed(2))
    estimates = sources + torch.randn(2, 3, 2000, generator=torch.Generator().manual_seed(3))
    together = sir_sar(1e-9 * estimates, 1e6 * sources)
    for k in range(2):
        for ratios, alone in zip(together, sir_sar(estimates[k], sources[k]), strict=True):
            assert ratios[k].tolist() == pytest.approx(alone.tolist(), abs=1e-3)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        sir_sar(torch.rand(2, 80), torch.rand(3, 80))
