"""Resampling while the stream comes: the same in any pieces, clean, and as late as it says."""

import numpy as np
import pytest

from flasepformer.audio import LiveResampler


def played(signal, rates, lengths):
    resampler, parts, first = LiveResampler(*rates, len(signal)), [], 0
    for length in lengths:
        parts.append(resampler.feed(signal[:, first : first + length]))
        first += length
    return np.concatenate([*parts, resampler.flush()], axis=1)


@pytest.mark.parametrize("rates", [(48000, 8000), (8000, 44100), (11025, 8000), (7999, 8000), (8000, 8000)])
def test_a_stream_in_any_pieces_is_the_whole(rates):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2, 3000)).astype(np.float32)
    whole = played(signal, rates, [3000])
    assert whole.shape == (2, round(3000 * rates[1] / rates[0]))
    assert np.abs(played(signal, rates, [1, 0, 2, 700, 1, 2296]) - whole).max() < 1e-6


@pytest.mark.parametrize(("rates", "hertz"), [((48000, 8000), 1000), ((8000, 44100), 3400)])
def test_a_tone_stays_the_tone_it_is(rates, hertz):
    times = [np.arange(rate // 4) / rate for rate in rates]
    tone, expected = (np.sin(2 * np.pi * hertz * t).astype(np.float32) for t in times)
    resampled = played(tone[None], rates, [len(tone)])[0]
    middle = slice(rates[1] // 50, -rates[1] // 50)
    assert np.abs(resampled - expected)[middle].max() < 1e-3


def test_what_the_lower_rate_cannot_hold_is_gone():
    tone = np.sin(2 * np.pi * 4200 * np.arange(12000) / 48000).astype(np.float32)
    assert np.abs(played(tone[None], (48000, 8000), [12000])[0, 100:-100]).max() < 3e-4  # -70 dB


def test_an_output_waits_as_long_as_stated():
    resampler = LiveResampler(48000, 8000)
    assert resampler.delay_seconds == pytest.approx(0.005)
    for n_in in range(1, 2000):
        resampler.feed(np.ones((1, 1), np.float32))
        waiting = n_in / 48000 - resampler.n_out / 8000  # since the time of the next output
        assert waiting <= resampler.delay_seconds + 1e-9


def test_a_saved_state_goes_on_as_if_nothing_had_been():
    signal = np.random.default_rng(1).standard_normal((1, 4000)).astype(np.float32)
    whole, first = LiveResampler(44100, 8000), LiveResampler(44100, 8000)
    expected = np.concatenate([whole.feed(signal), whole.flush()], axis=1)
    early = first.feed(signal[:, :1234])
    second = LiveResampler(44100, 8000)
    second.load(first.state())
    late = np.concatenate([early, second.feed(signal[:, 1234:]), second.flush()], axis=1)
    assert np.array_equal(late, expected) or np.abs(late - expected).max() < 1e-6
