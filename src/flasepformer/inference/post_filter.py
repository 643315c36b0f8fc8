"""A filter behind a model: estimates of short windows, once more by windows that part harmonics.

A network whose frames last some milliseconds leaves in each track what lies between the harmonics of its
talker. In windows of 128 ms two voices seldom share a bin, so a gain for each bin, the share that an estimate
has of the power there, takes much of it away; the phase then is the mixture's. What the filter gets wrong is
not what the network gets wrong, so the best is a mean of both. How to mix them, a small network says better
than a rule, where one has been trained for the model; see `flasepformer.models.filter_network`.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from flasepformer.audio import BLOCK_LENGTH
from flasepformer.errors import InputError
from flasepformer.inference.finishing import Read, Samples
from flasepformer.models.filter_network import CONTEXT, FilterNetwork

HOP_SECONDS = 0.032
_HOPS = 4  # in a window
_SILENCE = 1e-20  # a power without sound

Spectra = NDArray[np.complexfloating]


class PostFiltered:
    """Estimates behind the filter, the same samples whatever the pieces are in which they are read.

    In windows of four hops, with the spectra X of the mixture, S of the estimates and R of what they leave of
    the mixture, the gains are |S_i|^2 / (sum over j of |S_j|^2 + |R|^2); see Wiener filter. Or a network says
    what becomes of the spectra.

    Args:
        mixture: Reads it, (time,).
        estimates: Reads them, (source, time), of levels that explain the mixture.
        n_samples: Of each.
        sample_rate: In Hz.
        share: Of what is filtered in the mean, from 0 to 1.
        network: Filters instead of the gains.
        level: RMS of the mixture where somebody talks, for the network.

    Raises:
        InputError: The network filters signals at another rate.
    """

    def __init__(
        self, mixture: Read, estimates: Read, n_samples: int, sample_rate: int, share: float,
        network: FilterNetwork | None = None, level: float = 1.0,
    ) -> None:  # fmt: skip
        self._mixture, self._estimates, self._n_samples = mixture, estimates, n_samples
        self._share = np.float32(share)
        self._network, self._level = network, level
        self._context = 0 if network is None else CONTEXT
        self._hop = round(HOP_SECONDS * sample_rate)
        if network is not None and network.n_bins != _HOPS * self._hop // 2 + 1:
            raise InputError(
                f"the network filters spectra of {network.n_bins} bins, not those at {sample_rate} Hz"
            )
        phase = np.arange(_HOPS * self._hop) / (_HOPS * self._hop)
        self._window = np.sin(np.pi * phase) ** 2  # Hann; four of its squares, a hop apart, are 1.5

    def __call__(self, first: int, last: int) -> Samples:
        """Return samples (source, last - first)."""
        return self.of(slice(None), first, last)

    def of(self, sources: slice, first: int, last: int) -> Samples:
        """Return samples (source, last - first) of some sources only, which takes less time."""
        if not self._share or first == last:
            return self._estimates(first, last)[sources]
        ends = [*range(first + BLOCK_LENGTH, last, BLOCK_LENGTH), last]
        pieces = [self._piece(sources, a, b) for a, b in zip([first, *ends], ends, strict=False)]
        return np.concatenate(pieces, axis=1)

    def _piece(self, sources: slice, first: int, last: int) -> Samples:
        hop, context = self._hop, self._context
        from_hop = max(first // hop - context, 0) - _HOPS + 1  # of the first window that is wanted, or heard
        to_hop = min(-(-last // hop) + context, -(-self._n_samples // hop))
        begin, end = from_hop * hop, (to_hop + _HOPS - 1) * hop
        a, b = max(begin, 0), min(end, self._n_samples)
        around = (a - begin, end - b)
        mixture = np.pad(self._mixture(a, b), around)
        estimates = np.pad(self._estimates(a, b), ((0, 0), around))
        here = slice(first - begin, last - begin)
        spectra = self._spectra(mixture), self._spectra(estimates)
        if self._network is None:
            found = _by_power(*spectra)[sources]
        else:
            found = _by_network(self._network, *spectra, sources, self._level)
        windows = np.fft.irfft(found, _HOPS * hop) * (self._window / 1.5)
        windows = windows.reshape(-1, to_hop - from_hop, _HOPS, hop)
        filtered = np.zeros((len(windows), to_hop - from_hop + _HOPS - 1, hop))
        for number in range(_HOPS):
            filtered[:, number : number + to_hop - from_hop] += windows[:, :, number]
        filtered = filtered.reshape(len(windows), -1)[:, here]
        own = estimates[sources, here]
        return own + self._share * (filtered.astype(np.float32) - own)

    def _spectra(self, signals: Samples) -> Spectra:
        """Return (..., window, bin)."""
        windows = np.lib.stride_tricks.sliding_window_view(signals, len(self._window), axis=-1)
        return np.fft.rfft(windows[..., :: self._hop, :] * self._window)


def _by_power(mixture: Spectra, estimates: Spectra) -> Spectra:
    """Return the mixture times Wiener's gains: (source, window, bin)."""
    powers = _power(estimates)
    total = powers.sum(0) + _power(mixture - estimates.sum(0)) + _SILENCE
    return np.asarray(powers / total * mixture)


def _by_network(
    network: FilterNetwork, mixture: Spectra, estimates: Spectra, sources: slice, level: float
) -> Spectra:
    """Return what a network makes of the spectra of some sources: (source, window, bin)."""
    device = network.where.device
    whole, parts = (
        torch.from_numpy((heard / level).astype(np.complex64)).to(device) for heard in (mixture, estimates)
    )
    total = parts.sum(0)
    with torch.inference_mode():  # one source after the other takes less memory
        filtered = [network(whole[None], own[None], (total - own)[None])[0] for own in parts[sources]]
    spectra: Spectra = torch.stack(filtered).cpu().numpy()
    return np.asarray(spectra * level)


def _power(spectra: Spectra) -> NDArray[np.floating]:
    return spectra.real**2 + spectra.imag**2
