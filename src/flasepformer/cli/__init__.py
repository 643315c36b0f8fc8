"""The command line: one file per command; each reads its options, calls one room, prints, sets the exit code.

Exit codes: 0 all done; 1 at least one input failed, the others are done; 2 wrong usage; 3 the environment
(model, device, disk); 130 interrupted. Nothing heavy is imported before a command runs, so that `--help` is
instant.
"""

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

import flasepformer
from flasepformer.cli.batch import batch
from flasepformer.cli.benchmark import benchmark
from flasepformer.cli.compare import compare
from flasepformer.cli.console import print_message
from flasepformer.cli.convert import convert
from flasepformer.cli.download import download
from flasepformer.cli.evaluate import evaluate
from flasepformer.cli.export import export, verify
from flasepformer.cli.live import live
from flasepformer.cli.measure import measure
from flasepformer.cli.mixtures import mixtures
from flasepformer.cli.models import models
from flasepformer.cli.packing import pack, unpack
from flasepformer.cli.page import page
from flasepformer.cli.prepare import prepare
from flasepformer.cli.report import report
from flasepformer.cli.separate import separate
from flasepformer.cli.serve import serve
from flasepformer.cli.train import train
from flasepformer.cli.words import Command, Commands
from flasepformer.installing import how_to_install

__all__ = ["app", "main"]

_EXTRAS = {
    "tqdm": "evaluation,data,train",
    "yaml": "hub",
    "huggingface_hub": "hub",
    "ray": "ray",
    "fsspec": "s3",
}
"""Which extra brings a package that only some commands need."""

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="flasepformer",
    no_args_is_help=True,
    cls=Commands,
    context_settings=_HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    separate,
    batch,
    live,
    serve,
    page,
    models,
    download,
    convert,
    prepare,
    mixtures,
    train,
    pack,
    unpack,
    evaluate,
    measure,
    compare,
    report,
    benchmark,
    export,
    verify,
):
    app.command(cls=Command, context_settings=_HELP)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flasepformer {flasepformer.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Separate people who talk at the same time, from one microphone.

    `flasepformer talk.wav` is short for `flasepformer separate talk.wav`.
    """


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):  # a second one must not cut the clean-up short
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; SIGTERM stops it as cleanly as Ctrl-C does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        app()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print_message(f"error: this needs {error.name}: {how_to_install(extra)}")
        sys.exit(3)
