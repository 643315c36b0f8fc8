"""`flasepformer convert`: a checkpoint from one layout to another."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.published import AcceptLicence, obtain_published


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint: its folder or weights file.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="New folder for the converted one.")],
    layout: Annotated[
        str,
        typer.Option(
            "--to", help='Layout to write: "flasepformer" (ours) or "modelscope" (the public release\'s).'
        ),
    ] = "flasepformer",
    half: Annotated[
        bool, typer.Option("--half", help="Store the weights in half precision, in our layout.")
    ] = False,
    accept_licence: AcceptLicence = False,
) -> None:
    """Write a published checkpoint in our format, or ours in the layout of FLASepformer's public release.

    Exit codes: 0 done, 2 wrong usage, 3 the checkpoint is refused or the folder cannot be written.
    """
    from flasepformer.models import CheckpointError, convert_checkpoint  # here, so that --help is instant
    from flasepformer.models.checkpoints import WRITABLE_LAYOUTS

    if layout not in WRITABLE_LAYOUTS:
        raise typer.BadParameter(f"--to takes one of {', '.join(WRITABLE_LAYOUTS)}, got {layout!r}")
    if half and layout != "flasepformer":
        raise typer.BadParameter("--half is for our own layout; leave out --to")
    try:
        obtain_published(source, accept_licence=accept_licence)
        info = convert_checkpoint(source, folder, layout, half=half)
    except FileExistsError as error:
        raise typer.BadParameter(str(error)) from error
    except CheckpointError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        print_message(f"error: {error.filename or folder}: {error.strerror or error}")
        raise typer.Exit(3) from error
    print_result(
        f"{folder}: {info.family}, {info.n_sources} talkers at {info.sample_rate} Hz, "
        f"{info.n_parameters:,} parameters"
    )
