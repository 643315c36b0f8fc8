"""`flasepformer measure`: a model in every condition of a model card, beside others."""

from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.evaluate import load_separator
from flasepformer.cli.places import check_place


def measure(
    model: Annotated[str, typer.Argument(help="Name or checkpoint of the model.")],
    speech: Annotated[
        Path, typer.Option(exists=True, help="Single-talker speech: a CSV manifest, or a folder per speaker.")
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Name or checkpoint of a second model, to put beside it.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the speech; speakers that no training has heard.")] = "test",
    noise: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Folder of noise; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("measured"),
    conditions: Annotated[
        str | None,
        typer.Option(help="With commas. [default: clean, noise, rooms, single, conversations, turns]"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Clean mixtures.")] = 500,
    others: Annotated[int, typer.Option(min=1, help="Mixtures with noise, and in rooms.")] = 200,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations of 2 minutes.")] = 10,
    turns: Annotated[int, typer.Option(min=1, help="Conversations in turns, without overlap.")] = 100,
    label: Annotated[
        str | None, typer.Option(help="What the results call the model. [default: its name or folder]")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure again what is there.")] = False,
) -> None:
    """Measure a model: clean, with noise, in rooms, one talker alone, in conversations, in turns; on the CPU.

    The recordings are the same for every model and day, so the figures compare. What is measured already is
    not measured again, and a run that was cut short goes on where it was.

    Exit codes: 0 all done, 2 wrong usage, 3 no usable model, disk or package, 130 interrupted.
    """
    from flasepformer.evaluation import CONDITIONS, MeasuredSpeech
    from flasepformer.evaluation import measure as run
    from flasepformer.inference import OutputError
    from flasepformer.models import CheckpointError

    names = {label or _label(model): model}
    if baseline is not None:
        if _label(baseline) in names:
            raise typer.BadParameter(f"both models are called {_label(baseline)}; give --label")
        names[_label(baseline)] = baseline
    wanted = [name.strip() for name in conditions.split(",")] if conditions else CONDITIONS
    try:
        check_place(out)
        paths = run(
            {name: load_separator(place, "cpu") for name, place in names.items()},
            MeasuredSpeech(speech, split, noise or ()),
            out,
            conditions=wanted,
            counts={
                "clean": count,
                "noise": others,
                "rooms": others,
                "conversations": conversations,
                "turns": turns,
            },
            jobs=jobs,
            overwrite=overwrite,
            tell=print_message,
        )
    except (CheckpointError, OutputError, ImportError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        print_message(f"error: {error.filename}: {error.strerror}")
        raise typer.Exit(3) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        print_message("interrupted; the same command goes on where it was")
        raise typer.Exit(130) from None
    print_result(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        print_result(str(path))


def _label(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]
