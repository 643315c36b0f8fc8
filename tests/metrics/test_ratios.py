import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flasepformer.metrics import sdr, sdr_improvement, si_snr, si_snr_improvement


def orthonormal_pair(n_samples, seed):
    """Two zero-mean signals of unit energy whose inner product is 0."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, n_samples, generator=generator, dtype=torch.float64)
    pair = pair - pair.mean(-1, keepdim=True)
    return torch.linalg.qr(pair.T).Q.T.float()


@given(
    snr_db=st.floats(-20, 40), gain=st.floats(1e-3, 1e3), offset=st.floats(-1, 1), seed=st.integers(0, 999)
)
@settings(deadline=None)
def test_si_snr_reads_back_the_ratio_the_estimate_was_built_with(snr_db, gain, offset, seed):
    source, noise = orthonormal_pair(n_samples=800, seed=seed)
    estimate = gain * (source + 10 ** (-snr_db / 20) * noise + offset / 10)
    assert si_snr(estimate, -3 * source + offset).item() == pytest.approx(snr_db, abs=2e-3)


def test_improvement_is_over_the_mixture_against_the_same_source():
    source, noise = orthonormal_pair(800, seed=1)
    sources = torch.stack([source, 0.5 * noise])  # the mixture scores 20 log10(2) = 6.02 and -6.02 dB
    estimates = torch.stack([source + 0.01 * noise, noise + 0.1 * source])  # 40 and 20 dB
    improvement = si_snr_improvement(estimates, sources, sources.sum(0))
    assert improvement.tolist() == pytest.approx([40 - 6.0206, 20 + 6.0206], abs=1e-3)


def test_exact_copy_silent_estimate_and_silent_source_have_defined_values():
    source, other = orthonormal_pair(8000, seed=2)
    estimates = torch.stack([source, torch.zeros(8000), other, source, source])
    sources = torch.stack([source, source, source, torch.zeros(8000), torch.full((8000,), 0.3)])
    assert si_snr(estimates, sources)[:3].tolist() == pytest.approx([100, -100, -100], abs=0.05)
    assert si_snr(estimates, sources)[3:].isnan().all()  # a constant is silence without its mean
    assert sdr(estimates[:2], sources[:2]).tolist() == pytest.approx([100, -100], abs=1e-3)
    assert sdr(estimates[3:4], sources[3:4]).isnan().all()
    assert sdr(source, torch.zeros(8000)).isnan()


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-8, 1.0, 1e6])
def test_the_gradient_of_si_snr_is_finite_at_any_level(scale):
    source, noise = orthonormal_pair(800, seed=3)
    estimate = (scale * (source + noise)).requires_grad_()
    silent = torch.zeros(800)
    value = si_snr(torch.stack([estimate, estimate]), torch.stack([source, silent])).nan_to_num().sum()
    (gradient,) = torch.autograd.grad(value, estimate)
    assert gradient.isfinite().all()
    if scale >= 1e-8:
        assert value.item() == pytest.approx(0, abs=1e-2)
        assert gradient.dot(source) > 0  # more of the source is better


def test_half_precision_is_scored_in_single_precision():
    source, noise = orthonormal_pair(800, seed=4)
    pair = torch.stack([source + 0.1 * noise, source]).to(torch.bfloat16)
    assert si_snr(*pair).dtype == torch.float32
    assert_close(si_snr(*pair), si_snr(*pair.float()))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 15.0])
def test_sdr_reads_back_noise_that_no_short_filter_of_the_source_explains(snr_db):
    """White noise of one half of the time, the source in the other: no filter of 512 taps links them."""
    generator = torch.Generator().manual_seed(5)
    source, noise = torch.zeros(2, 40000)
    source[:19000] = torch.randn(19000, generator=generator)
    noise[21000:] = torch.randn(19000, generator=generator)
    noise *= 10 ** (-snr_db / 20) * source.norm() / noise.norm()
    assert sdr(source + noise, source).item() == pytest.approx(snr_db, abs=1e-4)


def test_sdr_does_not_depend_on_the_level():
    source, noise = torch.randn(2, 4000, generator=torch.Generator().manual_seed(8))
    values = [sdr(gain * (source + 0.1 * noise), source / gain).item() for gain in (1.0, 1e-12, 1e12)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-3)
    assert 19 < values[0] < 22  # 20 dB, and what 512 taps explain of 4000 samples of noise


@pytest.mark.parametrize(("delay", "forgiven"), [(0, True), (511, True), (512, False)])
def test_sdr_forgives_a_filter_of_512_taps_and_no_more(delay, forgiven):
    source = torch.zeros(20000, dtype=torch.float64)
    source[2000:18000] = torch.randn(16000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    filtered = source.roll(delay) + (0.5 * source.roll(100) if forgiven else 0.0)
    assert (sdr(filtered, source) > 90) == forgiven
    assert (sdr(filtered, source) < 0) != forgiven


@pytest.mark.parametrize("frequency", [0, 500, 2000])
def test_sdr_of_a_pure_tone_has_a_value(frequency):  # many filters fit one tone: singular equations
    tone = torch.cos(2 * torch.pi * frequency * torch.arange(8000) / 8000)
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(9))
    assert sdr(tone, tone).item() == 100
    assert -20 < sdr(noise, tone).item() < -10


def test_sdr_improvement_is_the_sdr_less_that_of_the_mixture():
    sources = torch.zeros(2, 40000)
    generator = torch.Generator().manual_seed(7)
    sources[0, :19000] = torch.randn(19000, generator=generator)
    sources[1, 21000:] = torch.randn(19000, generator=generator)
    sources /= sources.norm(dim=-1, keepdim=True)
    mixture = sources.sum(0)  # 0 dB for both
    estimates = sources + 0.1 * sources.flip(0)  # 20 dB for both
    assert sdr_improvement(estimates, sources, mixture).tolist() == pytest.approx([20, 20], abs=1e-3)


@pytest.mark.parametrize("metric", [si_snr, sdr])
@pytest.mark.parametrize(("estimates", "sources"), [((2, 80), (2, 81)), ((2, 80), (3, 80)), ((2, 0), (2, 0))])
def test_shapes_that_cannot_be_compared_are_refused(metric, estimates, sources):
    with pytest.raises(ValueError, match=r"same shape|at least one sample"):
        metric(torch.zeros(estimates), torch.zeros(sources))


def test_a_mixture_of_another_length_is_refused():
    with pytest.raises(ValueError, match="mixture must have the same shape"):
        si_snr_improvement(torch.rand(3, 2, 80), torch.rand(3, 2, 80), torch.rand(3, 81))


def test_sdr_holds_after_a_change_of_threads():
    """With PyTorch 2.13 and oneMKL, a batch of equations came out wrong once one thread had become two."""
    estimates, sources = torch.randn(2, 2, 2000, generator=torch.Generator().manual_seed(6))
    expected = sdr(estimates, sources)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        sdr(estimates, sources)
        torch.set_num_threads(2)
        assert_close(sdr(estimates, sources), expected)
    finally:
        torch.set_num_threads(n_threads)
