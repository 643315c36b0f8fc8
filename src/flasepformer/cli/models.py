"""`flasepformer models`: what there is to choose from."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from flasepformer.cli.console import print_result


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of a table.")] = False,
) -> None:
    """List the models by name, the default one first.

    GMAC/S: billions of multiply-adds per second of audio, of a recording of 10 s. Weights: trained ones come
    with the package, random ones are for training; to use published ones, give separate their folder. What
    has to be trained and is not counted: the auxiliary heads, which separation does without.
    """
    from flasepformer.models import list_models  # here, so that --help does not load torch

    infos = list_models()
    if as_json:
        print_result(json.dumps([asdict(info) for info in infos], indent=2))
        return
    rows = [
        ("NAME", "FAMILY", "RATE", "TALKERS", "PARAMETERS", "GMAC/S", "WEIGHTS", "LICENCE", "DESCRIPTION")
    ]
    for info in infos:
        rows.append(
            (
                info.name,
                info.family,
                f"{info.sample_rate} Hz",
                str(info.n_sources),
                f"{info.n_parameters:,}",
                "?" if info.giga_multiply_adds is None else f"{info.giga_multiply_adds:.2f}",
                "trained" if info.trained else "random",
                info.licence or "-",
                info.description,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print_result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
