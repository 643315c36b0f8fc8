"""What export raises."""

from flasepformer.errors import FlasepformerError


class ExportError(FlasepformerError, ValueError):
    """A network that cannot be exported, or a file that is not what it should be."""


class ProofFailed(ExportError):
    """An exported file gives other numbers than PyTorch; the message names the first difference."""
