"""`flasepformer report`: a page of results with sounds and pictures, to be opened in a browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.evaluate import load_separator
from flasepformer.cli.places import check_place
from flasepformer.cli.words import checked_device

if TYPE_CHECKING:
    from flasepformer.evaluation import Example, StoredResult


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            help="Folder of `flasepformer evaluate`, or its scores.csv; several are compared with the first.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    examples: Annotated[
        int, typer.Option(min=0, help="Best, median and worst mixtures to show with sounds: so many of each.")
    ] = 3,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model of each result in turn; by default the one that its summary.json names."),
    ] = None,
    mixtures: Annotated[
        Path | None, typer.Option(help="Their set of mixtures; by default the one that summary.json names.")
    ] = None,
    mix_dir: Annotated[
        str | None, typer.Option(help="Which folder holds the mixtures, where several do.")
    ] = None,
    device: Annotated[
        str, typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N, mps: where the model runs.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that exists.")] = False,
) -> None:
    """Make one HTML page of one evaluation, or of several of the same mixtures.

    The page holds everything itself and opens without a network. For the examples, the models separate a few
    mixtures again, in the mode of the evaluation; --examples 0 leaves them out.

    Exit codes: 0 done, 2 wrong usage, 3 no usable model, device, disk or package, 130 interrupted.
    """
    from flasepformer.evaluation import load_result, write_report
    from flasepformer.inference import DeviceError, OutputError
    from flasepformer.models import CheckpointError

    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder; name a file with --out")
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; give --overwrite, or another --out")
    try:
        check_place(out.parent)
        stored = [load_result(path) for path in results]
        shown = _examples(stored, examples, model or [], mixtures, mix_dir, device) if examples else []
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, stored, shown)
    except (CheckpointError, DeviceError, ImportError, OutputError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        print_message(f"error: {error.filename or out}: {error.strerror or error}")
        raise typer.Exit(3) from error
    except KeyboardInterrupt:
        print_message("interrupted; no page was written")
        raise typer.Exit(130) from None
    print_result(str(out))


def _examples(
    results: list["StoredResult"],
    n_each: int,
    models: list[str],
    mixtures: Path | None,
    mix_dir: str | None,
    device: str,
) -> list["Example"]:
    from flasepformer.data import open_mixtures
    from flasepformer.evaluation import check_same_sets, choose_examples, make_examples, weights_digest

    for result in results[1:]:  # before the work
        check_same_sets(results[0], result)
    if models and len(models) != len(results):
        raise ValueError(f"give one --model for each of the {len(results)} results, got {len(models)}")
    facts = [result.facts.get("model") for result in results]
    known = [fact if isinstance(fact, dict) else {} for fact in facts]
    names = models or [fact.get("name", "") for fact in known]
    path = mixtures or results[0].facts.get("mixtures")
    if not all(names) or not path:
        raise ValueError(
            "nothing tells which model and which mixtures the results are of; "
            "give --model and --mixtures, or --examples 0 for a page without sounds"
        )
    if not Path(path).exists():
        raise ValueError(f"the mixtures are not at {path} any more; give --mixtures, or --examples 0")
    separators = [load_separator(name, device) for name in names]
    for name, separator, fact in zip(names, separators, known, strict=True):
        if fact.get("weights_sha256") not in (None, weights_digest(separator.model)):
            raise ValueError(
                f"the weights of {name} are not those that were evaluated; "
                "give the right --model, or --examples 0"
            )
    mix_dir = mix_dir or results[0].facts.get("set", {}).get("mix_dir")
    mixture_set = open_mixtures(path, separators[0].sample_rate, mix_dir)
    chosen = choose_examples([result.rows for result in results], n_each)
    return make_examples(chosen, separators, mixture_set, [result.run_options for result in results])
