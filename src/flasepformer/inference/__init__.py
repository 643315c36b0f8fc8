"""Separate recordings: a file or an array goes in, one track per talker comes out.

`Separator` holds a model on a device and does all that a recording needs around it: mixing down, resampling,
silence, levels, files. `pick_device` chooses where to run; `OutputError`, `DeviceError` and `SeparationError`
tell what went wrong.
"""

from flasepformer.inference.devices import DeviceError, pick_device
from flasepformer.inference.outputs import AlreadySeparated, OutputError, growing_folder, portable_name
from flasepformer.inference.separator import (
    FileOptions,
    Progress,
    SeparationError,
    SeparationReport,
    Separator,
)

__all__ = [
    "AlreadySeparated",
    "DeviceError",
    "FileOptions",
    "OutputError",
    "Progress",
    "SeparationError",
    "SeparationReport",
    "Separator",
    "growing_folder",
    "pick_device",
    "portable_name",
]
