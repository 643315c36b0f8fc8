"""All the speech of a training set, decoded once and kept in memory."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flasepformer.audio import AudioError, Recording, mix_down, read_audio, resample
from flasepformer.data.manifest import Utterance
from flasepformer.temporary import temporary_folder

MAX_CORRUPT_SHARE = 0.01
_FULL_SCALE = 32767
_FORMAT = 2  # part of the cache key: raise it when the stored samples change


@dataclass(frozen=True)
class SpeechStore:
    """Every utterance of a set as 16-bit samples in one flat array: an hour at 8 kHz is 58 MB.

    Each utterance is stored at full scale, so that quiet recordings keep their resolution.
    """

    sample_rate: int
    utterances: tuple[Utterance, ...]
    """What could be decoded, in the given order."""
    samples: NDArray[np.int16]
    """All utterances, one after another; memory-mapped when it comes from a cache."""
    offsets: NDArray[np.int64]
    """Utterance `i` is `samples[offsets[i] : offsets[i + 1]]`."""
    rms: NDArray[np.float32]
    """Root mean square of each utterance as stored, 1 being full scale."""
    n_corrupt: int
    """Utterances that were skipped: unreadable, empty or silent."""

    @classmethod
    def load(
        cls,
        utterances: Sequence[Utterance],
        sample_rate: int,
        *,
        cache: str | Path | None = None,
        n_threads: int | None = None,
        max_corrupt_share: float = MAX_CORRUPT_SHARE,
        progress: bool = False,
    ) -> "SpeechStore":
        """Decode every utterance to mono at one sample rate.

        Args:
            utterances: What to decode.
            sample_rate: Hz; other rates are resampled.
            cache: Folder that keeps the decoded samples; the next call with the same files, sizes and rate
                maps them into memory instead of decoding.
            n_threads: Decoding threads; one per core by default.
            max_corrupt_share: Largest share of the utterances that may be corrupt.
            progress: Show a progress bar when stderr is a terminal.

        Raises:
            ValueError: Nothing to decode, or more utterances are corrupt than may be.
        """
        utterances = tuple(utterances)
        if not utterances:
            raise ValueError("utterances is empty; read_utterances lists a folder or a manifest")

        def decode(keep: Callable[[NDArray[np.int16]], object]) -> tuple[list[int], list[float]]:
            return _decode_all(utterances, sample_rate, keep, n_threads, max_corrupt_share, progress)

        samples: NDArray[np.int16]
        if cache is None:
            pieces: list[NDArray[np.int16]] = []
            lengths, levels = decode(pieces.append)
            samples = np.concatenate(pieces)
        else:
            folder = Path(cache) / _cache_key(utterances, sample_rate)
            if not folder.is_dir():
                _save(folder, decode)
            samples = np.memmap(folder / "samples.raw", np.int16, "r")
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            lengths, levels = index["lengths"], index["rms"]
        kept = [i for i, length in enumerate(lengths) if length]
        return cls(
            sample_rate=sample_rate,
            utterances=tuple(utterances[i] for i in kept),
            samples=samples,
            offsets=np.concatenate([[0], np.cumsum([lengths[i] for i in kept])]).astype(np.int64),
            rms=np.array([levels[i] for i in kept], dtype=np.float32),
            n_corrupt=len(utterances) - len(kept),
        )

    def __len__(self) -> int:
        return len(self.utterances)

    def length(self, index: int) -> int:
        """Return the number of samples of one utterance."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def waveform(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return samples `start` to `stop` of an utterance, scaled to an RMS of 1 over its whole length."""
        first = int(self.offsets[index])
        end = first + (self.length(index) if stop is None else min(stop, self.length(index)))
        scale = np.float32(1 / (_FULL_SCALE * self.rms[index]))
        return np.multiply(self.samples[first + start : end], scale, dtype=np.float32)


def mono(recording: Recording, sample_rate: int) -> NDArray[np.float32]:
    """Return a recording as one channel (time,) at `sample_rate`, in Hz."""
    waveform, _ = mix_down(recording.samples)
    return resample(waveform, recording.sample_rate, sample_rate)


def _decode_all(
    utterances: Sequence[Utterance],
    sample_rate: int,
    keep: Callable[[NDArray[np.int16]], object],
    n_threads: int | None,
    max_corrupt_share: float,
    progress: bool,
) -> tuple[list[int], list[float]]:
    """Hand the samples of each utterance to `keep`; return its length, 0 where it is corrupt, and its RMS."""

    def decode(utterance: Utterance) -> tuple[NDArray[np.int16], float] | str:
        try:
            waveform = mono(read_audio(utterance.path), sample_rate)
        except (AudioError, OSError) as error:
            return str(error)
        peak = float(np.abs(waveform).max(initial=0.0))
        if peak == 0:
            return f"{utterance.path}: silent"
        stored = np.rint(waveform * (_FULL_SCALE / peak)).astype(np.int16)
        return stored, float(np.sqrt(np.mean(np.square(waveform / peak, dtype=np.float64))))

    lengths: list[int] = []
    levels: list[float] = []
    corrupt: list[str] = []
    with ThreadPoolExecutor(n_threads or os.cpu_count()) as pool:
        decoded = pool.map(decode, utterances)
        for item in tqdm(decoded, "decoding speech", len(utterances), disable=None if progress else True):
            if isinstance(item, str):
                corrupt.append(item)
                item = np.empty(0, np.int16), 0.0
            keep(item[0])
            lengths.append(len(item[0]))
            levels.append(item[1])
    if len(corrupt) > max_corrupt_share * len(utterances):
        raise ValueError(
            f"{len(corrupt)} of {len(utterances)} utterances are corrupt, more than "
            f"{100 * max_corrupt_share:g}%; the first: {'; '.join(corrupt[:3])}"
        )
    return lengths, levels


def _cache_key(utterances: Sequence[Utterance], sample_rate: int) -> str:
    """Name what was decoded: the files, their sizes and the rate."""
    digest = hashlib.sha256(f"{_FORMAT} {sample_rate}".encode())
    for utterance in utterances:
        path = utterance.path.resolve()
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"\0{path}\0{size}".encode(errors="surrogateescape"))
    return f"speech-{digest.hexdigest()[:16]}"


def _save(
    folder: Path, decode: Callable[[Callable[[NDArray[np.int16]], object]], tuple[list[int], list[float]]]
) -> None:
    """Write the cache under a temporary name, then rename it: a kill leaves no half cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(f".{folder.name}-", folder.parent) as growing:
        whole = growing / "whole"
        whole.mkdir()
        with (whole / "samples.raw").open("wb") as file:
            lengths, levels = decode(lambda piece: file.write(piece.tobytes()))  # never all in memory
            file.flush()
            os.fsync(file.fileno())
        with (whole / "index.json").open("w", encoding="utf-8") as text:
            json.dump({"lengths": lengths, "rms": levels}, text)
            text.flush()
            os.fsync(text.fileno())
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same content
                raise
