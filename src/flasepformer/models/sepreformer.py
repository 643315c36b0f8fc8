"""SepReformer and FLA-SepReformer: a time-domain U-Net with one branch per talker from its skips on.

References:
    Shin et al., "Separate and Reconstruct: Asymmetric Encoder-Decoder for Speech Separation", NeurIPS 2024:
    the network, with softmax attention.
    Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528: focused linear attention and its gate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import (
    Carry,
    Delay,
    DepthwiseConv,
    FocusedLinearAttention,
    GatedResidualAttention,
    Given,
    GlobalLayer,
    GlobalNorm,
    Join,
    Layer,
    LayerNorm,
    Moments,
    RelativeAttention,
    RelativePositions,
    Weights,
    with_past,
)
from flasepformer.models.network import (
    Block,
    Modules,
    SeparationNetwork,
    X,
    check_causal,
    check_fields,
    decay,
)
from flasepformer.ops import cut_frames
from flasepformer.running import Performer, Whole

Attention = Literal["focused_linear", "linear", "softmax"]
"""Kinds of attention over the frames of a recording."""

NORM_EPS = 1e-8
"""Epsilon of the normalisations over the whole recording."""

DOWNSAMPLING_KERNEL = 5
"""Frames under the kernel that halves the frame rate between two stages."""

PIECE_SIZE = 1 << 19
"""Numbers in a piece of all talkers' features: few enough for the cache, many enough that the single
operations take much longer than it takes to start them."""

ACCELERATOR_PIECE_SIZE = 1 << 24
"""The same on other devices, which take longer to start an operation and less to do it."""

LIVE_TENSORS = 36
"""Tensors as large as a piece of all talkers' features that exist at a time."""

