"""`flasepformer pack` and `unpack`: a training run as a small folder that another machine goes on from."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of the run; it may be under way.")],
    folder: Annotated[Path, typer.Argument(help="Where to put its state, in place of an earlier one.")],
    limit: Annotated[float, typer.Option(min=0, help="MB that the state may have.")] = 12.0,
) -> None:
    """Put the last checkpoint of a run into a small folder: the average of its weights, progress and curve.

    A run goes on from the average; the momentum of the optimizers is found again within a hundred steps.

    Exit codes: 0 done, 1 the state is there, but larger than the limit, 3 there is none, or no room for it.
    """
    from flasepformer.training import TrainingError, pack_run  # here, so that --help is instant

    try:
        step = pack_run(run, folder)
    except (TrainingError, OSError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print_result(f"packed step {step} into {folder}, {megabytes:.1f} MB")
    if megabytes > limit:
        print_message(f"error: more than {limit:g} MB; do not commit it")
        raise typer.Exit(1)


def unpack(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What `pack` has written.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run that goes on from it.")],
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="What it goes on with.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe, as in `train`; repeatable.")
    ] = None,
) -> None:
    """Make a run of what `pack` has written, for `flasepformer train --resume`.

    A run that is there already goes on with its own checkpoint.

    Exit codes: 0 done, 2 wrong usage, 3 the state is of another network, or there is no room.
    """
    from flasepformer.models import CheckpointError
    from flasepformer.training import TrainingError, load_recipe, unpack_run
    from flasepformer.training.run_folder import RunFolder

    try:
        wanted = load_recipe(recipe, setting or [])
        if run.exists() and RunFolder(run).checkpoint is not None:
            print_result(f"{run} goes on with its own checkpoint")
            return
        step = unpack_run(folder, run, wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except (TrainingError, CheckpointError, OSError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    print_result(f"{run} goes on from step {step} of {folder}")
