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
"""

from flasepformer.onnx.running import ExportedFacts, ExportedSeparator, ExportedStream, OnnxError

__all__ = ["ExportedFacts", "ExportedSeparator", "ExportedStream", "OnnxError"]