PIECE_LENGTH = 2048
"""Frames that a piece has at least, so that its halo does not count."""


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
    causal: bool = False
    """Let no frame depend on a later one, so that the network can be played live."""
    look_ahead: int = 0
    """Frames of the encoder that the last local block of a causal network looks ahead, and all else waits for
    it; at most half its kernel."""
    forget_seconds: float = 0.0
    """Time constant with which a causal network forgets what it sums up; 0: never."""

    def __post_init__(self) -> None:
        bounds = {
            "n_sources": (2, 16), "sample_rate": (2000, 384_000), "n_filters": (1, 4096), "filter_length": (1,
            4096), "hop_length": (1, 2048), "n_channels": (1, 2048), "n_heads": (1, 64), "n_stages": (1, 10),
            "n_encoder_blocks": (1, 16), "n_decoder_blocks": (1, 16), "feed_forward_expansion": (1, 16),
            "local_kernel_size": (1, 1025), "focusing_power": (1, 8), "value_kernel_size": (0, 129),
            "max_distance": (1, 65_536), "look_ahead": (0, 1024),
        }  # fmt: skip
        flags = ("gated", "masking", "auxiliary_heads", "pad_end", "normalize_variance", "causal")
        check_fields(self, bounds, flags, {"attention": get_args(Attention)})
        for name in ("local_kernel_size", "value_kernel_size"):
            if getattr(self, name) % 2 == 0 and getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be odd, so that nothing shifts in time, got {getattr(self, name)}"
                )
        if self.n_channels % self.n_heads:
            raise ValueError(
                f"n_channels must be a multiple of n_heads, got {self.n_channels} and {self.n_heads}"
            )
        if self.hop_length > self.filter_length:
            raise ValueError(
                f"hop_length must not exceed filter_length, got {self.hop_length} and {self.filter_length}"
            )
        if self.causal and (self.attention == "softmax" or self.normalize_variance):
            raise ValueError(
                "a causal network has linear attention and takes the mixture at the level it has; set "
                'attention to "focused_linear" and normalize_variance to false'
            )
        check_causal(self)
        if self.look_ahead > self.local_kernel_size // 2:
            raise ValueError(
                f"look_ahead must be at most half of local_kernel_size, {self.local_kernel_size // 2}, got "
                f"{self.look_ahead}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.layer_scale <= 1:
            raise ValueError(f"layer_scale must be above 0 and at most 1, got {self.layer_scale}")

    def decay(self, rate: int) -> float:
        """Return what is left of a sum after a frame where `rate` frames make one of the bottleneck."""
        return decay(self.forget_seconds, self.hop_length * 2**self.n_stages / rate / self.sample_rate)


class SepReformer(SeparationNetwork):
    """Separate the talkers of a mixture; cost and memory grow linearly with its length.

    With softmax attention the memory does, while the time grows with the square of the length.

    Args:
        config: Sizes of the network.

    References: Shin et al. (NeurIPS 2024), figure 2; Wang et al. (Interspeech 2025), figure 1.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__(config)
        self.config: SepReformerConfig = config
        self.window_length, self.features = config.filter_length, (config.n_filters,)
        self.lead = config.filter_length - config.hop_length if config.causal else 0
        self.look_ahead = config.look_ahead
        self.frames_per_step = 2**config.n_stages
        self.in_pieces = config.attention != "softmax"
        self.encoder = nn.Conv1d(1, config.n_filters, config.filter_length, config.hop_length, bias=False)
        finest = config.decay(self.frames_per_step)
        self.feature_norm = GlobalNorm(config.n_filters, NORM_EPS, config.causal, finest)
        self.feature_projection = Projection(config.n_filters, config.n_channels, bias=False)
        self.positions = (
            RelativePositions(config.max_distance, config.n_channels // config.n_heads)
            if config.attention == "softmax"
            else None
        )
        rates = [2**i for i in range(config.n_stages + 1)]  # frames per frame of the bottleneck
        self.encoder_stages: Modules[EncoderStage] = Modules(
            EncoderStage(config, rate, self.positions) for rate in rates[:0:-1]
        )
        self.bottleneck = Blocks(encoder_blocks(config, rates[0], self.positions))
        self.source_split = SourceSplit(config)
        self.decoder_stages: Modules[DecoderStage] = Modules(
            DecoderStage(config, rate, self.positions, config.look_ahead if rate == rates[-1] else 0)
            for rate in rates[1:]
        )
        self.output = OutputLayer(config)
        self.decoder = waveform_decoder(config)
        n_heads = config.n_stages if config.auxiliary_heads else 0
        self.auxiliary_outputs: Modules[OutputLayer] = Modules(OutputLayer(config) for _ in range(n_heads))
        self.auxiliary_decoders: Modules[nn.ConvTranspose1d] = Modules(
            waveform_decoder(config) for _ in range(n_heads)
        )

    def flow(self, run: Performer[X], frames: X) -> X:
        x = run.through(frames, self.feature_norm, self.feature_projection)
        x = run.fill(x, self.frames_per_step)
        skips: list[X] = []
        for stage in self.encoder_stages:
            x = run.keep(run.through(x, *stage.blocks.layers()))
            skips.append(run.through(x, *self._split(2 ** (self.config.n_stages - len(skips)))))
            x = run.through(x, stage.downsample, stage.downsample_norm, GELU)
        x = run.through(x, *self.bottleneck.layers(), *self._split(1))
        for upper in self.decoder_stages:
            run.tap(x)
            x = run.through(run.join(upper.fusion, x, skips.pop()), *upper.blocks.layers())
        x = run.cut(x, frames)
        if self.config.masking:
            if self.look_ahead:
                frames = run.through(frames, Delay(self.look_ahead))
            return run.join(Masking(self.decoder), frames, run.through(x, self.output))
        return run.through(x, Synthesis(self.output, self.decoder))

    def _split(self, rate: int) -> tuple[Layer, Layer]:
        return self.source_split, self.source_split.norm.fading(self.config.decay(rate))

    def analyse(self, windows: Tensor) -> Tensor:
        frames = cut_frames(windows, self.window_length, self.hop_length)
        return F.gelu(frames @ self.encoder.weight.squeeze(1).mT)  # (batch, frames, filters)

    def n_frames(self, n_samples: int) -> int:
        if self.causal:  # whole steps, until the last window that has a sample of the recording
            n_frames = -(-(n_samples + self.lag) // self.hop_length)
            return n_frames + -n_frames % self.frames_per_step
        beyond = max(n_samples - self.window_length, 0)
        # Differs from the paper: by default the last hop is padded; else its samples come out as zeros.
        n_hops = -(-beyond // self.hop_length) if self.config.pad_end else beyond // self.hop_length
        return n_hops + 1

    def piece_length(self, device: torch.device) -> int:
        size = PIECE_SIZE if device.type == "cpu" else ACCELERATOR_PIECE_SIZE
        return max(size // (self.config.n_channels * self.n_sources), PIECE_LENGTH)

    def numbers_at_a_time(self, n_frames: int) -> int:
        config = self.config
        return LIVE_TENSORS * config.n_sources * (n_frames + config.local_kernel_size) * config.n_channels

    def level_of(self, moments: Moments, peak: Tensor) -> Tensor:
        return (moments.squares / moments.count).sqrt()

    def forward_with_auxiliary(self, mixture: Tensor) -> tuple[Tensor, list[Tensor]]:
        frames, close = self.open(mixture)
        run = Whole(recompute=self.recompute)
        estimates = close(self.flow(run, frames))
        auxiliaries = []
        for output, decoder, branch in zip(
            self.auxiliary_outputs, self.auxiliary_decoders, run.taps, strict=False
        ):
            masks = resize_frames(output(branch), frames.shape[1])
            auxiliaries.append(close(Masking(decoder).join(frames, masks)))
        return estimates, auxiliaries

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


def waveform_decoder(config: SepReformerConfig) -> nn.ConvTranspose1d:
    """Return the synthesis filters: (batch, filters, frames) to (batch, 1, time)."""
    return nn.ConvTranspose1d(config.n_filters, 1, config.filter_length, config.hop_length, bias=False)


class Projection(nn.Linear, Layer):
    """A linear layer of the channels; (batch, frames, channels), in and out."""

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.out_features)


class Gelu(Layer):
    """GELU of every number."""

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return F.gelu(x)


GELU = Gelu()


class Blocks(Modules[Block]):
    """Blocks one after the other."""

    def layers(self) -> Iterator[Layer]:
        """Return the layers of all blocks, in order."""
        for block in self:
            yield from block.layers()


def encoder_blocks(config: SepReformerConfig, rate: int, positions: RelativePositions | None) -> list[Block]:
    """Return the global and local blocks of one resolution, in order; the rest as in `global_block`."""
    pairs = (
        [global_block(config, rate, positions), local_block(config)] for _ in range(config.n_encoder_blocks)
    )
    return [block for pair in pairs for block in pair]


def global_block(config: SepReformerConfig, rate: int, positions: RelativePositions | None) -> Block:
    """Return attention over all frames of the recording, then a feed-forward network.

    Args:
        config: Sizes of the network, and the kind of attention.
        rate: Frames per frame of the bottleneck.
        positions: For softmax attention.
    """
    attention = (
        linear_attention(config, rate)
        if positions is None
        else PooledResidualAttention(config, rate, positions)
    )
    return Block({"attention": attention, "feed_forward": GatedConvFeedForward(config)})


def local_block(config: SepReformerConfig, look_ahead: int = 0) -> Block:
    """Return a long convolution over neighbouring frames, then a feed-forward network."""
    convolution = ConvLocalAttention(config, look_ahead)
    return Block({"convolution": convolution, "feed_forward": GatedConvFeedForward(config)})


def source_block(config: SepReformerConfig) -> Block:
    """Return attention across the talkers of one frame, then a feed-forward network."""
    return Block({"attention": TalkerAttention(config), "feed_forward": GatedConvFeedForward(config)})


class EncoderStage(nn.Module):
    """Blocks at one resolution, then half of it."""

    def __init__(self, config: SepReformerConfig, rate: int, positions: RelativePositions | None) -> None:
        super().__init__()
        self.blocks = Blocks(encoder_blocks(config, rate, positions))
        self.downsample = DepthwiseConv(
            config.n_channels, DOWNSAMPLING_KERNEL, stride=2, causal=config.causal
        )
        self.downsample_norm = FrameBatchNorm(config.n_channels)


class DecoderStage(nn.Module):
    """Join the talkers' features with a skip at twice the resolution, refine them, compare the talkers.

    Args:
        config: Sizes of the network.
        rate: Frames per frame of the bottleneck.
        positions: For softmax attention.
        look_ahead: Frames that the last local block looks ahead.
    """

    def __init__(
        self, config: SepReformerConfig, rate: int, positions: RelativePositions | None, look_ahead: int = 0
    ) -> None:
        super().__init__()
        self.fusion = Fusion(2 * config.n_channels, config.n_channels)
        triples = (
            [global_block(config, rate, positions), local_block(config, ahead), source_block(config)]
            for ahead in [0] * (config.n_decoder_blocks - 1) + [look_ahead]
        )
        self.blocks = Blocks(block for triple in triples for block in triple)


def linear_attention(config: SepReformerConfig, rate: int = 1) -> GatedResidualAttention:
    """Return linear attention with its gate and residual connection; `rate` as in `global_block`."""
    n_channels, causal = config.n_channels, config.causal
    power = config.focusing_power if config.attention == "focused_linear" else 1
    attention = FocusedLinearAttention(
        n_channels, config.n_heads, power, config.value_kernel_size, causal, config.decay(rate)
    )
    gate_norm = LayerNorm(n_channels) if config.gated else None
    return GatedResidualAttention(attention, n_channels, LayerNorm(n_channels), gate_norm, causal=causal)


@dataclass(frozen=True)
class PooledFrames:
    """All that softmax attention at the resolution of the bottleneck needs, or a part of it."""

    parts: tuple[Tensor, ...]
    """(batch, some frames of the bottleneck, channels) each, in their order."""

    def __add__(self, other: "PooledFrames") -> "PooledFrames":
        return PooledFrames((*self.parts, *other.parts))


class PooledResidualAttention(GlobalLayer):
    """Residual softmax attention at the resolution of the bottleneck, gated at that of its input (EGA).

    Args:
        config: Sizes of the network.
        rate: Frames per frame of the bottleneck, which are averaged into one.
        positions: Of the frames of the bottleneck.

    Shape: (batch, frames, channels), in and out; pieces begin and end with whole frames of the bottleneck
    where they are summarized.
    """

    grows = True

    def __init__(self, config: SepReformerConfig, rate: int, positions: RelativePositions) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.rate = rate
        self.norm = LayerNorm(n_channels)
        self.attention = RelativeAttention(n_channels, config.n_heads, config.dropout)
        self.scale = LayerScale(config)
        self.gate = (
            nn.Sequential(LayerNorm(n_channels), nn.Linear(n_channels, n_channels)) if config.gated else None
        )
        self._positions = (positions,)  # in a tuple: their parameters are the network's

    def summarize(self, x: Tensor) -> PooledFrames:
        return PooledFrames((x.unflatten(1, (-1, self.rate)).mean(dim=2),))

    def given(self, summary: PooledFrames) -> Given:
        pooled = torch.cat(summary.parts, dim=1)
        attended = self.scale(self.attention(self.norm(pooled), self._positions[0](pooled.shape[1])))

        def update(x: Tensor, first: int) -> Tensor:
            last = first + x.shape[1]
            own = attended[:, first // self.rate : (last - 1) // self.rate + 1]
            own = own.repeat_interleave(self.rate, dim=1)[:, first % self.rate :][:, : x.shape[1]]
            if self.gate is None:
                return x + own.to(x.dtype)
            return torch.addcmul(x, own.to(x.dtype), self.gate(x).sigmoid().to(x.dtype))

        return update


class GatedConvFeedForward(Layer):
    """Residual feed-forward network with a short convolution before its gate (GCFN).

    Shape: (batch, frames, channels), in and out.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        hidden = config.feed_forward_expansion * config.n_channels
        self.norm = LayerNorm(config.n_channels)
        self.expand = nn.Linear(config.n_channels, 2 * hidden)
        self.convolution = DepthwiseConv(2 * hidden, 3, causal=config.causal)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.Linear(hidden, config.n_channels)
        self.scale = LayerScale(config)
        self.halo, self.causal, self.width = self.convolution.halo, config.causal, 2 * hidden

    def fold(self) -> tuple[Weights, Weights, Weights]:
        expand = self.norm.into(self.expand.weight, self.expand.bias)
        return expand, self.convolution.fold(), self.scale.into(self.contract)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        expand, convolution, contract = self.folded()
        expanded = F.linear(self.norm.plain(x), *expand)
        hidden = dropped(F.glu(self.convolution(expanded, carry, convolution)), self.dropout)
        return x + dropped(F.linear(hidden, *contract), self.dropout).to(x.dtype)


class ConvLocalAttention(Layer):
    """Residual gated convolution over neighbouring frames (CLA).

    Args:
        config: Sizes of the network.
        look_ahead: Frames by which what comes out of a causal layer is later than what goes in, and which the
            kernel, that looks back from the last of them, looks ahead.

    Shape: (batch, frames, channels), in and out.
    """

    def __init__(self, config: SepReformerConfig, look_ahead: int = 0) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.look_ahead = look_ahead
        self.norm = LayerNorm(n_channels)
        self.gate = nn.Linear(n_channels, 2 * n_channels)
        self.convolution = DepthwiseConv(n_channels, config.local_kernel_size, causal=config.causal)
        self.expand = nn.Linear(n_channels, 2 * n_channels)
        self.batch_norm = FrameBatchNorm(2 * n_channels)
        self.contract = nn.Linear(2 * n_channels, n_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = LayerScale(config)
        self.halo, self.causal = self.convolution.halo, config.causal

    def fold(self) -> tuple[Weights, Weights, Weights, Weights]:
        gate = self.norm.into(self.gate.weight, self.gate.bias)
        expand: Weights = (self.expand.weight, self.expand.bias)
        if not self.training:
            expand = self.batch_norm.into(*expand)
        return gate, self.convolution.fold(), expand, self.scale.into(self.contract)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        gate, convolution, expand, contract = self.folded()
        local = self.convolution(F.glu(F.linear(self.norm.plain(x), *gate)), carry, convolution)
        expanded = F.linear(local, *expand)
        if self.training:
            expanded = self.batch_norm(expanded)
        if self.look_ahead:
            x = with_past(x, self.look_ahead, carry, "residual")[:, : x.shape[1]]
        return x + dropped(F.linear(F.gelu(expanded), *contract), self.dropout).to(x.dtype)


class TalkerAttention(Layer):
    """Residual multi-head softmax attention over the talkers of one frame, without positions.

    Shape: (batch * source, frames, channels), in and out, the sources of one mixture next to each other.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.n_sources, self.n_heads, self.causal = config.n_sources, config.n_heads, config.causal
        self.dropout = nn.Dropout(config.dropout)
        self.norm = LayerNorm(n_channels)
        self.query = nn.Linear(n_channels, n_channels)
        self.key = nn.Linear(n_channels, n_channels)
        self.value = nn.Linear(n_channels, n_channels)
        self.output = nn.Linear(n_channels, n_channels)
        self.scale = LayerScale(config)

    def fold(self) -> tuple[Weights, Weights]:
        layers = self.query, self.key, self.value
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        return self.norm.into(weight, bias), self.scale.into(self.output)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        projection, output = self.folded()
        projected = F.linear(self.norm.plain(x), *projection)
        heads = projected.unflatten(0, (-1, self.n_sources)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.unbind(-3)  # (batch, source, frames, heads, head_dim)
        scale = query.shape[-1] ** -0.5
        if self.n_sources == 2 and not is_dropping(self.dropout):
            # The softmax of two scores is the sigmoid of their difference.
            first, second = key.unbind(1)
            weight = (query * ((first - second) * scale).unsqueeze(1)).sum(-1, keepdim=True).sigmoid()
            first, second = value.unbind(1)
            attended = torch.addcmul(
                second.unsqueeze(1), weight.to(value.dtype), (first - second).unsqueeze(1)
            )
        else:  # two or three: sums over products are far cheaper than a batch of tiny matrix products
            scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(-1) * scale  # (b, query, key, frames, heads)
            weights = self.dropout(scores.softmax(dim=2))
            attended = (weights.unsqueeze(-1) * value.unsqueeze(1)).sum(2)
        attended = attended.flatten(0, 1).flatten(-2)
        return x + dropped(F.linear(attended, *output), self.dropout).to(x.dtype)


class SourceSplit(Layer):
    """Give every talker a branch of its own, to be normalised by `norm` over all frames.

    Shape: (batch, frames, channels) to (batch * source, frames, channels), the sources of one mixture next to
    each other.
    """

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        width = config.n_channels * config.n_sources
        self.n_sources, self.causal = config.n_sources, config.causal
        self.expand = nn.Linear(config.n_channels, 4 * width)
        self.contract = nn.Linear(2 * width, width)
        self.norm = GlobalNorm(config.n_channels, NORM_EPS, config.causal)
        self.width = 4 * width

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        branches = self.contract(F.glu(self.expand(x)))
        return branches.unflatten(-1, (self.n_sources, -1)).transpose(1, 2).flatten(0, 1)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.n_sources, *shape[1:])


class Fusion(nn.Linear, Join):
    """Project talkers' features, repeated at twice their rate, and a skip, side by side.

    The half of the product that comes from below is computed at half the rate.
    """

    rate = 2

    def join(self, below: Tensor, x: Tensor, first: int = 0) -> Tensor:
        from_below, from_skip = self.weight.chunk(2, dim=1)
        spread = F.linear(below, from_below).repeat_interleave(2, dim=1)
        return F.linear(x, from_skip, self.bias) + spread[:, first % 2 :][:, : x.shape[1]]


class OutputLayer(nn.Sequential, Layer):
    """Map the talkers' features to frames of the waveform decoder.

    Shape: (batch, frames, channels) to (batch, frames, filters).
    """

    def __init__(self, config: SepReformerConfig) -> None:
        n_channels = config.n_channels
        super().__init__(
            nn.Linear(n_channels, 4 * n_channels), nn.GLU(), nn.Linear(2 * n_channels, config.n_filters)
        )
        self.n_filters = config.n_filters
        self.width = max(4 * n_channels, config.n_filters)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        expand, gate, contract = self
        return contract(gate(expand(x)))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.n_filters)


class Synthesis(Layer):
    """The output layer and the waveform decoder in one: talkers' features to windows of samples.

    Shape: (batch, frames, channels) to (batch, frames, filter_length).
    """

    def __init__(self, output: OutputLayer, decoder: nn.ConvTranspose1d) -> None:
        super().__init__()
        self.output, self.decoder, self.width = output, decoder, output.width

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        expand, gate, _ = self.output
        return F.linear(gate(expand(x)), *self.folded())

    def fold(self) -> Weights:
        """Return weight and bias of the output layer's last projection and the synthesis together."""
        synthesis = self.decoder.weight.squeeze(1).mT  # (filter_length, filters)
        contract = self.output.get_submodule("2")
        assert isinstance(contract, nn.Linear)
        return synthesis @ contract.weight, synthesis @ contract.bias

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.decoder.weight.shape[2])


class Masking(Join):
    """Mask the analysis for every talker, and turn it into windows of samples.

    Shape: frames of the analysis (batch, frames, filters) and masks before they are made positive (batch *
    source, frames, filters) to (batch * source, frames, filter_length).
    """

    def __init__(self, decoder: nn.ConvTranspose1d) -> None:
        self.synthesis = decoder.weight.squeeze(1)

    def join(self, below: Tensor, x: Tensor, first: int = 0) -> Tensor:
        masks = F.relu(x).unflatten(0, (below.shape[0], -1))
        return (masks * below.unsqueeze(1)).flatten(0, 1) @ self.synthesis


class FrameBatchNorm(nn.BatchNorm1d, Layer):
    """Batch normalisation over all frames of all recordings; (batch, frames, channels), in and out."""

    def fold(self) -> Weights:
        scale = self._scale()
        return scale, torch.addcmul(self.bias, self._mean(), scale, value=-1)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        if self.training:
            return super().forward(x.flatten(0, 1)).view_as(x)
        scale, shift = self.folded()
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def into(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a projection together with this normalisation in eval mode."""
        scale = self._scale()
        return weight * scale.unsqueeze(-1), (bias - self._mean()) * scale + self.bias

    def _scale(self) -> Tensor:
        assert self.running_var is not None
        return self.weight * torch.rsqrt(self.running_var + self.eps)

    def _mean(self) -> Tensor:
        assert self.running_mean is not None
        return self.running_mean


class LayerScale(nn.Module):
    """Learned scale of a residual branch, one number per channel; any shape (..., channels)."""

    def __init__(self, config: SepReformerConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((config.n_channels,), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def into(self, linear: nn.Linear) -> Weights:
        """Return weight and bias of a projection that is scaled afterwards."""
        return linear.weight * self.scale.unsqueeze(-1), linear.bias * self.scale


def dropped(x: Tensor, dropout: nn.Dropout) -> Tensor:
    """Apply a dropout if it does anything; to call it for nothing takes longer than to add up two frames."""
    return dropout(x) if is_dropping(dropout) else x


def is_dropping(dropout: nn.Dropout) -> bool:
    """Tell whether a dropout does anything."""
    return dropout.training and dropout.p > 0


def resize_frames(x: Tensor, n_frames: int) -> Tensor:
    """Stretch (batch, frames, channels) to `n_frames` by repeating frames (nearest neighbour)."""
    if x.shape[1] == n_frames:
        return x
    if x.shape[1] * 2 == n_frames:
        return x.repeat_interleave(2, dim=1)
    return F.interpolate(x.mT, size=n_frames).mT
