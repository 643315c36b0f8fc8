"""The forward pass of an FLA-TFLocoformer in pieces of time, with the numbers of the whole.

Linear attention over time needs a few means over all frames, everything else a few neighbours. So there is
one sweep over the recording per pair of blocks: attention and second feed-forward network of one time block,
the next frequency block, and the first feed-forward network of the next time block, which also adds up the
means for its attention. Within a sweep the frames flow from layer to layer; a convolution over time keeps the
last few until their neighbours have come, so nothing is computed twice. What lies between two sweeps is one
copy of the features, which every sweep changes in place. Spectra are made anew from the waveform.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flasepformer.models.long_form import FrameMemory, Frames, Moments
from flasepformer.ops import PIECE_LENGTH, KeyValueMeans, inverse_stft, stft

if TYPE_CHECKING:
    from flasepformer.models.tflocoformer import BlockPair, ConvSwiGLU, MacaronBlock, TFLocoformer

ACCELERATOR_ROWS = 2**17
"""Frames times bins that a GPU works on at a time: enough to keep it busy, 0.2 GB of M's widest features."""

FRAMES_AT_ONCE = 8
"""Frames whose bins are convolved at a time: enough to use a kernel well, few enough for the cache."""

ROWS_AT_ONCE = 64
"""Tiles times rows that are multiplied at a time, for the same reason."""

SHORTEST_FAST_KERNEL = 6
"""Kernels from which `FastConvolution` is faster: with 8 taps a seventh off S, a third off M."""

SHORTEST_FAST_RECORDING = 64
"""Frames from which it pays to prepare the kernels for it."""

Pieces = Iterator[Tensor]
"""A recording's features, (some frames, bins, channels) at a time, in order."""


