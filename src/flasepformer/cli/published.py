"""What commands say and ask before published weights are fetched, and the progress while they are."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flasepformer.cli.console import Bar, print_message

if TYPE_CHECKING:
    from flasepformer.models import PublishedModel

AcceptLicence = Annotated[
    bool,
    typer.Option(
        "--accept-licence",
        help="Accept the licence of published weights that forbids commercial use; "
        "FLASEPFORMER_ACCEPT_LICENCE=1 does, too.",
    ),
]


def obtain_published(name: str, *, accept_licence: bool, quiet: bool = False) -> None:
    """Make sure that a model is on this computer, if it is one of those that others have published.

    Raises:
        PublishedError: It cannot be had, or its licence is not accepted.
    """
    from flasepformer.models import find_published

    model = find_published(name)
    if model is not None:
        obtain_model(model, accept_licence=accept_licence, quiet=quiet)


def obtain_model(model: "PublishedModel", *, accept_licence: bool, quiet: bool = False) -> Path:
    """Return the folder of a published model, after asking on a terminal where its licence wants it."""
    from flasepformer.models import local_copy, obtain
    from flasepformer.models.published import licence_is_accepted

    folder = local_copy(model)
    if folder is not None:
        return folder
    accepted = model.commercial_use or accept_licence or licence_is_accepted()
    if not quiet or not accepted:
        print_message(f"{model.name}, {model.download_size}, from {model.source}")
        print_message(f"  licence: {model.licence}{'' if model.commercial_use else ' (no commercial use)'}")
        print_message(f"  trained on: {model.data}")
        print_message(f"  cite: {model.citation}")
    if not accepted and _is_terminal():
        accept_licence = _ask("Do you accept this licence? [y/N] ")
    shows_bar = not quiet and sys.stderr is not None and sys.stderr.isatty()
    bar = Bar(shows_bar)
    try:
        return obtain(
            model,
            accept_licence=accept_licence,
            progress=lambda done, total: bar.tell(f"{model.name} {done / 1e6:.0f} MB", done / total),
            notify=lambda text: print_message(f"note: {text}"),
        )
    finally:
        bar.close()


def _ask(question: str) -> bool:
    """Ask on stderr alone: stdout may be a track, or JSON."""
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
