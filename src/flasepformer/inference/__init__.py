"""Separate recordings: a file or an array goes in, one track per talker comes out.

`Separator` holds a model on a device and does all that a recording needs around it: mixing down, resampling,
silence, levels, files. `StreamingSeparator` does the same for a stream while it comes. `RunOptions` say how a
long one goes through the model, within how much memory. `pick_device` chooses where to run;
`OutputError`, `DeviceError`, `SeparationError` and `NotEnoughMemory` tell what went wrong.
"""

from flasepformer.inference.devices import DeviceError, pick_device
from flasepformer.inference.execution import RunOptions
from flasepformer.inference.identity import read_report, weights_digest
from flasepformer.inference.memory import parse_size
from flasepformer.inference.outputs import (
    AlreadySeparated,
    OutputError,
    OutputExists,
    growing_folder,
    portable_name,
)
from flasepformer.inference.plans import NotEnoughMemory, SeparationError
from flasepformer.inference.precisions import pick_precision
from flasepformer.inference.reports import SeparationReport
from flasepformer.inference.separator import FileOptions, Progress, Separator
from flasepformer.inference.streaming import StateError, StreamingSeparator, live_model

__all__ = [
    "AlreadySeparated",
    "DeviceError",
    "FileOptions",
    "NotEnoughMemory",
    "OutputError",
    "OutputExists",
    "Progress",
    "RunOptions",
    "SeparationError",
    "SeparationReport",
    "Separator",
    "StateError",
    "StreamingSeparator",
    "growing_folder",
    "live_model",
    "parse_size",
    "pick_device",
    "pick_precision",
    "portable_name",
    "read_report",
    "weights_digest",
]
