import numpy as np
import pytest

from flasepformer.audio import resample
from flasepformer.inference.finishing import Passed, array_reader


@pytest.fixture(scope="session")
def babble():
    """Return a maker of noise in syllables of 0.2 s: (n_samples,), RMS about 0.05, nothing above 3 kHz."""

    def make(seconds, rate, seed):
        rng = np.random.default_rng(seed)
        n = round(seconds * 6000)
        carrier = rng.standard_normal(n)
        syllables = np.repeat(0.4 + rng.random(n // 1200 + 1), 1200)[:n]
        return resample(0.05 * carrier * syllables, 6000, rate).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def passed_of():
    """Return a maker of what has passed a model that gave these estimates (source, time) at 8 kHz."""

    def make(recording, rate, estimates):
        mixture = resample(recording, rate, 8000).astype(np.float32)
        return Passed(
            n_samples=len(recording),
            sample_rate=rate,
            recording=array_reader(recording),
            n_estimate_samples=estimates.shape[-1],
            estimate_rate=8000,
            n_sources=len(estimates),
            mixture=array_reader(mixture),
            estimates=array_reader(estimates),
            name="talk",
        )

    return make


@pytest.fixture(scope="session")
def talk(babble, passed_of):
    """One speaks from 1 to 4 s, another from 3 to 6 s of 8 s, at 16 kHz; estimates have 1 % of the other.

    Above the model's band there is a hiss, as loud as the two speak.
    """
    sources = np.zeros((2, 8 * 16000), np.float32)
    sources[0, 16000:64000] = babble(3, 16000, 1)
    sources[1, 48000:96000] = babble(3, 16000, 2)
    hiss = np.random.default_rng(3).standard_normal(sources.shape[-1]).astype(np.float32)
    envelope = (np.abs(sources).sum(0) > 0).astype(np.float32)
    above = 0.01 * envelope * (hiss - resample(resample(hiss, 16000, 8000), 8000, 16000))
    recording = sources.sum(0) + above.astype(np.float32)
    low = resample(sources, 16000, 8000)
    estimates = np.stack([0.99 * low[0] + 0.01 * low[1], 0.01 * low[0] + 0.99 * low[1]])
    return passed_of(recording, 16000, estimates.astype(np.float32)), recording, sources
