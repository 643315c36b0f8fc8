"""The proof that an exported file gives the numbers of the network, on real speech of several lengths."""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flasepformer.audio import read_audio, resample
from flasepformer.data import Mixture, open_mixtures
from flasepformer.export.errors import ExportError, ProofFailed
from flasepformer.files import markdown_table
from flasepformer.metrics import separation_scores, si_snr
from flasepformer.models import SeparationNetwork
from flasepformer.onnx import ExportedSeparator, ExportedSet, ExportedStream

SPEECH = Path(__file__).parent / "speech.flac"
"""Two people reading at the same time; see README.md beside it."""

LENGTHS = (1 / 8000, 0.5, 3.0, 13.7)
"""Seconds of speech that are compared, one sample the first of them; longer ones repeat the recording."""

SHORT = 0.1
"""Seconds."""

LARGEST_DIFFERENCE = {"": 1e-4, "fp16": 1e-2, "int8": 0.3}
"""Largest root mean square of the difference in that of PyTorch's estimates, by the bits of the weights: 80,
40 and 10 dB."""

PIECE_LENGTH = 64
"""Frames in a piece in which sets are proved: a few seconds are several pieces."""

N_MIXTURES = 100
"""Mixtures that are scored, at most."""

LARGEST_LOSS_DB = {"": 0.01, "fp16": 0.02, "int8": 0.2}
"""Most SI-SNR improvement that may be lost on these, on average, by the bits of the weights."""

SILENCE = 1e-6
"""Root mean square below which estimates are compared as they are."""


@dataclass(frozen=True)
class Speech:
    """What files are compared on."""

    mixture: NDArray[np.float32]
    """(time,), at the model's sample rate."""
    name: str
    """What it is."""
    lengths: tuple[float, ...] = LENGTHS
    """Seconds."""
    sample_rate: int = 8000
    """In Hz."""

    @classmethod
    def shipped(cls, sample_rate: int) -> "Speech":
        """Return the recording that comes with the package."""
        return cls.of(SPEECH, sample_rate)

    @classmethod
    def of(cls, path: str | Path, sample_rate: int) -> "Speech":
        """Return a recording, its channels averaged.

        Raises:
            AudioError: If it cannot be read.
        """
        recording = read_audio(path)
        mono = resample(recording.samples.mean(axis=0), recording.sample_rate, sample_rate)
        return cls(mono.astype(np.float32), Path(path).name, sample_rate=sample_rate)

    def excerpt(self, seconds: float) -> NDArray[np.float32]:
        """Return the first seconds; of less than `SHORT` those from the loudest sample on, at least one."""
        # A few samples of near silence are nothing but rounding once a network has normalised them.
        first = int(np.abs(self.mixture).argmax()) if seconds < SHORT else 0
        return np.resize(self.mixture[first:], max(1, round(seconds * self.sample_rate)))


@dataclass(frozen=True)
class Comparison:
    """One length: the exported file beside PyTorch."""

    seconds: float
    """Length of the mixture."""
    largest_difference: float
    """Of any sample."""
    rms_difference: float
    """Root mean square of the difference, in that of PyTorch's estimates."""
    si_snr_db: float | None
    """SI-SNR of the file's estimates with PyTorch's as the truth; None of one sample, and of silence."""
    onnx_seconds: float
    """Processor time of the exported file."""
    torch_seconds: float
    """Processor time of PyTorch."""
    onnx_megabytes: float | None
    """Memory at the peak beyond that before; None where the system does not tell."""
    torch_megabytes: float | None
    """The same of PyTorch."""


@dataclass(frozen=True)
class Quality:
    """SI-SNR improvement of the exported file beside that of PyTorch."""

    mixtures: str
    """What was separated."""
    n_mixtures: int
    torch_db: float
    """Mean over the mixtures and their talkers."""
    onnx_db: float
    """The same of the exported file."""
    largest_loss_db: float
    """Of one mixture."""

    @property
    def lost_db(self) -> float:
        """What the file loses on average."""
        return self.torch_db - self.onnx_db


