"""`flasepformer mixtures`: a fixed list of test mixtures, drawn from recordings of single talkers."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result


def mixtures(
    speech: Annotated[
        Path,
        typer.Argument(exists=True, help="Single-talker speech: a folder per speaker, or a CSV manifest."),
    ],
    out: Annotated[Path, typer.Option(help="CSV to write, for `flasepformer evaluate --mixtures`.")] = Path(
        "mixtures.csv"
    ),
    split: Annotated[str | None, typer.Option(help="Use only this split of the speech.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of mixtures.")] = 500,
    talkers: Annotated[int, typer.Option(min=2, help="Talkers in each mixture.")] = 2,
    seed: Annotated[int, typer.Option(help="The same seed draws the same list.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a list that exists.")] = False,
) -> None:
    """Draw mixtures of different talkers, balanced over their sexes, cut to the shortest ('min' mode).

    The list holds paths relative to itself, gains and starts; the mixtures are made when they are scored.
    """
    from flasepformer.data import make_mixture_list, read_utterances, write_mixture_list

    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; give --overwrite, or another --out")
    try:
        specs = make_mixture_list(read_utterances(speech, split), count, seed, n_sources=talkers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_mixture_list(specs, out)
    except OSError as error:
        print_message(f"error: {out} cannot be written: {error.strerror}")
        raise typer.Exit(3) from error
    print_result(str(out))
