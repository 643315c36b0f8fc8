"""SepReformer and FLA-SepReformer: a time-domain U-Net with one branch per talker from its skips on.

References:
    Shin et al., "Separate and Reconstruct: Asymmetric Encoder-Decoder for Speech Separation", NeurIPS 2024:
    the network, with softmax attention.
    Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528: focused linear attention and its gate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import (
    DepthwiseConv,
    FocusedLinearAttention,
    GatedResidualAttention,
    RelativeAttention,
    RelativePositions,
)
from flasepformer.models.long_form import FrameMemory
from flasepformer.models.long_sepreformer import LongPass
from flasepformer.ops import map_pieces, overlap_add

Attention = Literal["focused_linear", "linear", "softmax"]
"""Kinds of attention over the frames of a recording."""

NORM_EPS = 1e-8
"""Epsilon of the normalisations over the whole recording."""

DOWNSAMPLING_KERNEL = 5
"""Frames under the kernel that halves the frame rate between two stages."""


@dataclass(frozen=True, kw_only=True)
class SepReformerConfig:
    """Everything needed to rebuild the network; saved next to the weights.

    The defaults are the paper's size B. The bounds keep a hostile or damaged config from allocating the
    machine's memory.
    """

    n_sources: int = 2
    """Talkers in each mixture."""
    sample_rate: int = 8000
    """Sample rate of the mixtures in Hz."""
    n_filters: int = 256
    """Filters of the waveform encoder."""
    filter_length: int = 16
    """Length of the encoder's filters in samples."""
    hop_length: int = 4
    """Samples between two frames of the waveform encoder."""
    n_channels: int = 128
    """Feature channels in all blocks (F of the paper): 64 in T, 128 in B, 256 in L."""
    n_heads: int = 8
    """Attention heads, over frames and over talkers."""
    n_stages: int = 4
    """Times that the frame rate is halved between the encoder's frames and the bottleneck."""
    n_encoder_blocks: int = 2
    """Pairs of a global and a local block in each encoder stage and in the bottleneck."""
    n_decoder_blocks: int = 3
    """Triples of a global, a local and a talker block in each decoder stage."""
    feed_forward_expansion: int = 3
    """Hidden width of the gated feed-forward networks, in multiples of `n_channels`."""
    local_kernel_size: int = 65
    """Frames under the kernel of a local block, odd."""
    attention: Attention = "focused_linear"
    """Attention over frames: "focused_linear" makes an FLA-SepReformer, "softmax" a SepReformer; "linear" is
    the first without its focusing function."""
    gated: bool = True
    """Scale the attention by the gate."""
    focusing_power: int = 3
    """Focusing factor p of focused linear attention."""
    value_kernel_size: int = 5
    """Frames under the convolution of the linear attention's values, odd; 0 leaves the convolution out."""
    max_distance: int = 2000
    """Frames of the bottleneck from which on softmax attention does not tell distances apart."""
    dropout: float = 0.05
    """Share of features dropped in training: 0.05 in T and B, 0.1 in L."""
    layer_scale: float = 1e-5
    """Initial scale of the residual branches; a short training learns sooner from a larger one."""
    masking: bool = False
    """Estimate masks of the encoder's output instead of the output itself; the paper's main path has none."""
    auxiliary_heads: bool = True
    """Keep the heads for the multi-stage auxiliary loss; separation does not need them."""
    pad_end: bool = True
    """Pad the mixture to whole frames, so that its last samples are estimated too; the published models leave
    them zero."""
    normalize_variance: bool = False
    """Divide the mixture by its standard deviation and give it back to the estimates."""

    def __post_init__(self) -> None:
        bounds = {
            "n_sources": (2, 16), "sample_rate": (2000, 384_000), "n_filters": (1, 4096), "filter_length": (1,
            4096), "hop_length": (1, 2048), "n_channels": (1, 2048), "n_heads": (1, 64), "n_stages": (1, 10),
            "n_encoder_blocks": (1, 16), "n_decoder_blocks": (1, 16), "feed_forward_expansion": (1, 16),
            "local_kernel_size": (1, 1025), "focusing_power": (1, 8), "value_kernel_size": (0, 129),
            "max_distance": (1, 65_536),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
        for name in ("local_kernel_size", "value_kernel_size"):
            if getattr(self, name) % 2 == 0 and getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be odd, so that nothing shifts in time, got {getattr(self, name)}"
                )
        if self.attention not in get_args(Attention):
            kinds = ", ".join(get_args(Attention))
            raise ValueError(f"attention must be one of {kinds}, got {self.attention!r}")
        for name in ("gated", "masking", "auxiliary_heads", "pad_end", "normalize_variance"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.n_channels % self.n_heads:
            raise ValueError(
                f"n_channels must be a multiple of n_heads, got {self.n_channels} and {self.n_heads}"
            )
        if self.hop_length > self.filter_length:
            raise ValueError(
                f"hop_length must not exceed filter_length, got {self.hop_length} and {self.filter_length}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.layer_scale <= 1:
            raise ValueError(f"layer_scale must be above 0 and at most 1, got {self.layer_scale}")


class SepReformer(nn.Module):
    """Separate the talkers of a mixture; cost and memory grow linearly with its length.

    With softmax attention the memory does, while the time grows with the square of the length.

    Args:
        config: Sizes of the network.

    Shape: mixture (batch, time) to estimates (batch, source, time), of any length from one sample on.

    Raises:
        ValueError: If the mixture is not a floating-point tensor of two axes with at least one sample.

    References: Shin et al. (NeurIPS 2024), figure 2; Wang et al. (Interspeech 2025), figure 1.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Conv1d(1, config.n_filters, config.filter_length, config.hop_length, bias=False)
        self.feature_norm = nn.GroupNorm(1, config.n_filters, eps=NORM_EPS)
        self.feature_projection = nn.Linear(config.n_filters, config.n_channels, bias=False)
        self.positions = (
            RelativePositions(config.max_distance, config.n_channels // config.n_heads)
            if config.attention == "softmax"
            else None
        )
        rates = [2**i for i in range(config.n_stages + 1)]  # frames per frame of the bottleneck
        self.encoder_stages = nn.ModuleList(EncoderStage(config, rate) for rate in rates[:0:-1])
        self.bottleneck = Blocks(encoder_blocks(config, rates[0]))
        self.source_split = SourceSplit(config)
        self.decoder_stages = nn.ModuleList(DecoderStage(config, rate) for rate in rates[1:])
        self.output = OutputLayer(config)
        self.decoder = waveform_decoder(config)
        n_heads = config.n_stages if config.auxiliary_heads else 0
        self.auxiliary_outputs = nn.ModuleList(OutputLayer(config) for _ in range(n_heads))
        self.auxiliary_decoders = nn.ModuleList(waveform_decoder(config) for _ in range(n_heads))

    @torch.no_grad()
    def initialize_fourier(self) -> None:
        """Start from filters that are a windowed Fourier basis instead of random ones.

        Each cosine and sine stands in the encoder twice, with both signs, so that GELU loses nothing (GELU(a)
        - GELU(-a) = a). With `n_filters` = 2 `filter_length` = 4 `hop_length` the decoder gives back what the
        encoder was given, exactly, and a short training need not learn it. With masking, the masks start by
        giving every talker an equal share.

        Raises:
            ValueError: If there are more filters than the basis has, which is 2 `filter_length`.
        """
        config = self.config
        n_filters, length = config.n_filters, config.filter_length
        if n_filters > 2 * length or n_filters % 2:
            raise ValueError(
                f"a Fourier basis of {length} samples gives an even number of at most {2 * length} filters, "
                f"got n_filters {n_filters}"
            )
        basis = torch.fft.rfft(torch.eye(length), norm="ortho").mT  # (frequencies, length)
        rows = torch.stack([basis.real, basis.imag], dim=1).flatten(0, 1) * 2**0.5
        rows[[0, -2]] /= 2**0.5  # the constant and, at an even length, the highest frequency have no sine
        rows = rows[rows.norm(dim=1) > 0.5][: n_filters // 2] * torch.hann_window(length).sqrt()
        filters = torch.cat([rows, -rows]).unsqueeze(1)  # (filters, 1, length)
        self.encoder.weight.copy_(filters)
        for decoder, output in zip(
            [self.decoder, *self.auxiliary_decoders], [self.output, *self.auxiliary_outputs], strict=True
        ):
            decoder.get_parameter("weight").copy_(filters)
            if config.masking:
                output.get_parameter("2.bias").fill_(1 / config.n_sources)

    @property
    def sample_rate(self) -> int:
        """Sample rate of mixture and estimates in Hz."""
        return self.config.sample_rate

    @property
    def n_sources(self) -> int:
        """Number of estimates for each mixture."""
        return self.config.n_sources

    def forward(self, mixture: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return self._separate(mixture, auxiliary=False)[0]
        return self.separate_in_pieces(mixture)

    def forward_with_auxiliary(self, mixture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Separate, and let the auxiliary heads separate too, for the multi-stage loss.

        Args:
            mixture: (batch, time).

        Returns:
            The estimates (batch, source, time), and those of every auxiliary head, coarsest stage first.
        """
        return self._separate(mixture, auxiliary=True)

    @torch.no_grad()
    def separate_in_pieces(
        self,
        mixture: Tensor,
        memory: FrameMemory | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Separate a recording of any length in pieces of time, with the numbers of the whole.

        Args:
            mixture: (batch, time).
            memory: Room for what is kept of the recording between two sweeps over it; by default without
                limit.
            progress: Told the share that is done, from 0 to 1, after every piece.

        Returns:
            The estimates (batch, source, time), as the whole at once gives them in eval mode. With softmax
            attention the memory is linear in the length too, but the time is not.
        """
        normalized, deviation = self._normalize(mixture)
        long_pass = LongPass(self, self._pad(normalized), memory or FrameMemory(), progress)
        return self._trim(long_pass.run(), mixture.shape[-1]) * deviation

    def _separate(self, mixture: Tensor, auxiliary: bool) -> tuple[Tensor, list[Tensor]]:
        normalized, deviation = self._normalize(mixture)
        n_samples = mixture.shape[-1]
        encoded = self.encode(self._pad(normalized))  # (batch, frames, filters)
        branches = self._branches(encoded)
        estimates = self._decode(
            self.output, self.decoder, branches[-1], encoded, n_samples, self.config.masking
        )
        heads = (
            zip(self.auxiliary_outputs, self.auxiliary_decoders, branches[:-1], strict=False)
            if auxiliary
            else ()
        )
        auxiliaries = [
            self._decode(output, decoder, branch, encoded, n_samples, masking=True) * deviation
            for output, decoder, branch in heads
        ]
        return estimates * deviation, auxiliaries

    def _normalize(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Check the mixture; return it with unit variance if that is wanted, and what it was divided by."""
        if mixture.ndim != 2 or mixture.shape[-1] == 0 or not mixture.is_floating_point():
            raise ValueError(
                "mixture must be floating point (batch, time) with at least one sample, "
                f"got {tuple(mixture.shape)} of {mixture.dtype}; add a batch axis with mixture[None]"
            )
        if not self.config.normalize_variance:
            return mixture, mixture.new_ones(())
        deviation = mixture.std(dim=-1, correction=0, keepdim=True).unsqueeze(1)  # (batch, 1, 1)
        # No deviation: a constant, or one sample.
        return mixture / torch.where(deviation > 0, deviation, 1)[:, 0], deviation

    def _pad(self, mixture: Tensor) -> Tensor:
        """Pad (batch, time) to whole frames; a very short mixture to one filter."""
        beyond = mixture.shape[-1] - self.config.filter_length
        # Differs from the paper: by default the last hop is padded; else its samples come out as zeros.
        missing = -beyond if beyond < 0 else -beyond % self.config.hop_length * self.config.pad_end
        return F.pad(mixture, (0, missing))

    def _trim(self, waveforms: Tensor, n_samples: int) -> Tensor:
        """Turn (batch * source, time of the frames) into (batch, source, n_samples)."""
        waveforms = waveforms[:, :n_samples]
        waveforms = F.pad(waveforms, (0, n_samples - waveforms.shape[-1]))
        return waveforms.unflatten(0, (-1, self.config.n_sources))

    def encode(self, mixture: Tensor) -> Tensor:
        """Turn whole frames (batch, time) into the encoder's output (batch, frames, filters)."""
        frames = mixture.unfold(-1, self.config.filter_length, self.config.hop_length)
        return F.gelu(frames @ self.encoder.weight.squeeze(1).mT)

    def _branches(self, encoded: Tensor) -> list[Tensor]:
        """Return the talkers' features before each decoder stage and after the last.

        Each is (batch * source, frames, channels), coarsest first.
        """
        x = self.feature_projection(self.feature_norm(encoded.mT).mT)  # (batch, frames, channels)
        n_frames = x.shape[1]
        x = F.pad(x, (0, 0, 0, -n_frames % 2**self.config.n_stages))
        n_coarse = x.shape[1] // 2**self.config.n_stages  # frames of the bottleneck
        positions = None if self.positions is None else self.positions(n_coarse)
        skips = []
        for encoder_stage in self.encoder_stages:
            skip, x = encoder_stage(x, positions)
            skips.append(self.source_split(skip))
        branches = [self.source_split(self.bottleneck(x, positions))]
        for decoder_stage in self.decoder_stages:
            branches.append(decoder_stage(branches[-1], skips.pop(), positions))
        branches[-1] = branches[-1][:, :n_frames]
        return branches

    def _decode(
        self,
        output: nn.Module,
        decoder: nn.Module,
        branch: Tensor,
        encoded: Tensor,
        n_samples: int,
        masking: bool,
    ) -> Tensor:
        """Turn the talkers' features into waveforms, (batch, source, time)."""
        n_sources, n_frames = self.config.n_sources, encoded.shape[1]
        synthesis = decoder.get_parameter("weight").squeeze(1)  # (filters, window)
        if masking:  # the masks at the branch's own resolution: to repeat them comes cheaper
            masks = resize_frames(F.relu(output(branch)), n_frames).unflatten(0, (-1, n_sources))
            windows = (masks * encoded.unsqueeze(1)).flatten(0, 1) @ synthesis
        else:
            windows = map_pieces(lambda piece: output(piece) @ synthesis, branch)
        return self._trim(overlap_add(windows, self.config.hop_length), n_samples)


def waveform_decoder(config: SepReformerConfig) -> nn.ConvTranspose1d:
    """Return the synthesis filters: (batch, filters, frames) to (batch, 1, time)."""
    return nn.ConvTranspose1d(config.n_filters, 1, config.filter_length, config.hop_length, bias=False)


def encoder_blocks(config: SepReformerConfig, rate: int) -> list[nn.Module]:
    """Return the global and local blocks of one resolution, in order; `rate` as in `GlobalBlock`."""
    pairs = ([GlobalBlock(config, rate), LocalBlock(config)] for _ in range(config.n_encoder_blocks))
    return [block for pair in pairs for block in pair]


def resize_frames(x: Tensor, n_frames: int) -> Tensor:
    """Stretch (batch, frames, channels) to `n_frames` by repeating frames (nearest neighbour)."""
    if x.shape[1] == n_frames:
        return x
    if x.shape[1] * 2 == n_frames:
        return x.repeat_interleave(2, dim=1)
    return F.interpolate(x.mT, size=n_frames).mT


class Blocks(nn.ModuleList):
    """Blocks one after the other; the global ones get the relative positions of softmax attention.

    Shape: (batch, frames, channels), in and out.
    """

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        for block in self:
            x = block(x, positions) if isinstance(block, GlobalBlock) else block(x)
        return x


class EncoderStage(nn.Module):
    """Blocks at one resolution, then half of it.

    Shape: (batch, frames, channels) to itself processed, and (batch, frames / 2, channels).
    """

    def __init__(self, config: SepReformerConfig, rate: int) -> None:
        super().__init__()
        self.blocks = Blocks(encoder_blocks(config, rate))
        self.downsample = DepthwiseConv(config.n_channels, DOWNSAMPLING_KERNEL, stride=2)
        self.downsample_norm = FrameBatchNorm(config.n_channels)

    def forward(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.blocks(x, positions)
        return x, F.gelu(self.downsample_norm(self.downsample(x)))


class DecoderStage(nn.Module):
    """Join the talkers' features with a skip at twice the resolution, refine them, compare the talkers.

    Shape: (batch * source, frames / 2, channels) and skip (batch * source, frames, channels) to the skip's
    shape.
    """

    def __init__(self, config: SepReformerConfig, rate: int) -> None:
        super().__init__()
        self.fusion = nn.Linear(2 * config.n_channels, config.n_channels)
        triples = (
            [GlobalBlock(config, rate), LocalBlock(config), SourceBlock(config)]
            for _ in range(config.n_decoder_blocks)
        )
        self.blocks = Blocks(block for triple in triples for block in triple)

    def forward(self, x: Tensor, skip: Tensor, positions: Tensor | None) -> Tensor:
        joined = torch.cat([resize_frames(x, skip.shape[1]), skip], dim=-1)
        return self.blocks(self.fusion(joined), positions)


class GlobalBlock(nn.Module):
    """Attention over all frames of the recording, then a feed-forward network.

    Args:
        config: Sizes of the network, and the kind of attention.
        rate: Frames per frame of the bottleneck.

    Shape: (batch, frames, channels), in and out; positions as `RelativePositions` gives them, for softmax
    attention.
    """

    def __init__(self, config: SepReformerConfig, rate: int) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.attention: Any
        if config.attention == "softmax":
            self.attention = PooledResidualAttention(config, rate)
        else:
            power = config.focusing_power if config.attention == "focused_linear" else 1
            attention = FocusedLinearAttention(n_channels, config.n_heads, power, config.value_kernel_size)
            gate_norm = nn.LayerNorm(n_channels) if config.gated else None
            self.attention = GatedResidualAttention(
                attention, n_channels, nn.LayerNorm(n_channels), gate_norm
            )
        self.feed_forward = GatedConvFeedForward(config)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        x = self.attention(x) if positions is None else self.attention(x, positions)
        return self.feed_forward(x)


class PooledResidualAttention(nn.Module):
    """Residual softmax attention at the resolution of the bottleneck, gated at that of its input (EGA).

    Args:
        config: Sizes of the network.
        rate: Frames per frame of the bottleneck, which are averaged into one.

    Shape: (batch, frames, channels) and positions as `RelativePositions` gives them for the bottleneck's
    frames, to (batch, frames, channels).
    """

    def __init__(self, config: SepReformerConfig, rate: int) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.rate = rate
        self.norm = nn.LayerNorm(n_channels)
        self.attention = RelativeAttention(n_channels, config.n_heads, config.dropout)
        self.scale = LayerScale(config)
        self.gate = (
            nn.Sequential(nn.LayerNorm(n_channels), nn.Linear(n_channels, n_channels))
            if config.gated
            else None
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        pooled = x.unflatten(1, (-1, self.rate)).mean(dim=2)
        attended = self.scale(self.attention(self.norm(pooled), positions))
        attended = attended.repeat_interleave(self.rate, dim=1)
        if self.gate is not None:
            attended = torch.sigmoid(self.gate(x)) * attended
        return x + attended


class LocalBlock(nn.Module):
    """A long convolution over neighbouring frames, then a feed-forward network.

    Shape: (batch, frames, channels), in and out.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        self.convolution = ConvLocalAttention(config)
        self.feed_forward = GatedConvFeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.convolution(x))


class SourceBlock(nn.Module):
    """Attention across the talkers of one frame, then a feed-forward network.

    Shape: (batch * source, frames, channels), in and out, the sources of one mixture next to each other.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        self.n_sources = config.n_sources
        self.attention = FrameAttention(config)
        self.feed_forward = GatedConvFeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unflatten(0, (-1, self.n_sources)).transpose(1, 2)  # (batch, frames, source, channels)
        attended = self.attention(frames).transpose(1, 2).flatten(0, 1)
        return self.feed_forward(x + attended)


class FrameAttention(nn.Module):
    """Multi-head softmax attention over the few entries of one frame, without positions.

    Shape: (batch, frames, entries, channels), in and out.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.n_heads = config.n_heads
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(n_channels)
        self.query = nn.Linear(n_channels, n_channels)
        self.key = nn.Linear(n_channels, n_channels)
        self.value = nn.Linear(n_channels, n_channels)
        self.output = nn.Linear(n_channels, n_channels)
        self.scale = LayerScale(config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        query, key, value = (
            layer(x).unflatten(-1, (self.n_heads, -1)) for layer in (self.query, self.key, self.value)
        )
        # Two or three entries: sums over products are far cheaper here than a batch of tiny matrix products.
        scores = (query.unsqueeze(3) * key.unsqueeze(2)).sum(-1) / query.shape[
            -1
        ] ** 0.5  # (b, frames, query, key, heads)
        weights = self.dropout(scores.softmax(dim=3))
        attended = (
            (weights.unsqueeze(-1) * value.unsqueeze(2)).sum(3).flatten(3)
        )  # (batch, frames, entries, channels)
        return self.scale(self.dropout(self.output(attended)))


class GatedConvFeedForward(nn.Module):
    """Residual feed-forward network with a short convolution before its gate (GCFN).

    Shape: (batch, frames, channels), in and out.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        hidden = config.feed_forward_expansion * config.n_channels
        self.norm = nn.LayerNorm(config.n_channels)
        self.expand = nn.Linear(config.n_channels, 2 * hidden)
        self.convolution = DepthwiseConv(2 * hidden, 3)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.Linear(hidden, config.n_channels)
        self.scale = LayerScale(config)

    @property
    def halo(self) -> int:
        """Frames on either side that a frame depends on."""
        return self.convolution.padding

    def forward(self, x: Tensor) -> Tensor:
        return map_pieces(self._forward, x, halo=self.halo, width=self.expand.out_features)

    def _forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.glu(self.convolution(self.expand(self.norm(x)))))
        return x + self.scale(self.dropout(self.contract(hidden)))


class ConvLocalAttention(nn.Module):
    """Residual gated convolution over neighbouring frames (CLA).

    Shape: (batch, frames, channels), in and out.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.norm = nn.LayerNorm(n_channels)
        self.gate = nn.Linear(n_channels, 2 * n_channels)
        self.convolution = DepthwiseConv(n_channels, config.local_kernel_size)
        self.expand = nn.Linear(n_channels, 2 * n_channels)
        self.batch_norm = FrameBatchNorm(2 * n_channels)
        self.contract = nn.Linear(2 * n_channels, n_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = LayerScale(config)

    @property
    def halo(self) -> int:
        """Frames on either side that a frame depends on."""
        return self.convolution.padding

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # batch normalisation needs all frames
            return self._forward(x)
        return map_pieces(self._forward, x, halo=self.halo)

    def _forward(self, x: Tensor) -> Tensor:
        local = self.convolution(F.glu(self.gate(self.norm(x))))
        hidden = F.gelu(self.batch_norm(self.expand(local)))
        return x + self.scale(self.dropout(self.contract(hidden)))


class SourceSplit(nn.Module):
    """Give every talker a branch of its own.

    Shape: (batch, frames, channels) to (batch * source, frames, channels), the sources of one mixture next to
    each other.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        width = config.n_channels * config.n_sources
        self.n_sources = config.n_sources
        self.expand = nn.Linear(config.n_channels, 4 * width)
        self.contract = nn.Linear(2 * width, width)
        self.norm = nn.GroupNorm(1, config.n_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.split(x).mT).mT

    def split(self, x: Tensor) -> Tensor:
        """Return the branches before they are normalised over all frames."""
        x = map_pieces(lambda piece: self.contract(F.glu(self.expand(piece))), x)
        return x.unflatten(-1, (self.n_sources, -1)).transpose(1, 2).flatten(0, 1)


class OutputLayer(nn.Sequential):
    """Map the talkers' features to frames of the waveform decoder.

    Shape: (batch, frames, channels) to (batch, frames, filters).
    """

    def __init__(self, config: SepReformerConfig) -> None:
        n_channels = config.n_channels
        super().__init__(
            nn.Linear(n_channels, 4 * n_channels), nn.GLU(), nn.Linear(2 * n_channels, config.n_filters)
        )


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all frames of all recordings; (batch, frames, channels), in and out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class LayerScale(nn.Module):
    """Learned scale of a residual branch, one number per channel; any shape (..., channels)."""

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((config.n_channels,), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
