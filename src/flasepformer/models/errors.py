"""What is raised when a model cannot be had."""

from flasepformer.errors import FlasepformerError


class CheckpointError(FlasepformerError, ValueError):
    """A checkpoint that is refused; the message says what was expected and what came."""


class FetchError(CheckpointError):
    """A file could not be had; the message says why, in one line."""
