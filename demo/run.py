"""Separate the bundled mixture of two talkers, say how well it went, and draw what happened."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from flasepformer import Separator
from flasepformer.audio import read_audio, resample
from flasepformer.metrics import best_permutation, pairwise, si_snr

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent
TRACKS = FOLDER / "tracks"
PICTURE = TRACKS / "spectrograms.png"


def main() -> None:
    """Run the demo; prints what a person wants to know and leaves tracks and picture in `demo/tracks/`."""
    separator = Separator.from_pretrained()
    report = separator.separate_file_with_report(FOLDER / "mixture.flac", TRACKS, overwrite=True)
    known = ("mixture", "source1", "source2")
    mixture, *sources = (load(FOLDER / f"{name}.flac", separator.sample_rate) for name in known)
    estimates = [load(path, separator.sample_rate) for path in report.tracks]
    before, after, permutation = scores(mixture, sources, estimates)
    seconds = len(mixture) / separator.sample_rate
    print(f"{seconds:.1f} s of two people talking at once, separated on {report.device}")
    for i, estimate in enumerate(permutation):
        print(
            f"  talker {i + 1}: SI-SNR {before[i]:5.1f} dB -> {after[i]:5.1f} dB   "
            f"SI-SNRi {after[i] - before[i]:4.1f} dB   {report.tracks[estimate]}"
        )
    print(f"SI-SNRi {np.mean(after) - np.mean(before):.1f} dB at {separator.sample_rate} Hz")
    speed = 1 / report.real_time_factor
    print(f"real-time factor {report.real_time_factor:.3f}: {speed:.0f} times faster than real time")
    draw([mixture, *(estimates[i] for i in permutation)], separator.sample_rate)
    print(f"picture {PICTURE}")


def load(path: str | Path, sample_rate: int) -> NDArray[np.float32]:
    """Read a mono recording at the model's rate, where it is scored."""
    recording = read_audio(path)
    return resample(recording.samples[0], recording.sample_rate, sample_rate)


def scores(
    mixture: NDArray[np.float32], sources: list[NDArray[np.float32]], estimates: list[NDArray[np.float32]]
) -> tuple[list[float], list[float], list[int]]:
    """Return the SI-SNR of each talker in the mixture and in their track, and which track is whose."""
    truth, answer = torch.from_numpy(np.stack(sources)), torch.from_numpy(np.stack(estimates))
    table = pairwise(si_snr, answer, truth)
    permutation = best_permutation(table).tolist()
    before = si_snr(torch.from_numpy(mixture).expand_as(truth), truth).tolist()
    return (
        before,
        [float(table[estimate, source]) for source, estimate in enumerate(permutation)],
        permutation,
    )


def draw(waveforms: list[NDArray[np.float32]], sample_rate: int) -> None:
    """Draw the spectrograms of the mixture and of the tracks, one below the other, on one scale of levels."""
    figure, axes = plt.subplots(
        len(waveforms), 1, figsize=(10, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    titles = ["The recording: both at once", *(f"Track of talker {i}" for i in range(1, len(waveforms)))]
    window, hop = 256, 64
    spectra = []
    for waveform in waveforms:
        spectrum = torch.stft(
            torch.from_numpy(waveform), window, hop, window=torch.hann_window(window), return_complex=True
        )
        spectra.append(20 * torch.log10(spectrum.abs() + 1e-6).numpy())
    top = np.percentile(spectra[0], 99)
    extent = (0, len(waveforms[0]) / sample_rate, 0, sample_rate / 2000)
    for axis, title, spectrum in zip(axes, titles, spectra, strict=True):
        image = axis.imshow(
            spectrum, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - 45, vmax=top
        )
        axis.set_title(title, loc="left")
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label="dB", shrink=0.6)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
