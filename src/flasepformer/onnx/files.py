"""Recordings in files through exported networks: one file per talker."""

import zipfile
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flasepformer.onnx.facts import ExportedFacts, open_session
from flasepformer.onnx.long import MEMORY_BYTES, ExportedSet
from flasepformer.onnx.running import ExportedSeparator

BLOCK_LENGTH = 1 << 18
"""Samples that are written at a time."""


def open_exported(
    path: str | PathLike[str], *, memory_bytes: int | None = None, n_threads: int | None = None
) -> ExportedSeparator | ExportedSet:
    """Open a file of either kind that takes recordings as a whole.

    Args:
        path: The file.
        memory_bytes: See `ExportedSet`; None takes its default.
        n_threads: Threads for one operation; by default onnxruntime's choice.

    Raises:
        OnnxError: If it is none.
    """
    path = Path(path)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return ExportedSeparator(path, n_threads=n_threads)
    memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
    return ExportedSet(path, memory_bytes=memory_bytes, n_threads=n_threads)


def read_facts(path: Path) -> ExportedFacts:
    """Return what an exported file of any kind says of itself.

    Raises:
        OnnxError: If it is none.
    """
    if path.is_file() and zipfile.is_zipfile(path):
        return ExportedSet(path).facts
    return ExportedFacts.from_metadata(open_session(path).get_modelmeta().custom_metadata_map, path)


def separate_file(
    separator: ExportedSeparator | ExportedSet,
    recording: str | PathLike[str],
    folder: str | PathLike[str],
    progress: Callable[[float], None] | None = None,
) -> list[Path]:
    """Separate a recording into a WAV file per talker, `NAME_1.wav` and so on, at the network's sample rate.

    With an `ExportedSet` it is read, separated and written as a stream: mixture and estimates lie in
    temporary files.

    Args:
        separator: What `open_exported` gave.
        recording: Audio file; its channels are averaged.
        folder: Where the tracks go; made if it is not there.
        progress: Told the share that is done, from 0 to 1, where that is known.

    Raises:
        AudioError: If the recording cannot be read.
        OSError: If a track cannot be written.
    """
    from flasepformer.audio import write_blocks  # here, since the room needs soundfile and soxr

    if isinstance(separator, ExportedSet):
        tracks = _separated(separator, recording, progress)
    else:
        tracks = _whole(separator, recording)
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (n_samples, blocks) in enumerate(tracks, start=1):
        paths.append(Path(folder, f"{Path(recording).stem}_{number}.wav"))
        write_blocks(paths[-1], blocks, 1, n_samples, separator.sample_rate)
    return paths


Track = tuple[int, Iterator[NDArray[np.float32]]]
"""Samples, and blocks (1, some time) of them."""


def _whole(separator: ExportedSeparator, recording: str | PathLike[str]) -> list[Track]:
    from flasepformer.audio import read_audio, resample

    read = read_audio(recording)
    mono = read.samples.mean(axis=0)
    tracks = separator.tracks(resample(mono, read.sample_rate, separator.sample_rate))
    return [(len(track), iter([track[None]])) for track in tracks]


def _separated(
    separator: ExportedSet, recording: str | PathLike[str], progress: Callable[[float], None] | None
) -> list[Track]:
    from flasepformer.audio import Products, RecordingFile, StoredSignals, resample_blocks, resampled_length

    with RecordingFile(recording) as read:
        for _ in read.blocks():  # how long it is shows at its end
            pass
        mono = (block.mean(axis=0, keepdims=True) for block in read.blocks())
        rates = read.sample_rate, separator.sample_rate
        n_samples = resampled_length(read.n_samples, *rates)
        mixture = StoredSignals(1, n_samples, separator.folder)
        first = 0
        for block in resample_blocks(mono, read.n_samples, *rates):
            mixture.write(first, block)
            first += block.shape[1]
    estimates = StoredSignals(separator.n_sources, n_samples, separator.folder)
    products, first = Products(separator.n_sources), 0
    for some in separator.estimates(mixture, progress):
        last = first + some.shape[1]
        estimates.write(first, some)
        products.add(mixture.read(first, last)[0], some)
        first = last
    gains = products.gains().astype(np.float32)

    def track(number: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, n_samples, BLOCK_LENGTH):
            some = estimates.read(start, min(start + BLOCK_LENGTH, n_samples))
            yield some[number : number + 1] * gains[number]

    return [(n_samples, track(number)) for number in range(separator.n_sources)]