@dataclass(frozen=True)
class Proof:
    """What was compared, where, and what came out."""

    model: str
    kind: str
    quantized: str
    speech: str
    file_megabytes: float
    limit: float
    """Largest `rms_difference` allowed."""
    comparisons: tuple[Comparison, ...]
    machine: str
    n_threads: int
    versions: dict[str, str]
    quality: Quality | None = None
    """None where no mixtures were given."""
    caution: str = ""
    """What whoever uses the file should know."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def to_markdown(self, file_name: str) -> str:
        """Return it as a page."""
        header = ("seconds", "largest difference", "RMS difference / RMS", "SI-SNR to PyTorch",
                  "ONNX CPU s", "PyTorch CPU s", "ONNX MB", "PyTorch MB")  # fmt: skip
        rows = [
            (
                f"{c.seconds:.4g}", f"{c.largest_difference:.1e}", f"{c.rms_difference:.1e}",
                "-" if c.si_snr_db is None else f"{c.si_snr_db:.1f} dB",
                f"{c.onnx_seconds:.3f}", f"{c.torch_seconds:.3f}",
                *("?" if mb is None else f"{mb:.0f}" for mb in (c.onnx_megabytes, c.torch_megabytes)),
            )
            for c in self.comparisons
        ]  # fmt: skip
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join(
            [
                f"# {file_name}: {self.model}, {self.kind}, {self.quantized or 'float32'}",
                "",
                f"{self.file_megabytes:.1f} MB. Compared on {self.speech}; allowed: an RMS difference of "
                f"{self.limit:.0e} of the RMS.",
                "",
                markdown_table(header, rows),
                "",
                *([] if self.quality is None else [_in_words(self.quality), ""]),
                *([f"Caution: {self.caution}.", ""] if self.caution else []),
                f"{self.machine}, {self.n_threads} threads; {versions}. Times are of the processor, the best "
                "of two.",
                "",
            ]
        )


def caution(network: SeparationNetwork) -> str:
    """Return what whoever uses a network's file should know; empty where there is nothing."""
    if network.in_pieces:
        return ""
    return "softmax attention takes memory that grows with the square of the recording's length"


def _in_words(quality: Quality) -> str:
    return (
        f"SI-SNRi on {quality.n_mixtures} mixtures ({quality.mixtures}): PyTorch {quality.torch_db:.3f} dB, "
        f"the file {quality.onnx_db:.3f} dB; {quality.lost_db:.4f} dB are lost, and at most "
        f"{quality.largest_loss_db:.3f} dB on one of them."
    )


def prove_quality(
    exported: ExportedSeparator | ExportedSet, network: SeparationNetwork, mixtures: str | Path
) -> Quality:
    """Score a file and its network on the first mixtures of a set.

    Args:
        exported: The file.
        network: What it was exported from.
        mixtures: See `flasepformer.data.open_mixtures`.

    Raises:
        ExportError: If the set cannot be read, or is of another kind.
        ProofFailed: If more is lost than is allowed.
    """
    try:
        opened = open_mixtures(mixtures, network.sample_rate)
        scores = [
            _improvements(exported, network, opened[index]) for index in range(min(len(opened), N_MIXTURES))
        ]
    except (ValueError, OSError) as error:
        raise ExportError(f"{mixtures}: the mixtures cannot be scored: {error}") from error
    if not np.isfinite(scores).any():
        raise ExportError(f"{mixtures}: there is no mixture with a score")
    theirs, ours = np.nanmean(scores, axis=0)
    loss = float(np.nanmax(np.subtract(*np.transpose(scores))))
    quality = Quality(Path(mixtures).name, len(scores), float(theirs), float(ours), loss)
    limit = LARGEST_LOSS_DB[exported.facts.quantized]
    if not quality.lost_db <= limit:
        raise ProofFailed(f"{_in_words(quality)} Allowed are {limit} dB on average.")
    return quality


def _improvements(
    exported: ExportedSeparator | ExportedSet, network: SeparationNetwork, example: Mixture
) -> tuple[float, float]:
    """Return the SI-SNR improvement of PyTorch and of the file, in the mean of the talkers."""
    form = len(example.sources), example.sample_rate
    if form != (network.n_sources, network.sample_rate):
        raise ValueError(
            f"{example.name} has {form[0]} talkers at {form[1]} Hz, the model takes {network.n_sources} at "
            f"{network.sample_rate} Hz"
        )
    mixture = example.mixture.numpy()

    def improvement(estimates: NDArray[np.float32]) -> float:
        ours = torch.from_numpy(estimates)
        scores = separation_scores(ours, example.sources, example.mixture, with_sdr=False)
        return float(scores.si_snr_improvement.nanmean())

    return improvement(_separated(network, mixture)), improvement(exported.separate(mixture))


def prove(exported: ExportedSeparator, network: SeparationNetwork, speech: Speech) -> Proof:
    """Compare a file for whole recordings with its network.

    Raises:
        ProofFailed: At the first length that differs by more than is allowed.
    """
    comparisons = []
    for seconds in speech.lengths:
        mixture = speech.excerpt(seconds)
        comparisons.append(
            _compare(seconds, partial(exported.separate, mixture), partial(_separated, network, mixture))
        )
        _check(comparisons[-1], exported.facts.quantized)
    return _proof(exported, speech, comparisons)


