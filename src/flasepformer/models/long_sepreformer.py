"""The forward pass of a SepReformer in pieces of time, with the numbers of the whole.

See `models.long_form` for how, and `models.merged_sepreformer` for what is applied to a piece. All that
exists for the whole recording are the talkers' skips, each half as long as the one before, and one more
sequence. On a CPU every core works on a piece of its own. Softmax attention is computed between two sweeps,
over the frames of the bottleneck; that is the part whose time grows with the square of the length.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import accumulate, pairwise
from math import ceil
from operator import add
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.models.long_form import FrameMemory, Frames, Moments, Piece, Source, read_piece
from flasepformer.models.merged_sepreformer import (
    MergedDownsample,
    MergedEncoder,
    MergedFusion,
    MergedGlobalBlock,
    MergedLocalBlock,
    MergedOutput,
    MergedPooledBlock,
    MergedSourceBlock,
    MergedSourceSplit,
    PooledFrames,
)
from flasepformer.ops import KeyValueMeans, Threads, cached_frames, overlap_add

if TYPE_CHECKING:
    from flasepformer.models.sepreformer import EncoderStage, SepReformer, SepReformerConfig

PIECE_SIZE = 1 << 19
"""Numbers in a piece of all talkers' features: few enough for the cache, many enough that the single
operations take much longer than it takes to start them."""

PIECE_LENGTH = 2048
"""Frames that a piece has at least, so that its halo does not count."""

MIN_PIECE_LENGTH = 512
"""Frames to which a piece is cut so that every core has one."""

State = KeyValueMeans | PooledFrames
"""What a global block needs of the whole recording."""

_Result = TypeVar("_Result")


class LongPass:
    """One forward pass.

    Args:
        model: A network in eval mode.
        mixture: (batch, time), whole frames.
        memory: Room for what is kept between two sweeps.
        progress: Told the share that is done, from 0 to 1, after every piece.
    """

    def __init__(
        self,
        model: "SepReformer",
        mixture: Tensor,
        memory: FrameMemory,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.model = model
        self.mixture = mixture
        self.memory = memory
        self.progress = progress
        self.dtype = _computing_type(mixture)
        config = model.config
        self.n_encoded = (mixture.shape[-1] - config.filter_length) // config.hop_length + 1
        self.n_frames = self.n_encoded + -self.n_encoded % 2**config.n_stages
        self.work, self.work_done = count_work(model, self.n_frames), 0
        self.threads = Threads(mixture.device)
        n_coarse = self.n_frames // 2**config.n_stages
        self.positions = None if model.positions is None else model.positions(n_coarse)

    def run(self) -> Tensor:
        """Return the estimates (batch * source, time), time as in the mixture."""
        with torch.autocast(self.mixture.device.type, enabled=False), self.threads:
            return self._run_all()

    def _run_all(self) -> Tensor:
        model: Any = self.model  # whose stages mypy takes for bare modules
        self.encoder = MergedEncoder(model, self.dtype)
        self.split = MergedSourceSplit(model.source_split, self.dtype)
        x: Source = self._encode()
        skips = []
        for stage in model.encoder_stages:
            skip, x = self._run_encoder_stage(stage, x)
            skips.append(skip)
        branches = Branches(model.source_split.norm, x.n_frames, self.memory)
        for piece, split in self._sweep(
            model.bottleneck, x, lambda piece, y: measured(self.split(piece.core(y)))
        ):
            branches.write(piece.start, *split)
        x = branches
        *stages, last_stage = model.decoder_stages
        for stage in stages:
            x = self._run(stage.blocks, self._join(stage.fusion, x, skips.pop()))
        return self._decode(last_stage.blocks, self._join(last_stage.fusion, x, skips.pop()))

    def _encode(self) -> "Encoded":
        """Run the encoder, and keep its projection."""
        length = cached_frames(self.mixture, self.model.config.n_filters)
        moments: list[Moments] = []
        frames: Frames | None = None

        def encode(start: int) -> tuple[int, Tensor, Moments]:
            encoded = self._read_encoded(start, min(start + length, self.n_encoded))
            projected = self.encoder.projection(encoded).to(self.mixture.dtype)
            return start, projected, Moments.of(encoded)

        for start, projected, part in self.threads.map(encode, range(0, self.n_encoded, length)):
            if frames is None:
                shape = (projected.shape[0], self.n_frames, projected.shape[2])
                frames = self.memory.allocate(shape, projected)
            frames.write(start, projected)
            moments.append(part)
        assert frames is not None
        return Encoded(self.encoder, frames, reduce(add, moments), self.n_encoded)

    def _read_encoded(self, first: int, last: int) -> Tensor:
        """Return the encoder's output (batch, last - first, filters)."""
        hop, length = self.model.config.hop_length, self.model.config.filter_length
        return self.encoder(self.mixture[:, first * hop : (last - 1) * hop + length])

    def _run_encoder_stage(self, stage: "EncoderStage", x: Source) -> tuple["Branches", Frames]:
        """Return the talkers' skip, and the features at half the frame rate."""
        n_frames = x.n_frames
        skip = Branches(self.model.source_split.norm, n_frames, self.memory)
        below: Frames | None = None
        downsample = MergedDownsample(stage, self.dtype)

        def split_and_halve(piece: Piece, y: Tensor) -> tuple[tuple[Tensor, Moments], Tensor]:
            half = downsample(y)[:, (piece.start - piece.first) // 2 :]
            return measured(self.split(piece.core(y))), half[:, : (piece.stop - piece.start) // 2]

        for piece, (split, half) in self._sweep(stage.blocks, x, split_and_halve, margin=downsample.reach):
            skip.write(piece.start, *split)
            if below is None:
                below = self.memory.allocate((half.shape[0], n_frames // 2, half.shape[2]), half)
            below.write(piece.start // 2, half)
        assert below is not None
        return skip, below

    def _join(self, fusion: nn.Linear, below: Source, skip: "Branches") -> "Joined":
        return Joined(MergedFusion(fusion, self.dtype), below, skip)

    def _decode(self, blocks: Iterable[nn.Module], x: Source) -> Tensor:
        """Turn the talkers' features into waveforms."""
        config, mixture = self.model.config, self.mixture
        output = MergedOutput(self.model, self.dtype)
        waveforms = mixture.new_zeros(mixture.shape[0] * config.n_sources, mixture.shape[1])

        def decode_part(start: int, features: Tensor) -> Tensor:
            made = output(features)
            if not config.masking:
                return made
            masks = F.relu(made).unflatten(0, (-1, config.n_sources))
            encoded = self._read_encoded(start, start + features.shape[1]).unsqueeze(1)
            return output.synthesis(masks.mul_(encoded).flatten(0, 1))

        def decode(piece: Piece, y: Tensor) -> Tensor | None:
            stop = min(piece.stop, self.n_encoded)  # the frames that fill up the coarsest one are cut
            if stop <= piece.start:
                return None
            features = piece.core(y)[:, : stop - piece.start]
            parts = features.split(cached_frames(features, output.width), dim=1)
            starts = accumulate((part.shape[1] for part in parts), initial=piece.start)
            windows = torch.cat([decode_part(*part) for part in zip(starts, parts, strict=False)], dim=1)
            return overlap_add(windows.to(mixture.dtype), config.hop_length)

        for piece, samples in self._sweep(blocks, x, decode):
            if samples is not None:
                start = piece.start * config.hop_length
                waveforms[:, start : start + samples.shape[1]] += samples
        return waveforms

    def _run(self, blocks: Iterable[nn.Module], x: Source) -> Frames:
        """Apply blocks and keep what comes out; releases what went in."""
        groups = self._merge(blocks)
        means: State | None = self._summarize(groups[0][0], x)
        for group, following in pairwise([*groups, [None]]):
            x, means = self._update(group, means, x, following[0])
        assert isinstance(x, Frames)
        return x

    def _sweep(
        self,
        blocks: Iterable[nn.Module],
        x: Source,
        then: Callable[[Piece, Tensor], _Result],
        margin: int = 0,
    ) -> Iterator[tuple[Piece, _Result]]:
        """Apply blocks and give away what comes out, piece by piece; releases what went in.

        Args:
            blocks: The blocks.
            x: What they are applied to.
            then: Makes what is wanted of each piece and of what became of the frames that were read for it,
                which is right for the piece itself and for `margin` frames on either side.
            margin: See `then`.

        Yields:
            Each piece, and what was made of it.
        """
        groups = self._merge(blocks)
        means: State | None = self._summarize(groups[0][0], x)
        for group, following in pairwise(groups):
            x, means = self._update(group, means, x, following[0])
        yield from self._apply(groups[-1], means, x, then, margin)
        x.release()

    def _merge(self, blocks: Iterable[nn.Module]) -> list[list[Any]]:
        """Return the blocks merged, in groups of a global one and the local ones after it."""
        return [[self._merge_block(block) for block in group] for group in split_at_global(blocks)]

    def _merge_block(self, block: Any) -> Any:
        """Merge one block; they are told apart by what they have."""
        if not is_global(block):
            merged = MergedLocalBlock if hasattr(block, "convolution") else MergedSourceBlock
            return merged(block, self.dtype)
        if self.positions is not None:
            return MergedPooledBlock(block, self.dtype, self.positions)
        return MergedGlobalBlock(block, self.dtype)

    def _summarize(self, block: Any, x: Source) -> State:
        parts = self._map(x, lambda piece: block.summarize(piece.frames, x.n_frames))
        return reduce(add, (part for _, part in parts))

    def _update(
        self,
        group: list[Any],
        means: State | None,
        x: Source,
        following: Any,
    ) -> tuple[Frames, State | None]:
        """Apply a group of blocks, keep what comes out, and summarize it for the block that follows."""
        kept: Frames | None = None
        parts = []

        def cut(piece: Piece, y: Tensor) -> tuple[Tensor, State | None]:
            core = piece.core(y)
            return core, None if following is None else following.summarize(core, x.n_frames)

        for piece, (core, part) in self._apply(group, means, x, cut):
            if kept is None:
                kept = x.room(core)
            kept.write_behind(piece.start, core, depth=self.threads.n_threads)
            parts.append(part)
        assert kept is not None
        kept.flush()
        x.release(keep=kept)
        return kept, None if following is None else reduce(add, parts)

    def _apply(
        self,
        group: list[Any],
        means: State | None,
        x: Source,
        then: Callable[[Piece, Tensor], _Result],
        margin: int = 0,
    ) -> Iterator[tuple[Piece, _Result]]:
        """Apply a global block whose means are known, and the local ones after it, to every piece."""
        block, *others = group
        halo = sum(b.halo for b in group) + margin
        apply_block = block.given(means)

        def apply(piece: Piece) -> tuple[int, _Result]:
            y = apply_block(piece.frames, piece.first)
            for other in others:
                y = other(y)
            return y.shape[0], then(piece, y)

        for piece, (n_sequences, result) in self._map(x, apply, halo + halo % 2):
            yield piece, result
            if self.progress is not None:
                self.work_done += n_sequences * (piece.stop - piece.start)
                self.progress(self.work_done / self.work)

    def _map(
        self, x: Source, function: Callable[[Piece], _Result], halo: int = 0
    ) -> Iterator[tuple[Piece, _Result]]:
        """Yield all pieces in their order, and the function of each; every thread computes one at a time."""

        def read_and_apply(start: int) -> tuple[Piece, _Result]:
            piece = read_piece(x, start, min(start + length, x.n_frames), halo)
            return piece, function(piece)

        length = self._piece_length(x.n_frames)
        yield from self.threads.map(read_and_apply, range(0, x.n_frames, length))

    def _piece_length(self, n_frames: int) -> int:
        """Return the frames of a piece, such that it begins at a frame of every stage."""
        n_threads = self.threads.n_threads
        n_pieces = ceil(n_frames / longest_piece(self.model.config))
        shared = ceil(n_pieces / n_threads) * n_threads  # so that no core has nothing to do
        length = ceil(n_frames / (shared if n_frames >= shared * MIN_PIECE_LENGTH else n_pieces))
        return length + -length % 2**self.model.config.n_stages


def longest_piece(config: "SepReformerConfig") -> int:
    """Return the most frames in a piece."""
    return max(PIECE_SIZE // (config.n_channels * config.n_sources), PIECE_LENGTH)


def _computing_type(mixture: Tensor) -> torch.dtype:
    """Return the type of matrix products: that of the mixture, or the one that autocast asks for."""
    device = mixture.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return mixture.dtype


def is_global(block: nn.Module) -> bool:
    """Tell whether a block needs the means over the whole recording."""
    return not hasattr(block, "convolution") and not hasattr(block, "n_sources")


def measured(x: Tensor) -> tuple[Tensor, Moments]:
    """Return features and their moments."""
    return x, Moments.of(x)


def split_at_global(blocks: Iterable[nn.Module]) -> list[list[Any]]:
    """Split blocks into groups of a global one and the local ones after it."""
    groups: list[list[Any]] = []
    for block in blocks:
        if is_global(block):
            groups.append([])
        groups[-1].append(block)
    return groups


def count_work(model: Any, n_frames: int) -> int:
    """Count the frames that groups of blocks are applied to, for the share that is done."""
    work = 0
    for stage in model.encoder_stages:
        work += len(split_at_global(stage.blocks)) * n_frames
        n_frames //= 2
    work += len(split_at_global(model.bottleneck)) * n_frames
    for stage in model.decoder_stages:
        n_frames *= 2
        work += len(split_at_global(stage.blocks)) * n_frames * model.config.n_sources
    return work


class Encoded:
    """The encoder's output, projected to the features of the first stage and normalised at every reading.

    Args:
        encoder: Made the frames.
        frames: The projection before it is normalised, with room for the zeros that fill up the last frame of
            the bottleneck.
        moments: Of the encoder's output.
        n_encoded: Frames of the encoder.
    """

    def __init__(self, encoder: MergedEncoder, frames: Frames, moments: Moments, n_encoded: int) -> None:
        self.encoder, self.frames, self.moments = encoder, frames, moments
        self.n_encoded, self.n_frames = n_encoded, frames.n_frames

    def read(self, first: int, last: int) -> Tensor:
        stop = max(min(last, self.n_encoded), first)
        normalized = self.encoder.normalize(self.frames.read(first, stop), self.moments)
        return F.pad(normalized, (0, 0, 0, last - stop)) if stop < last else normalized

    def room(self, like: Tensor) -> Frames:
        return self.frames.room(like)

    def release(self, keep: Frames | None = None) -> None:
        self.frames.release(keep)


class Branches:
    """The talkers' branches that a source split makes, normalised at every reading.

    Args:
        norm: Their normalisation.
        n_frames: Frames of what is split.
        memory: Room for the branches.
    """

    def __init__(self, norm: nn.GroupNorm, n_frames: int, memory: FrameMemory) -> None:
        self.norm = norm
        self.n_frames = n_frames
        self.memory = memory
        self.moments: Moments | None = None
        self.frames: Frames | None = None

    def write(self, start: int, branches: Tensor, moments: Moments) -> None:
        """Add branches (batch * source, some frames, channels) that begin at frame `start`."""
        self.moments = moments if self.moments is None else self.moments + moments
        if self.frames is None:
            shape = (branches.shape[0], self.n_frames, branches.shape[2])
            self.frames = self.memory.allocate(shape, branches)
        self.frames.write(start, branches)

    def read(self, first: int, last: int) -> Tensor:
        assert self.frames is not None
        assert self.moments is not None
        return self.moments.normalize(self.frames.read(first, last), self.norm)

    def room(self, like: Tensor) -> Frames:
        assert self.frames is not None
        return self.frames.room(like)

    def release(self, keep: Frames | None = None) -> None:
        if self.frames is not None:
            self.frames.release(keep)


class Joined:
    """What a decoder stage begins with: the branches from below at twice the frame rate, and the skip.

    Args:
        fusion: Joins them.
        below: The branches from below.
        skip: The branches of the skip, whose room what is made of them can have.
    """

    def __init__(self, fusion: MergedFusion, below: Source, skip: Branches) -> None:
        self.fusion = fusion
        self.below = below
        self.skip = skip
        self.n_frames = skip.n_frames

    def read(self, first: int, last: int) -> Tensor:
        below = self.below.read(first // 2, (last + 1) // 2)
        return self.fusion(below, self.skip.read(first, last), first)

    def room(self, like: Tensor) -> Frames:
        return self.skip.room(like)

    def release(self, keep: Frames | None = None) -> None:
        self.below.release(keep)
        self.skip.release(keep)
