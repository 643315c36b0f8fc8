"""`flasepformer train`: a recipe, and speech or mixtures, in; a checkpoint out."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.words import checked_device


def train(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Recipe: YAML, see recipes/.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/train"),
    speech: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Single-talker speech: train/ and valid/, a folder per speaker in each; or a CSV manifest.",
        ),
    ] = None,
    mixtures: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Fixed mixtures: the folder of manifests that `flasepformer prepare` writes.",
        ),
    ] = None,
    noise: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of noise for some of the mixtures; repeatable."
        ),
    ] = None,
    rooms: Annotated[
        str | None,
        typer.Option(help="Folder of room responses for some of the mixtures, or: simulated."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, e.g. optimization.n_steps=20000; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where the folder holds a run, which is removed.")
    ] = False,
    device: Annotated[
        str,
        typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N: where the model is trained."),
    ] = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the decoded speech between runs.")
    ] = None,
) -> None:
    """Train a model by a recipe.

    With `torchrun --standalone --nproc_per_node N -m flasepformer train ...` it runs in N processes.

    Exit codes: 0 done, 2 wrong usage, 3 the run cannot begin or go on, or a package is missing, 130
    interrupted; --resume goes on.
    """
    from flasepformer.training import TrainingError, load_recipe
    from flasepformer.training import train as run
    from flasepformer.training.run_folder import CHECKPOINT_FILE

    named = {"speech": speech, "mixtures": mixtures}
    given = [f"data.{kind}={path}" for kind, path in named.items() if path]
    if noise:
        given.append(f"mixing.noise={json.dumps([str(folder) for folder in noise])}")
    if rooms:
        given.append(f"mixing.rooms={rooms}")
    try:
        loaded = load_recipe(recipe, [*(setting or []), *given])
        for kind, path in named.items():
            if path and kind not in (loaded.data.train_on, loaded.data.validate_on):
                raise ValueError(
                    f"--{kind} is of no use: {recipe} trains on {loaded.data.train_on} and validates on "
                    f"{loaded.data.validate_on}; see data.train_on and data.validate_on"
                )
        best = run(loaded, out, resume=resume, overwrite=overwrite, device=device, speech_cache=cache)
    except (TrainingError, ValueError, OSError, ImportError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename}: {error.strerror}"
        typer.echo(f"error: {reason}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 3) from error
    except KeyboardInterrupt:
        begun = (out / CHECKPOINT_FILE).exists()
        way = f"continue with --resume --out {out}" if begun else "it had not begun"
        typer.echo(f"interrupted; {way}", err=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":  # of several processes, one answers
        typer.echo(best)
