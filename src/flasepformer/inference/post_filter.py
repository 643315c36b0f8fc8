"""A Wiener filter behind a model: estimates of short windows, once more by windows that part harmonics.

A network whose frames last some milliseconds leaves in each track what lies between the harmonics of its
talker. In windows of 128 ms two voices seldom share a bin, so a gain for each bin, the share that an estimate
has of the power there, takes much of it away; the phase then is the mixture's. What the filter gets wrong is
not what the network gets wrong, so the best is a mean of both.
"""

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import BLOCK_LENGTH
from flasepformer.inference.finishing import Read, Samples

HOP_SECONDS = 0.032
_HOPS = 4  # in a window
_SILENCE = 1e-20  # a power without sound


class PostFiltered:
    """Estimates behind the filter, the same samples whatever the pieces are in which they are read.

    In windows of four hops, with the spectra X of the mixture, S of the estimates and R of what they leave of
    the mixture, the gains are |S_i|^2 / (sum over j of |S_j|^2 + |R|^2); see Wiener filter.

    Args:
        mixture: Reads it, (time,).
        estimates: Reads them, (source, time), of levels that explain the mixture.
        n_samples: Of each.
        sample_rate: In Hz.
        share: Of what is filtered in the mean, from 0 to 1.
    """

    def __init__(
        self, mixture: Read, estimates: Read, n_samples: int, sample_rate: int, share: float
    ) -> None:
        self._mixture, self._estimates, self._n_samples = mixture, estimates, n_samples
        self._share = np.float32(share)
        self._hop = round(HOP_SECONDS * sample_rate)
        phase = np.arange(_HOPS * self._hop) / (_HOPS * self._hop)
        self._window = np.sin(np.pi * phase) ** 2  # Hann; four of its squares, a hop apart, are 1.5

    def __call__(self, first: int, last: int) -> Samples:
        """Return samples (source, last - first)."""
        if not self._share or first == last:
            return self._estimates(first, last)
        ends = [*range(first + BLOCK_LENGTH, last, BLOCK_LENGTH), last]
        return np.concatenate([self._piece(a, b) for a, b in zip([first, *ends], ends, strict=False)], axis=1)

    def _piece(self, first: int, last: int) -> Samples:
        hop = self._hop
        begin = (first // hop - _HOPS + 1) * hop  # of the first window that has a part in it
        n_windows = -(-(last - begin) // hop)
        end = begin + (n_windows + _HOPS - 1) * hop
        a, b = max(begin, 0), min(end, self._n_samples)
        around = (a - begin, end - b)
        mixture = np.pad(self._mixture(a, b), around)
        estimates = np.pad(self._estimates(a, b), ((0, 0), around))
        here = slice(first - begin, last - begin)
        windows = self._filtered(self._spectra(mixture), self._spectra(estimates))
        windows = windows.reshape(len(estimates), n_windows, _HOPS, hop)
        filtered = np.zeros((len(estimates), n_windows + _HOPS - 1, hop))
        for number in range(_HOPS):
            filtered[:, number : number + n_windows] += windows[:, :, number]
        filtered = filtered.reshape(len(estimates), -1)[:, here]
        own = estimates[:, here]
        return own + self._share * (filtered.astype(np.float32) - own)

    def _spectra(self, signals: Samples) -> NDArray[np.complexfloating]:
        """Return (..., window, bin)."""
        windows = np.lib.stride_tricks.sliding_window_view(signals, len(self._window), axis=-1)
        return np.fft.rfft(windows[..., :: self._hop, :] * self._window)

    def _filtered(
        self, mixture: NDArray[np.complexfloating], estimates: NDArray[np.complexfloating]
    ) -> NDArray[np.floating]:
        """Return windows (source, window, sample) that add up to the filtered mixture."""
        powers = _power(estimates)
        total = powers.sum(0) + _power(mixture - estimates.sum(0)) + _SILENCE
        windows = np.fft.irfft(powers / total * mixture, len(self._window))
        return windows * (self._window / 1.5)


def _power(spectra: NDArray[np.complexfloating]) -> NDArray[np.floating]:
    return spectra.real**2 + spectra.imag**2
