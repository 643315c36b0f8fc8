import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flasepformer.audio import resample


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 8_000), (8_000, 44_100), (12_345, 8_000)])
def test_sine_keeps_its_frequency_phase_and_level(from_rate, to_rate):
    def sine(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    resampled = resample(sine(from_rate), from_rate, to_rate)
    assert resampled.shape == (to_rate,)
    inside = slice(to_rate // 20, -to_rate // 20)  # the sine starts and ends abruptly
    np.testing.assert_allclose(resampled[inside], sine(to_rate)[inside], atol=1e-5)


@settings(deadline=None)
@given(
    n_samples=st.integers(1, 3000),
    from_rate=st.sampled_from([2_000, 8_000, 11_025, 12_345, 16_000, 44_100, 384_000]),
    to_rate=st.sampled_from([8_000, 16_000, 44_100]),
)
@example(n_samples=1, from_rate=384_000, to_rate=8_000)
def test_length_is_exact(n_samples, from_rate, to_rate):
    resampled = resample(np.ones(n_samples, np.float32), from_rate, to_rate)
    assert len(resampled) == max(1, round(n_samples * to_rate / from_rate))
    assert resampled.dtype == np.float32
    assert np.isfinite(resampled).all()


def test_end_is_not_cut_off():
    smooth = np.hanning(8_000)[:4_000]  # breaks off at its top
    resampled = resample(smooth, 8_000, 16_000)
    assert resampled[-40] == pytest.approx(1, abs=0.02)
    assert resampled[-1] > 0.2  # half way between the top and nothing


def test_leading_axes_are_kept():
    waveform = np.random.default_rng(0).standard_normal((2, 3, 500)).astype(np.float32)
    resampled = resample(waveform, 8_000, 16_000)
    assert resampled.shape == (2, 3, 1000)
    for row, one in zip(resampled.reshape(6, -1), waveform.reshape(6, -1), strict=True):
        np.testing.assert_allclose(row, resample(one, 8_000, 16_000), atol=1e-6)


def test_equal_rates_change_nothing_and_no_samples_stay_none():
    waveform = np.random.default_rng(0).standard_normal(500)
    np.testing.assert_array_equal(resample(waveform, 8_000, 8_000), waveform)
    assert resample(np.zeros((2, 0), np.float32), 8_000, 16_000).shape == (2, 0)
    assert resample(np.zeros((0, 100), np.float32), 8_000, 16_000).shape == (0, 200)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(0, 8_000), (8_000, -1), (float("nan"), 8_000)])
def test_impossible_rates_are_refused(from_rate, to_rate):
    with pytest.raises(ValueError, match="must be above 0 Hz"):
        resample(np.zeros(100), from_rate, to_rate)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="must be float32 or float64, got int16"):
        resample(np.zeros(100, np.int16), 8_000, 16_000)