class LongPass:
    """One forward pass.

    Args:
        model: A network with linear attention, in eval mode.
        waveform: (time,).
        memory: Room for the features between two sweeps.
        progress: Told the share that is done, from 0 to 1, after every piece.
    """

    def __init__(
        self,
        model: "TFLocoformer",
        waveform: Tensor,
        memory: FrameMemory,
        progress: Callable[[float], None],
    ) -> None:
        config = model.config
        self.model = model
        self.waveform = waveform
        self.memory = memory
        self.progress = progress
        self.n_bins = config.n_fft // 2 + 1
        self.n_frames = 1 + max(len(waveform), config.n_fft // 2 + 1) // config.hop_length
        n_rows = PIECE_LENGTH if waveform.device.type == "cpu" else ACCELERATOR_ROWS
        self.piece_length = max(1, n_rows // self.n_bins)
        self.convolution = FastConvolution if self._pays_off() else DirectConvolution
        self.work, self.work_done = self.n_frames * (config.n_blocks + 1), 0

    def _pays_off(self) -> bool:
        """Tell whether `FastConvolution` saves time, and whether the numbers are exact enough for it."""
        weight = self.model.output_conv.weight
        return (
            weight.is_cpu
            and weight.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and self.model.config.feed_forward_kernel >= SHORTEST_FAST_KERNEL
            and self.n_frames >= SHORTEST_FAST_RECORDING
        )

    def run(self) -> Tensor:
        """Return the estimates (source, time)."""
        model: Any = self.model  # whose blocks mypy takes for bare modules
        first, *others = model.blocks
        frames, means = self._keep(self._begin(first, self._encode()), first.time, None)
        for previous, pair in zip(model.blocks, others, strict=False):
            pieces = self._begin(pair, self._end(previous.time, frames, means))
            frames, means = self._keep(pieces, pair.time, frames)
        estimates = self._decode(self._end(model.blocks[-1].time, frames, means))
        frames.release()
        return estimates

    def _encode(self) -> Pieces:
        """Make the features anew from the waveform."""
        moments = reduce(add, (Moments.of(x.flatten(0, 1)[None]) for x in self._input_features()))
        for x in self._input_features():
            with torch.autocast(x.device.type, enabled=False):
                normalized = moments.normalize(x.flatten(0, 1)[None], self.model.input_norm)
            yield normalized[0].unflatten(0, x.shape[:2])

    def _input_features(self) -> Pieces:
        """Yield the features before they are normalised; a convolution sees a frame on either side."""
        for start in range(0, self.n_frames, self.piece_length):
            first, stop = max(start - 1, 0), min(start + self.piece_length, self.n_frames)
            with torch.autocast(self.waveform.device.type, enabled=False):
                x = self.model.input_features(self._spectrum(first, min(stop + 1, self.n_frames))[None])
            yield x[0, start - first : stop - first]

    def _spectrum(self, first: int, last: int) -> Tensor:
        """Return frames (last - first, bins) of the waveform's STFT."""
        n_fft, hop = self.model.config.n_fft, self.model.config.hop_length
        reach = half_frame(n_fft, hop) + 1  # frames further in, no window meets the edge of a section
        begin, end = max(first - reach, 0), last + reach
        return stft(self.waveform[None, begin * hop : end * hop], n_fft, hop)[0, first - begin : last - begin]

    def _begin(self, pair: "BlockPair", pieces: Pieces) -> Pieces:
        """Apply the frequency block, and the time block up to its attention."""
        frequency: Any = pair.frequency
        before = FeedForward(frequency.feed_forward_1, self.convolution)
        after = FeedForward(frequency.feed_forward_2, self.convolution)
        along_bins = (after.along_bins(frequency.attention(before.along_bins(x))) for x in pieces)
        return FeedForward(pair.time.feed_forward_1, self.convolution).along_frames(along_bins)

    def _keep(
        self, pieces: Pieces, block: "MacaronBlock", frames: Frames | None
    ) -> tuple[Frames, KeyValueMeans]:
        """Write features where they were read, and add up the means for the time block's attention."""
        attention: Any = block.attention
        means, start = None, 0
        for x in pieces:
            part = attention.summarize(x.transpose(0, 1).contiguous(), self.n_frames)
            means = part if means is None else means + part
            if frames is None:
                frames = self.memory.allocate((1, self.n_frames, x[0].numel()), x)
            frames.write(start, x.flatten(1)[None])
            start += len(x)
            self._tell(len(x))
        assert frames is not None
        assert means is not None
        return frames, means

    def _end(self, block: "MacaronBlock", frames: Frames, means: KeyValueMeans) -> Pieces:
        """Apply the attention of a time block and what follows it."""
        feed_forward = FeedForward(block.feed_forward_2, self.convolution)
        return feed_forward.along_frames(self._attend(block, frames, means))

    def _attend(self, block: "MacaronBlock", frames: Frames, means: KeyValueMeans) -> Pieces:
        attention: Any = block.attention
        for x, core in with_neighbours(self._read(frames), attention.halo):
            sequences = x.transpose(0, 1).contiguous()  # (bins, frames, channels)
            attended = attention.update(sequences, means)
            if block.repeat_input:
                attended = attended + sequences
            yield attended[:, core].transpose(0, 1).contiguous()

    def _read(self, frames: Frames) -> Pieces:
        for start in range(0, self.n_frames, self.piece_length):
            stop = min(start + self.piece_length, self.n_frames)
            yield frames.read(start, stop)[0].unflatten(-1, (self.n_bins, -1))

    def _decode(self, pieces: Pieces) -> Tensor:
        """Turn features into the talkers' waveforms (source, time)."""
        n_fft, hop, n_samples = self.model.config.n_fft, self.model.config.hop_length, len(self.waveform)
        estimates, start = None, 0
        for spectrum, core in with_neighbours(self._spectra(pieces), half_frame(n_fft, hop)):
            first, stop = start - core.start, start + core.stop - core.start
            end = min(stop * hop, n_samples)
            with torch.autocast(spectrum.device.type, enabled=False):
                waveform = inverse_stft(spectrum.movedim(0, 1), hop, max(end - first * hop, 0))
            if estimates is None:
                estimates = waveform.new_empty(len(waveform), n_samples)
            estimates[:, start * hop : end] = waveform[:, core.start * hop :]
            self._tell(stop - start)
            start = stop
        assert estimates is not None
        return estimates

    def _spectra(self, pieces: Pieces) -> Pieces:
        """Yield the talkers' spectra (some frames, source, bins)."""
        for x, core in with_neighbours(pieces, 1):
            with torch.autocast(x.device.type, enabled=False):
                spectra = self.model.decode(x[None])[0].movedim(0, 1)
            yield spectra[core]

    def _tell(self, n_frames: int) -> None:
        self.work_done += n_frames
        self.progress(self.work_done / self.work)


def half_frame(n_fft: int, hop_length: int) -> int:
    """Return the frames on either side whose windows reach a sample next to a frame's centre."""
    return -(-n_fft // (2 * hop_length))


def with_neighbours(pieces: Iterable[Tensor], halo: int) -> Iterator[tuple[Tensor, slice]]:
    """Give pieces (some frames, ...) up to `halo` frames of what comes before and after them.

    Yields:
        A piece, cut anew to end where its neighbours have come, with these neighbours, and where in this the
        piece itself is. Always a copy: what came in may be written over.
    """
    window, start = None, 0
    for piece in pieces:
        window = torch.cat([piece] if window is None else [window, piece])
        stop = len(window) - halo
        if stop > start:
            yield window, slice(start, stop)
            first = max(stop - halo, 0)
            window, start = window[first:], stop - first
    if window is not None and len(window) > start:
        yield window, slice(start, len(window))


class FeedForward:
    """A feed-forward network as one sweep over a recording needs it.

    Args:
        layer: With the parameters.
        convolution: For both of its convolutions.
    """

    def __init__(
        self, layer: "ConvSwiGLU", convolution: "type[DirectConvolution] | type[FastConvolution]"
    ) -> None:
        self.layer = layer
        expand: Any = layer.expand
        contract: Any = layer.contract
        self.expand = convolution(expand.weight, expand.bias)
        self.contract = convolution(contract.weight.transpose(0, 1).flip(-1), contract.bias)

    def along_bins(self, x: Tensor) -> Tensor:
        """Apply the network along the bins of every frame; (frames, bins, channels), in and out."""
        if isinstance(self.expand, DirectConvolution):
            return self.layer(x)
        result = torch.empty_like(x)
        for some, out in zip(x.split(FRAMES_AT_ONCE), result.split(FRAMES_AT_ONCE), strict=True):
            self._along_bins(some, out)
        return result

    def _along_bins(self, x: Tensor, out: Tensor) -> None:
        # All frames are one sequence; the zeros before a frame are also those after the frame before.
        n_frames, n_bins, n_channels = x.shape
        reach, period = self.layer.reach, n_bins + self.layer.reach
        sequence = x.new_zeros(n_frames * period + 2 * reach, 1, n_channels)
        frames = sequence[: n_frames * period].view(n_frames, period, n_channels)
        frames[:, reach:] = self.layer.norm(x)
        y = self.contract(swiglu(self.expand(sequence)))
        torch.add(x, y.view(n_frames, period, n_channels)[:, :n_bins], out=out)

    def along_frames(self, pieces: Pieces) -> Pieces:
        """Apply the network along the frames of every bin; the pieces that come out are cut anew."""
        reach = self.layer.reach
        expand, contract = Stream(self.expand), Stream(self.contract)
        waiting: Tensor | None = None
        for piece, first, last in mark_ends(pieces):
            waiting = piece if waiting is None else torch.cat([waiting, piece])
            padding = (0, 0, 0, 0, reach * first, reach * last)
            hidden = swiglu(expand.push(F.pad(self.layer.norm(piece), padding), last))
            y = contract.push(hidden, last)
            if len(y):
                yield waiting[: len(y)] + y
                waiting = waiting[len(y) :]


def swiglu(x: Tensor) -> Tensor:
    """Scale the first half of the channels by the SiLU of the second."""
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


def mark_ends(pieces: Pieces) -> Iterator[tuple[Tensor, bool, bool]]:
    """Tell of every piece whether it is the first, and whether it is the last one."""
    previous, first = next(pieces), True
    for piece in pieces:
        yield previous, first, False
        previous, first = piece, False
    yield previous, first, True


class Stream:
    """Convolves a sequence that comes in pieces.

    Args:
        convolution: What is applied.
    """

    def __init__(self, convolution: "DirectConvolution | FastConvolution") -> None:
        self.convolution = convolution
        self.waiting: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        """Take the next frames (some frames, rows, channels); return the ones that are ready."""
        x = x if self.waiting is None else torch.cat([self.waiting, x])
        n_ready = max(len(x) - self.convolution.reach, 0)
        if not last:
            n_ready -= n_ready % self.convolution.step
        self.waiting = x[n_ready:]
        return self.convolution(x[: n_ready + self.convolution.reach])


class DirectConvolution:
    """Convolution along the first axis, without padding.

    Args:
        weight: (channels out, channels in, kernel).
        bias: (channels out).

    Shape: (length, rows, channels in) to (length - reach, rows, channels out); shorter ones to no length.
    """

    step = 1
    """Outputs that are best made at a time."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.reach = weight.shape[-1] - 1
        self.weight = weight.unsqueeze(-1)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) <= self.reach:
            return x.new_empty(0, x.shape[1], len(self.weight))
        image = x.movedim(-1, 0).unsqueeze(0)  # (1, channels, length, rows)
        return F.conv2d(image, self.weight, self.bias).squeeze(0).movedim(0, -1)


class FastConvolution:
    """The same as `DirectConvolution`, with a quarter of its multiplications for a kernel of 8.

    The sequence is cut into overlapping tiles, three kernels long. A Fourier transform at odd multiples of
    half the base frequency turns a tile into half as many complex numbers and no real one; three real
    multiplications give the product of each with the kernel's. Both transforms are small matrices.

    Args:
        weight: (channels out, channels in, kernel).
        bias: (channels out).

    Shape: as in `DirectConvolution`.
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
