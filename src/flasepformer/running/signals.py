"""Samples that come and go in pieces."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flasepformer.ops import overlap_add

SMALLEST_OVERLAP = 0.01
"""Least sum of squared windows that samples are divided by."""


class Samples(Protocol):
    """A recording whose samples are made when they are read: of a file, say, or of a tensor."""

    n_samples: int

    def read(self, first: int, last: int) -> Tensor:
        """Return (batch, last - first), floating point; both within the recording."""


class TensorSamples:
    """The samples of a tensor (batch, time)."""

    def __init__(self, mixture: Tensor) -> None:
        self.mixture, self.n_samples = mixture, mixture.shape[-1]

    def read(self, first: int, last: int) -> Tensor:
        return self.mixture[:, first:last]


def read_with_zeros(samples: Samples, first: int, last: int) -> Tensor:
    """Read samples (batch, last - first), with zeros where there are none."""
    begin, end = max(first, 0), min(last, samples.n_samples)
    if end <= begin:
        return F.pad(samples.read(0, 1)[:, :0], (0, last - first))
    read = samples.read(begin, end)
    return read if (begin, end) == (first, last) else F.pad(read, (begin - first, last - end))


def read_reflected(samples: Samples, first: int, last: int, least: int) -> Tensor:
    """Read samples (batch, last - first), with the recording mirrored at its ends.

    Args:
        samples: The recording.
        first: From 1 - `least` on.
        last: At most as far beyond the end.
        least: A shorter recording is followed by zeros up to this length first.
    """
    n = max(samples.n_samples, least)
    parts = []
    if first < 0:
        parts.append(read_with_zeros(samples, 1 - min(last, 0), 1 - first).flip(-1))
    if last > 0 and first < n:
        parts.append(read_with_zeros(samples, max(first, 0), min(last, n)))
    if last > n:
        parts.append(read_with_zeros(samples, 2 * n - 1 - last, 2 * n - 1 - max(first, n)).flip(-1))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


class OverlapAdd:
    """Adds up overlapping windows that come piece by piece, and gives away the samples that are complete.

    Args:
        hop_length: Samples from one window to the next.
        squared_window: (window,): what comes in is weighted by the window twice, so the sum is divided by
            that of its squares; None leaves it as it is.
        tails: What `tails` of another one was, to go on from there.
    """

    def __init__(
        self, hop_length: int, squared_window: Tensor | None = None, tails: dict[str, Tensor] | None = None
    ) -> None:
        self.hop_length, self.squared_window = hop_length, squared_window
        self.tails: dict[str, Tensor] = dict(tails or {})
        """The samples that later windows still add to."""

    def push(self, overlapped: Tensor, n_windows: int, last: bool = False) -> Tensor:
        """Take what `ops.overlap_add` made of the next windows, (n, samples); return what is complete.

        Args:
            overlapped: The windows, added up.
            n_windows: How many they were.
            last: Whether they are the last ones.
        """
        done = self._push("samples", overlapped, n_windows, last)
        if self.squared_window is None:
            return done
        windows = self.squared_window.expand(len(done), n_windows, -1)
        weight = self._push("weights", overlap_add(windows, self.hop_length), n_windows, last)
        # Differs from torch.istft: there only the end of the last window reaches the last samples, and to
        # divide by its square would raise the errors of estimated frames several hundredfold, to a click.
        return done / weight.clamp_min(SMALLEST_OVERLAP)

    def _push(self, name: str, overlapped: Tensor, n_windows: int, last: bool) -> Tensor:
        tail = self.tails.get(name)
        if tail is not None:
            n = tail.shape[-1]
            overlapped = torch.cat([overlapped[:, :n] + tail, overlapped[:, n:]], dim=-1)
        if last:
            return overlapped
        n_done = n_windows * self.hop_length
        self.tails[name] = overlapped[:, n_done:].clone()
        return overlapped[:, :n_done]
