"""`flasepformer models`: what there is to choose from."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flasepformer.cli.console import print_message, print_result

if TYPE_CHECKING:
    from flasepformer.models import ModelInfo, PublishedModel
    from flasepformer.models.published import Catalogue


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of tables.")] = False,
) -> None:
    """List the models by name, the default one first: what to take for what, then every network.

    Published weights come from their publishers at the first use (`separate --model NAME`, `download NAME`)
    and are here from then on. RTF: time over the length of the recording, on two cores of a CPU. MEMORY:
    beside the program and the model, for a recording of one minute. GMAC/S: billions of multiply-adds per
    second of audio, of a recording of 10 s. Random weights are for training. What has to be trained and is
    not counted: the auxiliary heads, which separation does without.
    """
    from flasepformer.models import CheckpointError, list_models, published_models  # not for --help

    try:
        infos, catalogue = list_models(), published_models()
    except CheckpointError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    if as_json:
        entries = [asdict(info) | _published_facts(catalogue.models.get(info.name)) for info in infos]
        print_result(json.dumps(entries, indent=2))
        return
    ours = [info for info in infos if info.trained and not info.source]
    _print_table(
        ("NAME", "TAKE IT FOR", "SI-SNRi", "ON", "LICENCE", "COMMERCIAL", "SIZE", "HERE", "RTF", "MEMORY"),
        [*map(_ours, ours), *map(_published, catalogue.models.values())],
    )
    print_result("")
    for line in _words(catalogue):
        print_result(line)
    print_result("")
    _print_table(
        ("NAME", "FAMILY", "RATE", "TALKERS", "PARAMETERS", "GMAC/S", "WEIGHTS", "LICENCE", "DESCRIPTION"),
        [*map(_network, infos)],
    )


def _ours(info: "ModelInfo") -> tuple[str, ...]:
    from flasepformer.models import shipped_offer

    offer = shipped_offer(info.name)
    return (
        info.name,
        offer["use"],
        f"{offer['si_snri']:.1f}",
        offer["scored_on"],
        info.licence,
        "yes",
        f"{offer['weights_bytes'] / 1e6:.0f} MB",
        "yes",
        f"{offer['real_time_factor']:.2f}",
        f"{offer['megabytes']} MB",
    )


def _published(model: "PublishedModel") -> tuple[str, ...]:
    from flasepformer.models import local_copy

    score, measured = next(iter(model.scores), None), model.measured
    return (
        model.name,
        model.use,
        f"{score.si_snri:.1f}" if score else "?",
        score.set if score else "?",
        model.licence,
        "yes" if model.commercial_use else "no",
        model.download_size,
        "yes" if local_copy(model) else "no",
        f"{measured.real_time_factor:.2f}" if measured else "?",
        f"{measured.megabytes:.0f} MB" if measured else "?",
    )


def _network(info: "ModelInfo") -> tuple[str, ...]:
    return (
        info.name,
        info.family,
        f"{info.sample_rate} Hz",
        str(info.n_sources),
        f"{info.n_parameters:,}",
        "?" if info.giga_multiply_adds is None else f"{info.giga_multiply_adds:.2f}",
        "published" if info.source else "trained" if info.trained else "random",
        info.licence or "-",
        info.description,
    )


def _words(catalogue: "Catalogue") -> list[str]:
    """Return what stands below the table: the aliases, and what one looks for in vain."""
    aliases = [f"{alias} = {name}: {reason}" for alias, (name, reason) in catalogue.aliases.items()]
    return [*aliases, *catalogue.not_published.values()]


def _published_facts(model: "PublishedModel | None") -> dict[str, Any]:
    """Return what is known of published weights and of no others."""
    if model is None:
        return {}
    from flasepformer.models import local_copy

    return {
        "commercial_use": model.commercial_use,
        "n_bytes": model.weights.size,
        "scores": [asdict(score) for score in model.scores],
        "measured": None if model.measured is None else asdict(model.measured),
        "is_here": local_copy(model) is not None,
    }


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print_result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
