"""A small network that filters estimates: for each bin of long windows, how to mix them with the mixture.

Its spectra are those of `flasepformer.inference.post_filter`. Nothing that goes in depends on the phase of
the mixture, and what comes out turns with it: complex coefficients a, b and c of every bin, for a track of
(0.4 + a) S + (0.6 w + b) X + c O, with its estimate S, the mixture X, the sum O of the other estimates and
Wiener's gain w. Untrained, it is the mean of the estimate and of the Wiener filter with a share of 0.6.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIENER_SHARE = 0.6
N_FEATURES = 10
BINS_IN_BAND = 8
DILATIONS = ((1, 1), (2, 2), (4, 4), (8, 1), (1, 2), (2, 4))
"""Of the blocks, in frames and bands."""
CONTEXT = sum(frames for frames, _ in DILATIONS)
"""Frames before and after one that its coefficients depend on."""


class _Block(nn.Module):
    def __init__(self, n_channels: int, dilation: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, n_channels, 3, dilation=dilation, padding=dilation)
        self.band = nn.Conv1d(n_channels, n_channels, 1)
        self.out = nn.Conv2d(n_channels, n_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        y = self.conv(x) + self.band(x.mean(-1)).unsqueeze(-1)
        return (x + self.out(F.silu(y))) * inside


class FilterNetwork(nn.Module):
    """Estimates of one talker each, filtered in the light of the mixture and of the others.

    Args:
        n_bins: Of a spectrum.
        n_channels: Of the blocks.
    """

    def __init__(self, n_bins: int = 513, n_channels: int = 32) -> None:
        super().__init__()
        self.n_bins, self.n_bands = n_bins, -(-n_bins // BINS_IN_BAND)
        self.enter = nn.Linear(N_FEATURES * BINS_IN_BAND, n_channels)
        self.where = nn.Parameter(torch.zeros(n_channels, 1, self.n_bands))
        self.blocks = nn.ModuleList(_Block(n_channels, dilation) for dilation in DILATIONS)
        self.leave = nn.Linear(n_channels, 6 * BINS_IN_BAND)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, mixture: Tensor, own: Tensor, others: Tensor, inside: Tensor | None = None) -> Tensor:
        """Filter spectra, complex and (batch, frame, bin).

        Args:
            mixture: Of a level of 1 where somebody talks.
            own: The estimates.
            others: The sum of all other estimates of the same mixture.
            inside: Frames (frame,) that are of the signal: False before its beginning and behind its end.

        Returns:
            Of the same shape.
        """
        rest = mixture - own - others
        p_own, p_others, p_rest, p_mixture = (_power(x) for x in (own, others, rest, mixture))
        total = p_own + p_others + p_rest + 1e-8
        gain = p_own / total
        upright = mixture.conj() * (p_mixture + 1e-8).rsqrt()
        features = []
        for spectra, power in ((own, p_own), (others, p_others), (rest, p_rest)):
            turned = spectra * upright * (power + 1e-6) ** -0.35
            features += [turned.real, turned.imag]
        features += [gain, p_others / total, *(0.2 * (power + 1e-4).log() for power in (p_mixture, p_own))]
        n_frames, n_bins = own.shape[1:]
        x = F.pad(torch.stack(features, -2), (0, self.n_bands * BINS_IN_BAND - n_bins))
        x = x.unflatten(-1, (self.n_bands, BINS_IN_BAND)).transpose(2, 3).flatten(3)
        x = self.enter(x).permute(0, 3, 1, 2) + self.where
        within = torch.ones(n_frames, 1, device=x.device) if inside is None else inside[:, None].to(x.dtype)
        x = x * within
        for block in self.blocks:
            x = block(x, within)
        y = self.leave(F.silu(x).permute(0, 2, 3, 1)).unflatten(-1, (3, 2, BINS_IN_BAND))
        y = y.permute(3, 4, 0, 1, 2, 5).flatten(4)[..., :n_bins]
        a, b, c = (torch.complex(*coefficient) for coefficient in y)
        return (1 - WIENER_SHARE + a) * own + (WIENER_SHARE * gain + b) * mixture + c * others


def _power(spectra: Tensor) -> Tensor:
    return spectra.real.square() + spectra.imag.square()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
