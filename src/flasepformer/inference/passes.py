"""Several passes over one recording, a little shifted, upside down, or by another model, and their mean.

Networks that had learnt all there is would give the same each time. What they give differs, and the mean is
nearer to the sources than any one of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import BLOCK_LENGTH, Products, StoredSignals
from flasepformer.inference.chunks import Signals, match_tracks

_LATER = (0.063, -1), (0.0325, 1), (0.0955, -1), (0.0, -1), (0.063, 1), (0.0325, -1), (0.0955, 1)
"""Silence before the mixture in seconds, and sign, of the passes after the first one."""
MAX_PASSES = 1 + len(_LATER)
_WINDOW_SECONDS = 1.0

ALSO_SHARE = 0.25
"""Of a second model in the mean: it is there to err in another way, not to be better."""

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Variant:
    """How a mixture is changed for one of the passes."""

    shift: int = 0
    """Samples of silence before it."""
    sign: float = 1.0
    """What it is multiplied by."""

    def of(self, mixture: Signals) -> Signals:
        """Return the mixture so changed."""
        return mixture if self == Variant() else _Changed(mixture, self)


def variants(n_passes: int, sample_rate: int) -> list[Variant]:
    """Return how the mixture is changed for each pass: for the first one it is not.

    Raises:
        ValueError: There are none, or more than `MAX_PASSES`.
    """
    if not 1 <= n_passes <= MAX_PASSES:
        raise ValueError(f"passes must be from 1 to {MAX_PASSES}, got {n_passes}")
    later = [Variant(round(seconds * sample_rate), sign) for seconds, sign in _LATER[: n_passes - 1]]
    return [Variant(), *later]


@dataclass(frozen=True)
class _Changed:
    """A mixture as one of the passes hears it."""

    mixture: Signals
    variant: Variant

    @property
    def n_samples(self) -> int:
        return self.mixture.n_samples + self.variant.shift

    def read(self, first: int, last: int) -> Samples:
        n_silent = min(max(self.variant.shift - first, 0), last - first)
        changed = np.zeros((1, last - first), np.float32)
        if n_silent < last - first:
            samples = self.mixture.read(first + n_silent - self.variant.shift, last - self.variant.shift)
            np.multiply(samples, np.float32(self.variant.sign), out=changed[:, n_silent:])
        return changed


def blend(
    mean: StoredSignals, estimates: StoredSignals, variant: Variant, share: float, sample_rate: int
) -> None:
    """Take one more pass into the mean of some.

    Whose track is whose is decided anew every half second, by the second around it: a pass that changes its
    mind about the talkers does not mix them.

    Args:
        mean: (source, time), of the passes before; changed in place.
        estimates: (source, shift + time), of this pass.
        variant: How the mixture was changed for it.
        share: Of this pass in the new mean, from 0 to 1.
        sample_rate: In Hz.
    """
    n_samples, hop = mean.n_samples, round(_WINDOW_SECONDS * sample_rate / 2)
    rise = np.sin(np.linspace(0, np.pi / 2, hop + 2)[1:-1]).astype(np.float32) ** 2

    def read(first: int, last: int) -> Samples:
        stop = variant.shift + min(last, n_samples)
        return np.float32(variant.sign) * estimates.read(variant.shift + first, stop)

    def order_from(first: int) -> list[int]:
        """Return the order of this pass's tracks in the window from a sample on."""
        last = min(first + 2 * hop, n_samples)
        before, now = mean.read(max(first, 0), last), read(max(first, 0), last)
        if not (before.any() and now.any()):
            return list(range(mean.n_signals))
        return match_tracks(before, now)[0]

    order = order_from(-hop)
    for first in range(0, n_samples, hop):
        following = order_from(first)  # before what it looks at is changed
        now, before = read(first, first + hop), mean.read(first, min(first + hop, n_samples))
        ordered = now[order] + rise[: now.shape[1]] * (now[following] - now[order])
        mean.write(first, before + np.float32(share) * (ordered - before))
        order = following


def explain(mixture: Signals, estimates: StoredSignals) -> None:
    """Give estimates the gains with which they explain the mixture best; see `explaining_gains`.

    Passes of one model agree about levels, two models need not.

    Args:
        mixture: One signal.
        estimates: (source, time), changed in place.
    """
    begins, products = range(0, estimates.n_samples, BLOCK_LENGTH), Products(estimates.n_signals)
    ends = [*begins[1:], estimates.n_samples]
    for first, last in zip(begins, ends, strict=True):
        products.add(mixture.read(first, last)[0], estimates.read(first, last))
    gains = products.gains().astype(np.float32)[:, None]
    for first, last in zip(begins, ends, strict=True):
        estimates.write(first, gains * estimates.read(first, last))
