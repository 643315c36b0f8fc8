"""`flasepformer train`: a recipe and speech in, a checkpoint out."""

import os
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Recipe: YAML, see recipes/.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    speech: Annotated[
        Path | None, typer.Option(help="Single-talker speech: a folder per speaker, or a CSV manifest.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, e.g. optimization.n_steps=2000; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the decoded speech between runs.")
    ] = None,
) -> None:
    """Train a model by a recipe.

    With `torchrun --standalone --nproc_per_node N -m flasepformer train ...` it runs in N processes.
    """
    from flasepformer.training import TrainingError, load_recipe
    from flasepformer.training import train as run

    overrides = [*(setting or []), *([f"data.speech={speech}"] if speech else [])]
    try:
        best = run(load_recipe(recipe, overrides), out, resume=resume, speech_cache=cache)
    except (TrainingError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 3) from error
    except KeyboardInterrupt:
        typer.echo(f"interrupted; continue with --resume --out {out}", err=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":  # of several processes, one answers
        typer.echo(best)
