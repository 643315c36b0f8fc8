"""Make the demo's mixture of two talkers that the default model has never heard; see README.md here.

Usage: python demo/make_mixture.py FIRST.flac SECOND.flac
"""

import sys
from pathlib import Path

import numpy as np

from flasepformer.audio import read_audio, write_audio

FOLDER = Path(__file__).parent
PEAK = 0.9


def main(paths: list[str]) -> None:
    """Bring both recordings to the same RMS, cut them to the shorter one and add them up."""
    recordings = [read_audio(path) for path in paths]
    n_samples = min(recording.samples.shape[1] for recording in recordings)
    sources = np.stack([recording.samples[0, :n_samples] for recording in recordings])
    sources /= np.sqrt(np.mean(sources**2, axis=1, keepdims=True))
    sources *= PEAK / max(np.abs(sources).max(), np.abs(sources.sum(0)).max())
    for name, waveform in (("mixture", sources.sum(0)), ("source1", sources[0]), ("source2", sources[1])):
        write_audio(FOLDER / f"{name}.flac", waveform, recordings[0].sample_rate, subtype="PCM_16")


if __name__ == "__main__":
    main(sys.argv[1:])
