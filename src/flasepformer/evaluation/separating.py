"""How a mixture gets through a model: straight through the network, or as a user's recording does."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flasepformer.data import LongMixture, Mixture
from flasepformer.inference import RunOptions, Separator
from flasepformer.inference.estimates import goes_in_pieces
from flasepformer.inference.memory import USABLE_SHARE, free_memory
from flasepformer.inference.tracks import Tracks
from flasepformer.models import SeparationNetwork, separate


class Separated(NamedTuple):
    """What a model made of one mixture."""

    estimates: Tensor
    """(source, time), on the CPU, in the model's own order."""
    warnings: tuple[str, ...] = ()
    """What may have gone wrong, in sentences."""
    live: Mapping[str, Any] = MappingProxyType({})
    """Of a stream: its delay, and how long its blocks took; see `summarise_blocks`."""


Separate = Callable[[Mixture], Separated]
"""Raises a ValueError if a mixture does not suit the model or its estimates are not finite, and what
`Separator.separate` raises."""


@dataclass(frozen=True)
class AsRecording:
    """Separates mixtures as a user's recordings; fit to be pickled."""

    separator: Separator

    def __call__(self, item: Mixture) -> Separated:
        with warnings.catch_warnings(record=True) as cautions:
            warnings.simplefilter("always")
            estimates = self.separator.separate(item.mixture, item.sample_rate)
        return Separated(estimates, tuple(str(caution.message) for caution in cautions))

    def in_blocks(self, item: LongMixture) -> tuple[Tracks, tuple[str, ...]]:
        """Separate a mixture that is not in memory; see `Separator.separate_stream`."""
        return self.separator.separate_stream(item.mixture)


def separation_by(model: Separator | SeparationNetwork, run_options: RunOptions | None) -> Separate:
    """Return a function, fit to be pickled, that separates mixtures.

    Args:
        model: A separator, or a network of `flasepformer.models`.
        run_options: How recordings go through the model, in place of a separator's own options; every mixture
            is a recording then. None sends mixtures at the model's own sample rate straight through the
            network, in one pass and at their own level.

    Raises:
        DeviceError: The device of the model cannot be used.
        ValueError: An option makes no sense.
    """
    if run_options is None:
        return partial(_through_network, model)
    fixed: RunOptions = {**run_options, "shorter_chunks": False}  # scores must not depend on the memory
    if isinstance(model, Separator):
        return AsRecording(model.alike(fixed))
    return AsRecording(Separator(model, next(model.parameters()).device, **fixed))


def fix_options(model: Separator | SeparationNetwork, run_options: RunOptions | None) -> RunOptions | None:
    """Decide by the model what was left open: scores must not depend on the memory that is free on the day.

    In mode "auto" a model with linear attention takes every mixture whole; another one takes those that are
    longer than a chunk in chunks. The filter is that of the model.
    """
    if run_options is None:
        return None
    fixed: RunOptions = {**run_options}
    if fixed.get("mode", "auto") == "auto":
        fixed["mode"] = "whole" if goes_in_pieces(_network_of(model)) else "chunks"
    share = fixed.pop("post_filter", None)
    if share is None and isinstance(model, Separator):
        share = model.post_filter
    return fixed if share is None else {**fixed, "post_filter": share}


def share_memory(run_options: RunOptions | None, n_jobs: int) -> RunOptions | None:
    """Divide the memory that a recording may take by default, which each of several processes would take."""
    free = free_memory()
    if run_options is None or run_options.get("memory") is not None or n_jobs < 2 or free is None:
        return run_options
    return {**run_options, "memory": max(1, int(USABLE_SHARE * free / n_jobs))}


def describe_run(run_options: RunOptions | None) -> dict[str, Any]:
    """Return what the scores depend on, as plain values: {"mode": "network"} without options."""
    if run_options is None:
        return {"mode": "network"}
    options: dict[str, Any] = {"mode": "auto", **run_options}
    if not options.get("post_filter"):
        options.pop("post_filter", None)
    if options["mode"] == "whole":
        return {key: value for key, value in options.items() if not key.endswith("_seconds")}
    return options


def label_run(description: Mapping[str, Any]) -> str:
    """Name what `describe_run` returns for a person; empty for a pass of the network alone.

    >>> label_run({"mode": "chunks", "chunk_seconds": 30.0}), label_run({"mode": "whole", "memory": None})
    ('chunks of 30 s', 'whole')
    >>> label_run({"mode": "network"}), label_run({}), label_run({"mode": "whole", "passes": 2})
    ('', '', 'whole, 2 passes')
    >>> label_run({"mode": "whole", "also": "default-fast", "post_filter": 0.6})
    'whole, also default-fast, post-filter 0.6'
    """
    mode = description.get("mode", "network")
    if mode == "network":
        return ""
    known = mode == "chunks" and "chunk_seconds" in description
    way = f"chunks of {description['chunk_seconds']:g} s" if known else str(mode)
    passes, also = description.get("passes", 1), description.get("also")
    share = description.get("post_filter", 0)
    return (
        way
        + (f", {passes} passes" if passes > 1 else "")
        + (f", also {also}" if also else "")
        + (f", post-filter {share:g}" if share else "")
    )


def _network_of(model: Separator | SeparationNetwork) -> SeparationNetwork:
    return model.model if isinstance(model, Separator) else model


def _through_network(model: Separator | SeparationNetwork, item: Mixture) -> Separated:
    if item.sample_rate != model.sample_rate:
        if isinstance(model, Separator):
            return AsRecording(model)(item)
        raise ValueError(
            f"the mixture is at {item.sample_rate} Hz, but the model works at {model.sample_rate} Hz; "
            "give a Separator, which resamples"
        )
    network = _network_of(model).eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        estimates = separate(network, item.mixture[None].to(device))[0].float().cpu()
    if not estimates.isfinite().all():
        raise ValueError("the model's estimates are not finite")
    return Separated(estimates)
