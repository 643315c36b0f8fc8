"""Convolutions along the first axis by small Fourier transforms, with fewer multiplications."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_AT_ONCE = 64
"""Tiles times rows that are multiplied at a time: enough to use a kernel well, few enough for the cache."""


class FastConvolution:
    """Convolution without padding, with a quarter of the multiplications for a kernel of 8.

    The sequence is cut into overlapping tiles, three kernels long. A Fourier transform at odd multiples of
    half the base frequency turns a tile into half as many complex numbers and no real one; three real
    multiplications give the product of each with the kernel's. Both transforms are small matrices.

    Args:
        weight: (channels out, channels in, kernel).
        bias: (channels out).

    Shape: (length, rows, channels in) to (length - kernel + 1, rows, channels out), or to no length.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        n_out, n_in, kernel = weight.shape
        self.reach = kernel - 1
        analysis, on_kernel, self.synthesis = (m.to(weight) for m in tile_transforms(kernel))
        self.analysis = analysis
        self.n_products, self.length = analysis.shape
        self.step = self.length - self.reach
        self.weight = (on_kernel @ weight.permute(2, 1, 0).flatten(1)).view(-1, n_in, n_out)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        n_rows, n_out = x.shape[1], self.weight.shape[2]
        n_outputs = max(len(x) - self.reach, 0)
        n_tiles = -(-n_outputs // self.step)
        result = x.new_empty(n_tiles, self.step, n_rows * n_out)
        if n_tiles:
            missing = n_tiles * self.step - n_outputs
            x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
            tiles = x.unfold(0, self.length, self.step).movedim(-1, 1).flatten(2)
            n_at_once = max(1, ROWS_AT_ONCE // n_rows)
            for some, out in zip(tiles.split(n_at_once), result.split(n_at_once), strict=True):
                self._convolve(some, n_rows, out)
        return result.view(-1, n_rows, n_out)[:n_outputs].add_(self.bias)

    def _convolve(self, tiles: Tensor, n_rows: int, out: Tensor) -> None:
        """Turn tiles (tiles, length, rows * channels in) into (tiles, step, rows * channels out)."""
        n_tiles = len(tiles)
        transformed = torch.bmm(self.analysis.expand(n_tiles, -1, -1), tiles)
        by_product = transformed.unflatten(2, (n_rows, -1)).transpose(0, 1).flatten(1, 2)
        products = torch.bmm(by_product, self.weight)  # (products, tiles * rows, channels out)
        by_tile = products.unflatten(1, (n_tiles, n_rows)).transpose(0, 1).flatten(2)
        torch.bmm(self.synthesis.expand(n_tiles, -1, -1), by_tile, out=out)


def tile_transforms(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices that turn a convolution of a tile into products.

    Returns:
        A (products, length), B (products, kernel) and C (outputs, products) such that C (A x * B w), x of
        `length` numbers and w the kernel, is sum_j w_j x_(i+j) wherever the kernel lies in the tile.
    """
    length = 3 * kernel + kernel % 2
    frequency = math.pi * (2 * torch.arange(length // 2, dtype=torch.float64) + 1) / length
    angle = frequency.unsqueeze(1) * torch.arange(length)
    cosine, sine = angle.cos(), angle.sin()
    # X = re - i im and the kernel's conjugate W = u + i v: X W = (p - r) + i (p + q) with the products
    # p = u (re + im'), q = re (v - u), r = im' (u + v), im' = -im.
    analysis = torch.cat([cosine - sine, cosine, -sine])
    u, v = cosine[:, :kernel], sine[:, :kernel]
    on_kernel = torch.cat([u, v - u, u + v])
    n_outputs = length - kernel + 1
    cosine, sine = cosine[:, :n_outputs], sine[:, :n_outputs]
    synthesis = torch.cat([cosine - sine, -sine, -cosine]).mT * (2 / length)
    return analysis, on_kernel, synthesis


def swiglu(x: Tensor) -> Tensor:
    """Scale the first half of the channels by the SiLU of the second; without gradients."""
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)
