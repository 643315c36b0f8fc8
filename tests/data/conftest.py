import numpy as np
import pytest
import soundfile


@pytest.fixture
def write_tone():
    """Write a sine as a float WAV; a test knows a speaker by the frequency."""

    def write(path, frequency, seconds, rate=8000, amplitude=0.5):
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * rate)) / rate
        soundfile.write(path, amplitude * np.sin(2 * np.pi * frequency * time), rate, "FLOAT")
        return path

    return write
