"""ONNX files, one for recordings of any length, with the proof that they agree with PyTorch.

They are run without PyTorch by `flasepformer.onnx`, or by any other runtime: see there for their form.
"""

from flasepformer.export.errors import ExportError, ProofFailed
from flasepformer.export.exporting import export_model, verify_file
from flasepformer.export.proof import Comparison, Proof, Speech
from flasepformer.export.quantizing import QUANTIZATIONS, Quantization

__all__ = [
    "QUANTIZATIONS",
    "Comparison",
    "ExportError",
    "Proof",
    "ProofFailed",
    "Quantization",
    "Speech",
    "export_model",
    "verify_file",
]
