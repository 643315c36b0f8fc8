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
DILATIONS = ((1, 1), (2, 2), (4, 4), (8, 1), (1, 2), (2, 4), (4, 2), (1, 1))
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

    def forward(self, x: Tensor) -> Tensor:
        """Change (batch, frame, band, channel): so laid out, the products take a fifth less time."""
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = y + F.linear(x.mean(2, keepdim=True), self.band.weight.squeeze(-1), self.band.bias)
        return F.linear(F.silu(y), self.out.weight.flatten(1), self.out.bias).add_(x)


class FilterNetwork(nn.Module):
    """Estimates of one talker each, filtered in the light of the mixture and of the others.

    Args:
        n_bins: Of a spectrum.
        n_channels: Of the blocks.
    """

    def __init__(self, n_bins: int = 513, n_channels: int = 48) -> None:
        super().__init__()
        self.n_bins, self.n_bands = n_bins, -(-n_bins // BINS_IN_BAND)
        self.enter = nn.Linear(N_FEATURES * BINS_IN_BAND, n_channels)
        self.where = nn.Parameter(torch.zeros(n_channels, 1, self.n_bands))
        self.blocks = nn.ModuleList(_Block(n_channels, dilation) for dilation in DILATIONS)
        self.leave = nn.Linear(n_channels, 6 * BINS_IN_BAND)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, mixture: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """Filter spectra, complex and (batch, frame, bin).

        Args:
            mixture: Of a level of 1 where somebody talks.
            own: The estimates.
            others: The sum of all other estimates of the same mixture.

        Returns:
            Of the same shape.
        """
        parts = (torch.view_as_real(spectra) for spectra in (mixture, own, others))
        return torch.view_as_complex(self.of_parts(*parts))

    def of_parts(self, mixture: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """Do as `forward` without complex numbers: (batch, frame, bin, 2), real and imaginary parts."""
        rest = mixture - own - others
        p_own, p_others, p_rest, p_mixture = (_dotted(x, x) for x in (own, others, rest, mixture))
        total = p_own + p_others + p_rest + 1e-8
        gain = p_own / total
        upright = mixture * (p_mixture + 1e-8).rsqrt().unsqueeze(-1)
        features = []
        for spectra, power in ((own, p_own), (others, p_others), (rest, p_rest)):
            flat = (power + 1e-6) ** -0.35
            features += [_dotted(upright, spectra) * flat, _crossed(upright, spectra) * flat]
        features += [gain, p_others / total, *(0.2 * (power + 1e-4).log() for power in (p_mixture, p_own))]
        n_bins = self.n_bins
        x = F.pad(torch.stack(features, -2), (0, self.n_bands * BINS_IN_BAND - n_bins))
        x = x.unflatten(-1, (self.n_bands, BINS_IN_BAND)).transpose(2, 3).flatten(3)
        x = self.enter(x) + self.where.permute(1, 2, 0)
        for block in self.blocks:
            x = block(x)
        y = self.leave(F.silu(x)).unflatten(-1, (3, 2, BINS_IN_BAND))
        y = y.permute(3, 4, 0, 1, 2, 5).flatten(4)[..., :n_bins]
        a, b, c = (
            _times(coefficient, spectra)
            for coefficient, spectra in zip(y, (own, mixture, others), strict=True)
        )
        return (1 - WIENER_SHARE) * own + a + WIENER_SHARE * gain.unsqueeze(-1) * mixture + b + c


def _dotted(a: Tensor, b: Tensor) -> Tensor:
    """Return the real part of the conjugate of a times b, of (..., 2): a sum over an axis of two is slow."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]


def _crossed(a: Tensor, b: Tensor) -> Tensor:
    """Return the imaginary part of the conjugate of a times b, of (..., 2)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _times(coefficient: Tensor, spectra: Tensor) -> Tensor:
    """Return the product of (2, ...) and (..., 2)."""
    real, imaginary = coefficient
    a, b = spectra.unbind(-1)
    return torch.stack([real * a - imaginary * b, real * b + imaginary * a], -1)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
