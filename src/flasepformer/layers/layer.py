"""What a network is made of: layers that say which frames they need, and nothing about how they are run."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class Carry:
    """What one call of a layer in the score remembers from one step of a live stream to the next.

    Args:
        state: The state of the whole stream; the first axis of every tensor in it is the batch.
        place: Which call it is: a layer that is used in several places has a state for each.
    """

    def __init__(self, state: MutableMapping[str, Tensor], place: str) -> None:
        self._state = state
        self._place = place

    def before(self, name: str, x: Tensor, n_frames: int) -> Tensor:
        """Return `x` (batch, frames, ...) with the `n_frames` frames that came before it; zeros at first."""
        key = f"{self._place}.{name}"
        past = self._state.get(key)
        if past is None:
            past = x.new_zeros(x.shape[0], n_frames, *x.shape[2:])
        joined = torch.cat([past, x], dim=1)
        self._state[key] = joined[:, joined.shape[1] - n_frames :].clone()
        return joined

    def load(self, name: str) -> Tensor | None:
        """Return what was saved in the step before; None in the first one."""
        return self._state.get(f"{self._place}.{name}")

    def save(self, name: str, value: Tensor) -> None:
        """Keep a tensor for the next step."""
        self._state[f"{self._place}.{name}"] = value


class Layer(nn.Module):
    """A map of frames to frames, (batch, frames, ...) in and out, in which a frame needs a few neighbours."""

    halo: int = 0
    """Frames on either side that a frame depends on; in a causal layer all of them come before it."""
    stride: int = 1
    """Frames from one frame of the result to the next."""
    width: int = 0
    """Numbers per frame of the widest intermediate result of a layer that is best applied to few frames at a
    time, which the processor's cache holds; 0 for a layer that is as fast with many."""
    causal: bool = False
    """Whether no frame depends on a later one."""

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (batch, frames, ...).
            carry: In a stream, what came before; without it nothing did.
        """
        raise NotImplementedError

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that frames (batch, frames, ...) of a shape get, but for the stride."""
        return shape

    _folded: Any = None

    def fold(self) -> Any:
        """Return what the weights alone come to, for `folded`; None if there is nothing to do."""
        return None

    def folded(self) -> Any:
        """Return what `fold` does, which is done once in a prepared layer."""
        return self.fold() if self._folded is None else self._folded

    def prepared(self) -> "Layer":
        """Return the same map with all work done that needs no frames; for use without gradients."""
        folded = self.fold()
        return self if folded is None else self._with(folded)

    def _with(self, folded: Any) -> Self:
        layer = copy.copy(self)
        layer._folded = folded
        return layer


Given = Callable[[Tensor, int], Tensor]
"""A global layer whose summary is known: frames, and the number of the first of them, to frames."""


class GlobalLayer(Layer, ABC):
    """A layer that needs all frames, but of all of them only a summary."""

    grows: bool = False
    """Whether the summary grows with the frames; one that does not has `faded`, to forget by."""

    @abstractmethod
    def summarize(self, x: Tensor) -> Any:
        """Return what is needed of some frames (batch, some frames, ...); the summaries of pieces add up."""

    @abstractmethod
    def given(self, summary: Any) -> Given:
        """Return the map that the layer is for a recording with this summary; it needs `halo` neighbours."""

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return self.given(self.summarize(x))(x, 0)


class WholeLayer(Layer):
    """A layer that needs all frames themselves, for every entry of axis 2 on its own."""


class Join(ABC):
    """Puts two sequences of frames together, of which the second may be finer."""

    rate: int = 1
    """Frames of the second for every frame of the first."""

    @abstractmethod
    def join(self, below: Tensor, x: Tensor, first: int = 0) -> Tensor:
        """Join frames.

        Args:
            below: (batch, frames, ...), every frame that lies below one of `x`.
            x: (batch, frames, ...).
            first: The number of the first frame of `x`.
        """