def prove_long(exported: ExportedSet, network: SeparationNetwork, speech: Speech) -> Proof:
    """Compare a set for long recordings with its network, in pieces that are short enough to be several.

    The longest one is compared in the pieces of a long recording, too.

    Raises:
        ProofFailed: At the first length that differs by more than is allowed.
    """
    short = ExportedSet(exported.path, n_threads=exported.n_threads, piece_length=PIECE_LENGTH)
    comparisons = []
    for seconds, runner in [
        *((seconds, short) for seconds in speech.lengths),
        (speech.lengths[-1], exported),
    ]:
        mixture = speech.excerpt(seconds)
        comparisons.append(
            _compare(seconds, partial(runner.separate, mixture), partial(_separated, network, mixture))
        )
        _check(comparisons[-1], exported.facts.quantized)
    return _proof(exported, speech, comparisons)


def prove_stream(exported: ExportedStream, network: SeparationNetwork, speech: Speech) -> Proof:
    """Compare a file for streams with its network, step after step of the same block.

    Raises:
        ProofFailed: At the first length that differs by more than is allowed.
    """
    comparisons = []
    for seconds in speech.lengths:
        mixture = speech.excerpt(seconds)
        mixture = np.pad(mixture, (0, -len(mixture) % exported.block_length))
        blocks = np.split(mixture, len(mixture) // exported.block_length)
        comparisons.append(
            _compare(seconds, partial(_streamed, exported, blocks), partial(_played_live, network, blocks))
        )
        _check(comparisons[-1], exported.facts.quantized)
    return _proof(exported, speech, comparisons)


def _streamed(exported: ExportedStream, blocks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    exported.reset()
    return np.concatenate([exported.step(block) for block in blocks], axis=-1)


def _played_live(network: SeparationNetwork, blocks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    state: dict[str, Tensor] = {}
    done = []
    with torch.no_grad():
        for block in blocks:
            estimates, state = network.step(torch.from_numpy(block)[None], state)
            done.append(estimates[0])
    return torch.cat(done, dim=-1).numpy()


@torch.no_grad()
def _separated(network: SeparationNetwork, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
    return network(torch.from_numpy(mixture)[None])[0].numpy()


def _compare(
    seconds: float, exported: Callable[[], NDArray[np.float32]], reference: Callable[[], NDArray[np.float32]]
) -> Comparison:
    expected, torch_seconds, torch_bytes = _measured(reference)
    got, onnx_seconds, onnx_bytes = _measured(exported)
    if got.shape != expected.shape:
        raise ProofFailed(f"{seconds:.4g} s: PyTorch gives {expected.shape}, the file {got.shape}")
    difference = got.astype(np.float64) - expected
    largest = float(np.abs(difference).max())
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    rms = float(np.sqrt(np.mean(difference**2))) / (scale if scale > SILENCE else 1.0)
    close = float(si_snr(torch.from_numpy(got).double(), torch.from_numpy(expected).double()).mean())
    return Comparison(
        seconds,
        largest,
        rms,
        round(close, 2) if math.isfinite(close) else None,
        onnx_seconds,
        torch_seconds,
        onnx_bytes,
        torch_bytes,
    )


def _check(comparison: Comparison, quantized: str) -> None:
    limit = LARGEST_DIFFERENCE[quantized]
    if not comparison.rms_difference <= limit:  # also where it is no number
        raise ProofFailed(
            f"the file differs from PyTorch at {comparison.seconds:.4g} s of speech: by "
            f"{comparison.rms_difference:.1e} of the RMS, where {limit:.0e} is allowed "
            f"(largest difference {comparison.largest_difference:.1e})"
        )


def _measured(
    work: Callable[[], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], float, float | None]:
    """Return what some work gives, its processor time, the best of two, and its memory in MB."""
    before = _memory("VmRSS") if _forget_peak() else None
    times = []
    for _ in range(2):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    peak = _memory("VmHWM")
    return result, min(times), None if before is None or peak is None else max(peak - before, 0.0)


def _forget_peak() -> bool:
    """Let the kernel measure the largest memory from here on; tell whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def _memory(name: str) -> float | None:
    """Return a line of the process's status in MB, on Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(found[0].split()[1]) / 1000 if found else None


def _proof(
    exported: ExportedSeparator | ExportedSet | ExportedStream,
    speech: Speech,
    comparisons: list[Comparison],
) -> Proof:
    import onnxruntime

    return Proof(
        model=exported.facts.model,
        kind=exported.facts.kind,
        quantized=exported.facts.quantized,
        speech=speech.name,
        file_megabytes=round(exported.path.stat().st_size / 1e6, 2),
        limit=LARGEST_DIFFERENCE[exported.facts.quantized],
        comparisons=tuple(comparisons),
        machine=f"{platform.machine()}, {platform.system()}",
        n_threads=torch.get_num_threads(),
        versions={"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
    )
