"""`flasepformer compare`: which of two models is better on the same mixtures, and by how much."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.evaluate import aligned
from flasepformer.cli.places import check_place


def compare(
    first: Annotated[
        Path, typer.Argument(exists=True, help="scores.csv of `flasepformer evaluate`, or its folder.")
    ],
    second: Annotated[Path, typer.Argument(exists=True, help="The same of another model.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for comparison.json, differences.csv and scatter.png."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as one JSON object.")] = False,
) -> None:
    """Compare two evaluations mixture by mixture: the second less the first, with its 95 % interval.

    Exit codes: 0 done, 2 wrong usage, such as evaluations of different mixtures, targets or sample rates,
    3 no usable disk or package.
    """
    from flasepformer.evaluation import (
        METRICS,
        check_same_sets,
        comparison_as_dict,
        load_result,
        write_comparison,
    )
    from flasepformer.evaluation import compare as take_difference
    from flasepformer.inference import OutputError

    if out is not None and (out / "comparison.json").exists() and not overwrite:
        raise typer.BadParameter(f"{out / 'comparison.json'} exists; give --overwrite, or another --out")
    try:
        if out is not None:
            check_place(out)
        results = [load_result(path) for path in (first, second)]
        check_same_sets(*results)
        differences = take_difference(results[0].rows, results[1].rows)
        if out is not None:
            write_comparison(out, *results)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        reason = str(error) if isinstance(error, OutputError) or error.strerror is None else error.strerror
        print_message(f"error: {'' if isinstance(error, OutputError) else f'{error.filename}: '}{reason}")
        raise typer.Exit(3) from error
    except ImportError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    if as_json:
        print_result(json.dumps(comparison_as_dict(differences), indent=2))
        return
    rows = [["SECOND LESS FIRST", "MIXTURES", "MEAN", "95 %", "BETTER"]]
    for metric, difference in differences.items():
        low, high = difference.interval
        interval = "" if math.isnan(low) else f"{low:+.2f} .. {high:+.2f}"
        mean, better = f"{difference.mean:+.2f}", f"{difference.share_better:.1%}"
        rows.append([METRICS[metric].label, str(len(difference.values)), mean, interval, better])
    for line in aligned(rows):
        print_result(line)
    if "si_snr_improvement" in differences:
        largest = differences["si_snr_improvement"].largest()
        rows = [["DIFFER MOST", "SI-SNRi"], *([name, f"{value:+.2f}"] for name, value in largest)]
        for line in ["", *aligned(rows)]:
            print_result(line)
    print_result(f"first: {results[0].label}; second: {results[1].label}")
    if out is not None:
        print_result(str(out))
