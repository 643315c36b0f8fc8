"""`flasepformer prepare`: check a published set of mixtures and list it for training and evaluation."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flasepformer.cli.console import print_message, print_result

if TYPE_CHECKING:
    from flasepformer.data.published_sets import Finding


def prepare(
    name: Annotated[
        Literal["wsj0-2mix", "wsj0-3mix", "wham", "whamr", "libri2mix", "libri3mix"],
        typer.Argument(metavar="SET", help="wsj0-2mix, wsj0-3mix, wham, whamr, libri2mix or libri3mix."),
    ],
    root: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the set.")],
    sample_rate: Annotated[int, typer.Option(help="8000 or 16000 Hz.")] = 8000,
    mode: Annotated[
        Literal["min", "max"], typer.Option(help="Mixtures cut to the shortest talker, or filled up.")
    ] = "min",
    task: Annotated[
        str | None,
        typer.Option(
            help="clean, noisy, reverberant or noisy-reverberant, where the set has it; by default what "
            "results are published for: WHAM! noisy, WHAMR! noisy-reverberant, the others clean."
        ),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split: tr, cv, tt, train-100, ...; repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the manifests, replaced when they exist. [default: in ROOT]"
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Let mixtures and splits be missing, and leave out those with problems."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Name everything that was found, not the first few.")
    ] = False,
) -> None:
    """Check a published set file by file and write manifests of it, one per split.

    Checked are counts, sample rates, lengths, silence, that a mixture is the sum of its parts, and that no
    speaker is in two splits. The manifests hold paths relative to themselves: the set may move as a whole.

    Exit codes: 0 all sound, 1 there are problems (without --partial nothing is written), 2 wrong usage,
    3 the manifests cannot be written, 130 interrupted.
    """
    from flasepformer.data import PUBLISHED_SETS, check_published_set
    from flasepformer.inference import OutputError, growing_folder

    if sample_rate not in (8000, 16000):
        raise typer.BadParameter(f"--sample-rate must be 8000 or 16000, got {sample_rate}")
    tasks = PUBLISHED_SETS[name].tasks
    folder = out or root / f"{name}-{sample_rate // 1000}k-{mode}-{task or next(iter(tasks))}"
    try:
        with growing_folder(folder):  # before any work: can anything be written there?
            pass
        report = check_published_set(
            name, root, sample_rate=sample_rate, mode=mode, task=task, splits=split, partial=partial,
            progress=True,
        )  # fmt: skip
        _print("note", report.notes, verbose)
        _print("problem", report.problems, verbose)
        for part, mixtures in report.mixtures.items():
            hours = sum(item.n_samples for item in mixtures) / sample_rate / 3600
            print_message(f"{part}: {len(mixtures):,} sound mixtures, {hours:.2f} h")
        if report.problems and not partial:
            print_message("nothing was written; --partial leaves out the mixtures with problems")
            raise typer.Exit(1)
        for path in report.write(folder):
            print_result(str(path))
    except FileNotFoundError as error:
        print_message(f"error: {error}; is {root} the folder of {name}?")
        raise typer.Exit(1) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OutputError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        print_message(f"error: cannot write in {folder}: {error.strerror}")
        raise typer.Exit(3) from error
    except KeyboardInterrupt:
        print_message("interrupted; nothing was written")
        raise typer.Exit(130) from None
    finally:
        with contextlib.suppress(OSError):  # unless there is something in it
            folder.rmdir()
    raise typer.Exit(1 if report.problems else 0)


def _print(label: str, findings: Sequence["Finding"], verbose: bool) -> None:
    from flasepformer.data.published_sets import grouped

    for kind, items in grouped(findings).items():
        print_message(f"{label}: {kind} ({len(items):,})")
        shown = items if verbose else items[:5]
        for item in shown:
            print_message(f"    {item}")
        if len(shown) < len(items):
            print_message(f"    and {len(items) - len(shown):,} more; --verbose names all")
