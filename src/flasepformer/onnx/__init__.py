"""Separate with an exported file: NumPy and onnxruntime, no PyTorch.

    from flasepformer.onnx import ExportedSeparator

    separator = ExportedSeparator("talk.onnx")
    tracks = separator.tracks(mixture)  # (time,) at separator.sample_rate to (source, time)

`python -m flasepformer.onnx talk.onnx talk.wav tracks/` does it with files. Nothing in this room, nor in what
it imports, needs torch: `pip install --no-deps flasepformer`, `pip install numpy onnxruntime soundfile soxr`.

An exported file has the input `mixture` (batch, time) and the output `estimates` (batch, source, time),
float32, any length; one that was exported for streams has `samples` (1, block) and a `state.*` for every
tensor of its state, and gives `estimates` (1, source, block) and as many `next.*`. What else there is to know
stands in its metadata; see `ExportedFacts`.

A set that was exported for long recordings is a zip file: a graph for every sweep over the recording, and a
plan of what each reads, writes and sums up; `ExportedSet` takes hours in bounded memory.
"""

from flasepformer.onnx.facts import ExportedFacts, OnnxError
from flasepformer.onnx.files import open_exported, separate_file
from flasepformer.onnx.long import ExportedSet
from flasepformer.onnx.running import ExportedSeparator, ExportedStream

__all__ = [
    "ExportedFacts",
    "ExportedSeparator",
    "ExportedSet",
    "ExportedStream",
    "OnnxError",
    "open_exported",
    "separate_file",
]
