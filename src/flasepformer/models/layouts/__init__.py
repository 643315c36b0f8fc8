"""Checkpoints published elsewhere: their files, their settings, the names of their weights.

Every layout maps our names to the published ones; that one map serves both directions.
"""

from flasepformer.models.layouts import espnet, modelscope, sepreformer_upstream
from flasepformer.models.layouts.published import Layout, PublishedCheckpoint, PublishedNames

LAYOUTS: dict[str, Layout] = {
    "modelscope": modelscope.LAYOUT,
    "sepreformer": sepreformer_upstream.LAYOUT,
    "espnet": espnet.LAYOUT,
}
"""The layouts that are read, by name."""

__all__ = ["LAYOUTS", "Layout", "PublishedCheckpoint", "PublishedNames"]
