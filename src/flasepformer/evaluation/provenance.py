"""What was evaluated, with what: written beside the scores, and compared before they are put together."""

import hashlib
import os
import platform
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flasepformer.data import MixtureFolder, MixtureList, MixtureManifest, MixtureSet
from flasepformer.evaluation.scoring import package_of


def describe_set(mixtures: MixtureSet, path: str | Path) -> dict[str, Any]:
    """Tell where a set comes from, which split it is, and against what the estimates are scored.

    The split is the name of the folder or list, as published sets name theirs.
    """
    path = Path(path)
    facts = {"path": str(path), "split": path.resolve().stem, "n_mixtures": len(mixtures),
             "n_sources": mixtures.n_sources, "names_sha256": names_digest(mixtures.names),
             "sample_rate": _sample_rate(mixtures)}  # fmt: skip
    if isinstance(mixtures, MixtureFolder):
        return {**facts, "mixture": mixtures.mix_dir, "targets": list(mixtures.source_dirs)}
    if isinstance(mixtures, MixtureManifest):
        first = mixtures.files[0]
        targets = [source.parent.name for source in first.sources]
        return {**facts, "mixture": first.mixture.parent.name, "targets": targets}
    return {**facts, "mixture": "sum of the targets", "targets": "the listed recordings, cut to the shortest"}


def versions(metrics: Collection[str] = ()) -> dict[str, str]:
    """Return the versions of everything that the scores depend on."""
    packages = ["flasepformer", "torch", "numpy", *filter(None, map(package_of, metrics))]
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def set_digest(mixtures: MixtureSet) -> str:
    """Return the SHA-256 of what makes a set: two sets of other mixtures or targets have other digests.

    It is of the names, the labels, how each mixture is made, and path, size and time of last change of every
    file; no file is read. Of a set of a kind that is not known here, the first mixture stands for all.
    """
    digest = hashlib.sha256()
    for fact in _facts(mixtures):
        digest.update(ascii(fact).encode() + b"\0")
    return digest.hexdigest()


def _facts(mixtures: MixtureSet) -> Iterator[Any]:
    yield list(mixtures.names), mixtures.n_sources
    if isinstance(mixtures, MixtureList):
        yield mixtures.sample_rate
        for spec in mixtures.specs:
            yield spec.gains_db, spec.starts_seconds, spec.groups, [_state(path) for path in spec.paths]
    elif isinstance(mixtures, MixtureManifest):
        for item in mixtures.files:
            yield item.sexes, item.corpora, [_state(path) for path in (item.mixture, *item.sources)]
    elif isinstance(mixtures, MixtureFolder):
        folders = [mixtures.root / name for name in (mixtures.mix_dir, *mixtures.source_dirs)]
        for file in mixtures.files:
            yield [_state(folder / file) for folder in folders]
    else:
        try:
            first = mixtures[0]
            yield first.sample_rate, first.mixture.tolist(), first.sources.tolist()
        except (ValueError, OSError) as error:  # a row of the evaluation says so
            yield str(error)


def _state(path: Path) -> tuple[str, int, int]:
    """Return what tells a file from another one, and from its own earlier content, without reading it."""
    try:
        status = path.stat()
    except OSError:  # a row of the evaluation says so
        return os.path.abspath(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _sample_rate(mixtures: MixtureSet) -> int | None:
    """Return the sample rate (Hz) of the first mixture, None where it cannot be read."""
    if isinstance(mixtures, MixtureList):
        return mixtures.sample_rate
    if isinstance(mixtures, MixtureManifest):
        return mixtures.files[0].sample_rate
    try:
        if isinstance(mixtures, MixtureFolder):
            with mixtures.open_long(0) as first:
                return first.sample_rate
        return mixtures[0].sample_rate
    except (ValueError, OSError):
        return None


def names_digest(names: Iterable[str]) -> str:
    """Return the SHA-256 of the names of mixtures, in their order."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
