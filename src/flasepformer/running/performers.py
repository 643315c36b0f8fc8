"""Who plays a score: a network's order of layers, written once as calls of a `Performer`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from flasepformer.layers import Carry, GlobalLayer, Join, Layer

X = TypeVar("X")
"""Frames (batch, frames, ...) as a performer has them: a tensor, or a promise of one."""


class Performer(Protocol[X]):
    """Plays a score."""

    def through(self, x: X, *layers: Layer) -> X:
        """Send frames through layers, one after the other."""

    def keep(self, x: X) -> X:
        """Return frames that two readers need."""

    def join(self, layer: Join, below: X, x: X) -> X:
        """Put two sequences together."""

    def fill(self, x: X, multiple: int) -> X:
        """Add frames of zeros up to a multiple of so many."""

    def cut(self, x: X, like: X) -> X:
        """Take away frames beyond the number of those in `like`."""

    def tap(self, x: X) -> None:
        """Show what an auxiliary head may listen to."""


class Whole:
    """Plays with all frames at once, with gradients if they are wanted: for training and for export.

    Args:
        recompute: Keep the input of every layer only, and compute the rest again in the backward pass.
        layers: Prepared layers by the place in the score, for those who play it again and again without
            gradients: the first time fills it. None plays the layers as they are.
    """

    def __init__(self, *, recompute: bool = False, layers: dict[str, Layer] | None = None) -> None:
        self.recompute = recompute and torch.is_grad_enabled()
        self.taps: list[Tensor] = []
        """What auxiliary heads listen to, in the order of the score."""
        self._layers = layers
        self._n_calls = 0

    def through(self, x: Tensor, *layers: Layer) -> Tensor:
        for layer in layers:
            if self.recompute:
                contexts = partial(_contexts, layer)
                x = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
            else:
                x = self._place(layer)[1](x)
        return x

    def _place(self, layer: Layer) -> tuple[str, Layer]:
        """Return the place of the next call in the score, and the layer that plays it."""
        self._n_calls += 1
        place = str(self._n_calls)
        if self._layers is None:
            return place, layer
        if place not in self._layers:
            self._layers[place] = layer.prepared()
        return place, self._layers[place]

    def keep(self, x: Tensor) -> Tensor:
        return x

    def join(self, layer: Join, below: Tensor, x: Tensor) -> Tensor:
        return layer.join(below, x)

    def fill(self, x: Tensor, multiple: int) -> Tensor:
        return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, -x.shape[1] % multiple)) if multiple > 1 else x

    def cut(self, x: Tensor, like: Tensor) -> Tensor:
        return x[:, : like.shape[1]]

    def tap(self, x: Tensor) -> None:
        self.taps.append(x)


class Live(Whole):
    """Plays a causal network step by step, each on as many frames as the network takes at a time.

    Args:
        state: What to go on from: `state` of the step before. Empty at the beginning.
        layers: See `Whole`.
    """

    def __init__(self, state: dict[str, Tensor], layers: dict[str, Layer] | None = None) -> None:
        super().__init__(layers=layers)
        self.state = dict(state)
        """Everything that the next step needs, by the place in the score; the first axis is the batch."""

    def through(self, x: Tensor, *layers: Layer) -> Tensor:
        for layer in layers:
            place, player = self._place(layer)
            x = player(x, Carry(self.state, place))
        return x

    def fill(self, x: Tensor, multiple: int) -> Tensor:
        if x.shape[1] % multiple:
            raise ValueError(f"a step takes a multiple of {multiple} frames, got {x.shape[1]}")
        return x


class Following(Whole):
    """Plays a network that hears the future on the last seconds of a stream, over and over as they move on.

    The global layers hear what has moved out of these seconds, too: their summaries of it are kept and added
    to those of what is still there. A summary that grows with the frames cannot be kept, and is not.

    Args:
        past: `left` of the time before; empty at the beginning.
        n_frames: Frames of the analysis.
        n_known: The first of these are in the past already; they are neighbours only.
        n_leaving: And so many after them will be in the past next time.
        layers: See `Whole`.
    """

    def __init__(
        self,
        past: dict[str, Any],
        n_frames: int,
        n_known: int,
        n_leaving: int,
        layers: dict[str, Layer] | None = None,
    ) -> None:
        super().__init__(layers=layers)
        self.past = past
        self.left: dict[str, Any] = {}
        """Summaries of all that will have moved out, by the place in the score."""
        self._n_frames, self._n_known, self._n_leaving = n_frames, n_known, n_leaving

    def through(self, x: Tensor, *layers: Layer) -> Tensor:
        for layer in layers:
            place, player = self._place(layer)
            x = self._global(place, player, x) if isinstance(player, GlobalLayer) else player(x)
        return x

    def _global(self, place: str, layer: GlobalLayer, x: Tensor) -> Tensor:
        known, after = (
            n * x.shape[1] // self._n_frames for n in (self._n_known, self._n_known + self._n_leaving)
        )
        if layer.grows:
            return layer(x)
        summary = layer.summarize(x[:, known:])
        past = self.past.get(place)
        if after > known:
            leaving = layer.summarize(x[:, known:after])
            self.left[place] = leaving if past is None else past + leaving
        elif past is not None:
            self.left[place] = past
        return layer.given(summary if past is None else past + summary)(x, 0)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second computation."""
    return nullcontext(), _frozen_statistics(layer)


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Let batch normalisation leave its running statistics alone: they have seen these frames before."""
    norms = [module for module in layer.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, n_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches
