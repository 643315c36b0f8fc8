"""`flasepformer evaluate`: how well a model separates mixtures whose sources are known."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flasepformer.cli.console import print_message, print_result

if TYPE_CHECKING:
    from flasepformer.evaluation import EvaluationResult, Summary


def evaluate(
    mixtures: Annotated[
        Path,
        typer.Option(exists=True, help="CSV list of mixtures, or a folder that holds mix*/, s1/, s2/, ..."),
    ],
    model: Annotated[
        str, typer.Option(help="Name or checkpoint of the model; see `flasepformer models`.")
    ] = "default",
    out: Annotated[Path, typer.Option(help="Folder for scores.csv and summary.json.")] = Path("results"),
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first so many mixtures.")] = None,
    sdr: Annotated[bool, typer.Option("--sdr/--no-sdr", help="Compute the SDR, too.")] = True,
    mix_dir: Annotated[
        str | None, typer.Option(help="Which folder holds the mixtures, where several do.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where the model runs.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object, not as a table.")
    ] = False,
) -> None:
    """Separate mixtures with known sources and score the estimates: SI-SNR, SDR and their improvements.

    Exit codes: 0 all done, 1 some mixtures failed, 2 wrong usage, 3 no usable model, device or disk,
    130 interrupted.
    """
    from flasepformer.data import open_mixtures
    from flasepformer.evaluation import evaluate as score
    from flasepformer.inference import DeviceError, OutputError, Separator, growing_folder
    from flasepformer.models import CheckpointError

    if (out / "scores.csv").exists() and not overwrite:
        raise typer.BadParameter(f"{out / 'scores.csv'} exists; give --overwrite, or another --out")
    try:
        with growing_folder(out):  # before any work: can anything be written there?
            pass
        if sdr:
            import torchmetrics  # noqa: F401  # before any work, too
        separator = Separator.from_pretrained(model, device)
        try:
            mixture_set = open_mixtures(mixtures, separator.sample_rate, mix_dir)
            result = score(separator, mixture_set, with_sdr=sdr, limit=limit, progress=True)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        table, _ = result.write(out, model=separator.description, mixtures=str(mixtures))
    except ModuleNotFoundError as error:
        if error.name != "torchmetrics":
            raise
        print_message(
            'error: the SDR needs torchmetrics: pip install "flasepformer[evaluation]", or --no-sdr'
        )
        raise typer.Exit(3) from error
    except (CheckpointError, DeviceError, OutputError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except KeyboardInterrupt:
        print_message("interrupted; no results were written")
        raise typer.Exit(130) from None
    for name, reason in result.failures:
        print_message(f"error: {name}: {reason}")
    if as_json:
        print_result(json.dumps(result.as_dict(), indent=2))
    else:
        for line in _table(result):
            print_result(line)
        print_result(str(table))
    raise typer.Exit(1 if result.failures else 0)


def _table(result: "EvaluationResult") -> list[str]:
    """Return the summary of everything, then one line for each group."""
    from flasepformer.evaluation import METRICS

    summaries = {"all": result.summary()}
    for key, groups in result.grouped().items():
        if len(groups) > 1:
            summaries |= {f"{key} {value or 'unknown'}": summary for value, summary in groups.items()}
    metrics = [metric for metric in METRICS if metric in summaries["all"].mean]

    def cells(label: str, summary: "Summary") -> list[str]:
        means = [f"{summary.mean[metric]:.2f}" for metric in metrics]
        return [label, str(summary.n_mixtures), *means, f"{summary.median.get('si_snr_improvement', 0):.2f}",
                f"{summary.share_worse:.1%}", f"{summary.real_time_factor:.3f}"]  # fmt: skip

    header = ["dB", "MIXTURES", *(METRICS[metric] for metric in metrics), "MEDIAN SI-SNRi", "WORSE", "RTF"]
    rows = [header, *(cells(label, summary) for label, summary in summaries.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
