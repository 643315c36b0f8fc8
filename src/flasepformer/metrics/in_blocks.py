"""The same scores of recordings that never stand in memory as a whole: sums, block by block, then numbers."""

import itertools

import torch
from torch import Tensor

from flasepformer.metrics.bss_eval import ratios_of_correlations
from flasepformer.metrics.conversation import confusion_of_hops
from flasepformer.metrics.ratios import FILTER_LENGTH, LIMIT_DB, si_snr_of_means


class ScoresInBlocks:
    """Adds up what scores of signals against sources are made of, in double precision.

    Args:
        n_sources: Of the mixture; they come first among the signals.
        n_signals: All of them: the sources, then whatever is to be scored.
        hop: Samples of a hop of `talker_confusion`.
        with_filters: Whether `sdr` and `sir_sar` are asked for, which take far longer.
    """

    def __init__(self, n_sources: int, n_signals: int, hop: int, *, with_filters: bool) -> None:
        self.n_sources, self.n_samples = n_sources, 0
        self.gram = torch.zeros(n_signals, n_signals, dtype=torch.float64)
        """Products of all signals with one another."""
        self._sums = torch.zeros(n_signals, dtype=torch.float64)
        self._lowest, self._highest = (
            torch.full((n_sources,), torch.inf),
            torch.full((n_sources,), -torch.inf),
        )
        self._hop, self._hops = hop, list[Tensor]()
        self._before = (
            torch.zeros(n_sources, FILTER_LENGTH - 1, dtype=torch.float64) if with_filters else None
        )
        self._delayed = torch.zeros(n_sources, n_signals, FILTER_LENGTH, dtype=torch.float64)

    def add(self, signals: Tensor) -> None:
        """Take the next samples (signal, time): whole hops, save at the end."""
        assert self.n_samples % self._hop == 0, "only the last block may end within a hop"
        self.n_samples += signals.shape[-1]
        self._lowest = torch.minimum(self._lowest, signals[: self.n_sources].amin(-1))
        self._highest = torch.maximum(self._highest, signals[: self.n_sources].amax(-1))
        signals = signals.double()
        sources = signals[: self.n_sources]
        self.gram += signals @ signals.mT
        self._sums += signals.sum(-1)
        padded = torch.nn.functional.pad(signals, (0, -signals.shape[-1] % self._hop))
        hops = padded.unflatten(-1, (-1, self._hop))  # (signal, hop, time)
        self._hops.append(torch.einsum("sht,kht->skh", hops[: self.n_sources], hops))
        if self._before is not None:
            heard = torch.cat([self._before, sources], -1)
            n_fft = 1 << (heard.shape[-1] - 1).bit_length()
            spectra = torch.fft.rfft(heard, n_fft).unsqueeze(1) * torch.fft.rfft(signals, n_fft).conj()
            self._delayed += torch.fft.irfft(spectra, n_fft)[..., :FILTER_LENGTH].flip(-1)
            self._before = heard[:, -(FILTER_LENGTH - 1) :]

    def si_snr(self, signals: Tensor) -> Tensor:
        """Return the `si_snr` of signals, by their numbers (source,), one against each source."""
        own = torch.arange(self.n_sources)
        means = self._sums / self.n_samples
        products = self.gram / self.n_samples - means[:, None] * means
        scores = si_snr_of_means(
            products[own, signals], products[own, own], products[signals, signals].clamp_min(0)
        )
        return scores.masked_fill(self._lowest == self._highest, torch.nan)

    def sdr(self, signals: Tensor) -> Tensor:
        """Return the `sdr` of signals, by their numbers (source,), one against each source."""
        ratios = []
        taps = torch.arange(FILTER_LENGTH)
        for source, signal in enumerate(signals.tolist()):
            energy, of_signal = self.gram[source, source], self.gram[signal, signal]
            if not energy > 0:
                ratios.append(torch.nan)
                continue
            if not of_signal > 0:
                ratios.append(-LIMIT_DB)
                continue
            autocorrelation = self._delayed[source, source] / energy
            matrix = autocorrelation[(taps[:, None] - taps).abs()]
            product = self._delayed[source, signal] / (energy * of_signal).sqrt()
            coherence = float(product @ torch.linalg.solve(matrix, product))
            ratio = coherence / (1 - coherence) if coherence < 1 else torch.inf
            ratios.append(float((10 * torch.tensor(ratio).log10()).clamp(-LIMIT_DB, LIMIT_DB)))
        return torch.tensor(ratios)

    def sir_sar(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the `sir_sar` of signals, by their numbers (source,), one for each source."""
        n, taps = self.n_sources, FILTER_LENGTH
        scale = self.gram.diagonal().clamp_min(0).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        delayed = self._delayed / (scale[:n, None, None] * scale[:, None])
        correlation = torch.zeros(n, n, 2 * taps - 1, dtype=torch.float64)  # negative lags stand at the end
        correlation[..., :taps] = delayed[:, :n]
        for first, second in itertools.product(range(n), repeat=2):
            correlation[first, second, taps:] = delayed[second, first, 1:].flip(-1)
        energies = self.gram.diagonal() / scale.square()
        return ratios_of_correlations(
            correlation, delayed[:, signals].transpose(0, 1), energies[:n], energies[signals], taps
        )

    def talker_confusion(self, signals: Tensor, gains: Tensor) -> Tensor:
        """Return the `talker_confusion` of signals, by their numbers (source,), times gains (source,)."""
        own, hops = torch.arange(self.n_sources), torch.cat(self._hops, -1)
        share = hops[:, signals].transpose(0, 1) * gains[:, None, None]  # (estimate, source, hop)
        return confusion_of_hops(hops[own, own], share)
