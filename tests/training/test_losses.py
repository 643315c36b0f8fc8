import numpy as np
import pytest
import torch

from flasepformer.metrics import si_snr
from flasepformer.training import magnitude_loss, multi_stage_loss, si_snr_loss
from flasepformer.training.losses import _magnitudes, _scale_invariant_snr


def noisy_sources(snr_db, seed=0):
    """Return sources (2, 2, 4000), all orthogonal and zero-mean, and estimates at a known SI-SNR."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(4000, 9, generator=generator).double())[0].mT
    basis = torch.linalg.qr((basis - basis.mean(-1, keepdim=True)).mT)[0].mT
    sources, noise = basis[:4].unflatten(0, (2, 2)), basis[4:8].unflatten(0, (2, 2))
    return sources, sources + 10 ** (-snr_db / 20) * noise


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_si_snr_loss_is_minus_the_known_ratio_whatever_the_order(order):
    sources, estimates = noisy_sources(snr_db=7.0)
    assert si_snr_loss(3 * estimates[:, order], sources).item() == pytest.approx(-7.0, abs=1e-3)


@pytest.mark.parametrize("leak_db", [-200.0, -20.0, 0.0])
@pytest.mark.parametrize("gain", [1.0, 30.0])
def test_an_absent_talker_counts_by_how_far_its_estimate_is_below_the_others(leak_db, gain):
    sources, estimates = noisy_sources(snr_db=7.0)
    sources[0, 1] = 0
    present = estimates[0, 0]
    leak = 10 ** (leak_db / 20) * present.norm() * sources[1, 0] / sources[1, 0].norm()
    estimates[0] = torch.stack([leak, present])
    share = 10 ** (leak_db / 10) / (1 + 10 ** (leak_db / 10))
    below_db = -10 * np.log10(share + 1e-3)
    found = si_snr_loss(gain * estimates, sources).item()
    assert found == pytest.approx(-(3 * 7.0 + below_db) / 4, abs=1e-3)


def test_the_gradient_of_an_absent_talker_is_finite_and_lowers_its_estimate():
    sources, estimates = noisy_sources(snr_db=7.0)
    sources[0, 1] = 0
    estimates = estimates.float().requires_grad_()
    for loss in (si_snr_loss, magnitude_loss):
        (gradient,) = torch.autograd.grad(loss(estimates, sources), estimates)
        assert gradient.isfinite().all()
        assert (gradient[0, 1] * estimates[0, 1]).sum() > 0


def test_each_mixture_has_its_own_permutation():
    sources, estimates = noisy_sources(snr_db=7.0)
    estimates = torch.stack([estimates[0], estimates[1].flip(0)])
    assert si_snr_loss(estimates, sources).item() == pytest.approx(-7.0, abs=1e-3)


def test_magnitude_loss_does_not_hear_a_change_of_sign():
    sources, _ = noisy_sources(snr_db=0.0)
    signs = torch.tensor([1.0, -1.0]).view(1, 2, 1)
    assert magnitude_loss(signs * sources, sources).item() < -40
    assert si_snr_loss(signs * sources, sources).item() < -40


def test_spectra_are_compared_without_taking_their_mean_off():
    # Zero-mean, these two would be the same but for the sign.
    source, noise = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    estimate = 3 * (source + 10 ** (-7 / 20) * noise)
    assert _scale_invariant_snr(estimate, source).item() == pytest.approx(7.0, abs=1e-4)


def test_the_spectra_have_the_frames_of_the_original():
    sources = torch.zeros(1, 1, 4096)
    sources[..., 2048] = 1.0  # a click is in 512 / 128 = 4 frames, one of them at the window's zero
    powers = _magnitudes(sources).unflatten(-1, (257, -1)).square().sum(dim=2).squeeze()
    assert (powers > 1e-3).sum() == 3
    assert powers[4096 // 128 // 2] == pytest.approx(257.0, rel=1e-3)  # the window is 1 there


def test_magnitude_loss_is_better_for_a_better_estimate():
    losses = [
        magnitude_loss(estimates, sources) for sources, estimates in map(noisy_sources, (0.0, 10.0, 20.0))
    ]
    assert losses[0] > losses[1] + 5 > losses[2] + 10


def test_multi_stage_loss_weighs_the_two_parts():
    sources, estimates = noisy_sources(snr_db=7.0)
    auxiliaries = [noisy_sources(snr_db)[1] for snr_db in (0.0, 3.0)]
    expected = (
        0.6 * si_snr_loss(estimates, sources) + 0.4 * sum(magnitude_loss(a, sources) for a in auxiliaries) / 2
    )
    assert multi_stage_loss(estimates, auxiliaries, sources, 0.4).item() == pytest.approx(
        expected.item(), abs=1e-5
    )
    assert multi_stage_loss(estimates, auxiliaries, sources, 0.0).item() == pytest.approx(-7.0, abs=1e-3)


def test_losses_have_a_finite_gradient_for_silent_estimates():
    sources, _ = noisy_sources(snr_db=0.0)
    estimates = torch.zeros(2, 2, 4000, requires_grad=True)
    multi_stage_loss(estimates, [estimates], sources.float(), 0.4).backward()
    assert estimates.grad.isfinite().all()
    assert si_snr(estimates.detach(), sources).isfinite().all()


@pytest.mark.parametrize(("snr_db", "expected_db"), [(0.0, -0.004), (30.0, 26.99), (60.0, 29.996)])
def test_the_loss_approaches_its_limit_softly(snr_db, expected_db):
    sources, estimates = noisy_sources(snr_db)
    assert si_snr_loss(estimates, sources, limit_db=30.0).item() == pytest.approx(-expected_db, abs=1e-2)
    gradients = []
    for limit_db in (30.0, 0.0):
        leaf = estimates.detach().requires_grad_()
        gradients.append(torch.autograd.grad(si_snr_loss(leaf, sources, limit_db), leaf)[0].norm())
    kept = 1 / (1 + 10 ** ((snr_db - 30) / 10))  # d limited / d free
    assert (gradients[0] / gradients[1]).item() == pytest.approx(kept, rel=1e-2)


def test_a_talker_with_one_turn_in_long_silence_gives_a_finite_gradient():
    generator = torch.Generator().manual_seed(0)
    sources = torch.zeros(1, 2, 240_000)
    sources[0, 0, :4000] = 0.05 * torch.randn(4000, generator=generator)
    sources[0, 1, 20_000:] = 0.05 * torch.randn(220_000, generator=generator)
    estimates = sources.flip(1).clone().requires_grad_()  # nothing wrong: the loss is at its limit
    loss = si_snr_loss(estimates, sources, limit_db=30.0)
    (gradient,) = torch.autograd.grad(loss, estimates)
    assert loss.item() == pytest.approx(-30.0, abs=1e-2)
    assert gradient.isfinite().all()


def test_a_silent_mixture_with_silent_estimates_gives_a_finite_gradient():
    estimates = torch.zeros(1, 2, 8000, requires_grad=True)
    loss = si_snr_loss(estimates, torch.zeros(1, 2, 8000), limit_db=30.0)
    (gradient,) = torch.autograd.grad(loss, estimates)
    assert loss.item() == pytest.approx(-30.0, abs=1e-3)
    assert gradient.isfinite().all()
