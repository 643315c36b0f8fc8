import numpy as np
import pytest

from flasepformer.data.loudness import loudness


def sine(seconds, rate=48000, amplitude=1.0):
    return (amplitude * np.sin(2 * np.pi * 997 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_a_full_scale_sine_has_the_loudness_of_the_standard():
    assert loudness(sine(2.0), 48000) == pytest.approx(-3.01, abs=0.06)  # ITU-R BS.1770-4, annex 1
    assert loudness(sine(2.0, amplitude=0.01), 48000) == pytest.approx(-43.01, abs=0.06)
    assert loudness(sine(2.0, rate=8000), 8000) == pytest.approx(-3.01, abs=0.2)


def test_a_word_shorter_than_the_standards_block_has_a_loudness():
    assert loudness(sine(0.2), 48000) == pytest.approx(-3.01, abs=0.2)


@pytest.mark.parametrize(
    "waveform", [np.zeros(8000, np.float32), sine(1.0, 8000, 1e-5), sine(0.001, 8000, 1e-9)]
)
def test_silence_and_what_is_below_the_gate_have_none(waveform):
    assert loudness(waveform, 8000) == float("-inf")


def test_pauses_do_not_count():
    speech = np.concatenate([sine(3.0, 8000), np.zeros(24000, np.float32)])
    assert loudness(speech, 8000) == pytest.approx(-3.3, abs=0.2)  # 6 dB less if they did
