"""`flasepformer page`: the page as files for any static host."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result


def page(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder for the page.")],
) -> None:
    """Write the page that separates recordings in the browser, for any static host.

    Exit codes: 0 done, 2 wrong usage, 3 the folder cannot be written.
    """
    from flasepformer.web import PageError, write_page  # here, so that --help is instant

    try:
        written = write_page(folder)
    except PageError as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        print_message(f"error: {error.filename or folder}: {error.strerror or error}")
        raise typer.Exit(3) from error
    n_bytes = sum(path.stat().st_size for path in written)
    print_result(
        f"{folder}: {len(written)} files, {n_bytes / 1e6:.0f} MB; open index.html over http, not as a file"
    )
