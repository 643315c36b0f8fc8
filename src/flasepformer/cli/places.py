"""Make sure before any work that its results can be written."""

import os
from contextlib import suppress
from pathlib import Path


def check_place(folder: Path) -> None:
    """Make sure that files can be written into a folder; one that is missing is missing afterwards, too.

    Raises:
        OutputError: They cannot; the message says why.
    """
    from flasepformer.inference import growing_folder

    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        with growing_folder(folder):
            pass
    finally:
        for made in missing:
            with suppress(OSError):  # it could not be made, or another program has put something into it
                made.rmdir()
