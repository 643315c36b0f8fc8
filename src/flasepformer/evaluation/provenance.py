"""What was evaluated, with what: written beside the scores, and compared before they are put together."""

import hashlib
import platform
from collections.abc import Collection, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from flasepformer.data import MixtureFolder, MixtureManifest, MixtureSet
from flasepformer.evaluation.scoring import package_of


def describe_set(mixtures: MixtureSet, path: str | Path) -> dict[str, Any]:
    """Tell where a set comes from, which split it is, and against what the estimates are scored.

    The split is the name of the folder or list, as published sets name theirs.
    """
    path = Path(path)
    facts = {"path": str(path), "split": path.resolve().stem, "n_mixtures": len(mixtures),
             "n_sources": mixtures.n_sources, "names_sha256": names_digest(mixtures.names)}  # fmt: skip
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


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256 of all weights, with their names."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def names_digest(names: Iterable[str]) -> str:
    """Return the SHA-256 of the names of mixtures, in their order."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
