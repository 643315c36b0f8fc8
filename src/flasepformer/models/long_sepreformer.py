"""The forward pass of an FLA-SepReformer in pieces of time, with the numbers of the whole.

See `models.long_form` for how. All that exists for the whole recording are the talkers' skips, each half as
long as the one before, and one more sequence; the encoder's output is computed anew wherever it is read.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.models.long_form import FrameMemory, Frames, Moments, Piece, Source, read_pieces
from flasepformer.ops import KeyValueMeans, overlap_add

if TYPE_CHECKING:
    from flasepformer.models.sepreformer import EncoderStage, SepReformer, SourceSplit

PIECE_LENGTH = 2048
"""Frames in a piece, even, so that a piece stays one when the frame rate is halved."""


class LongPass:
    """One forward pass.

    Args:
        model: A network with linear attention, in eval mode.
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
        self.memory = memory
        self.progress = progress
        self.encoded = Encoded(model, mixture, memory)
        self.work, self.work_done = count_work(model, self.encoded.n_frames), 0

    def run(self) -> Tensor:
        """Return the estimates (batch * source, time), time as in the mixture."""
        model: Any = self.model  # whose stages mypy takes for bare modules
        x: Source = self.encoded
        skips = []
        for stage in model.encoder_stages:
            skip, x = self._run_encoder_stage(stage, x)
            skips.append(skip)
        branches = Branches(model.source_split, x.n_frames, self.memory)
        for piece, y in self._sweep(model.bottleneck, x):
            branches.write(piece.start, piece.core(y))
        x = branches
        *stages, last_stage = model.decoder_stages
        for stage in stages:
            x = self._run(stage.blocks, Joined(stage.fusion, x, skips.pop()))
        return self._decode(self._sweep(last_stage.blocks, Joined(last_stage.fusion, x, skips.pop())))

    def _run_encoder_stage(self, stage: "EncoderStage", x: Source) -> tuple["Branches", Frames]:
        """Return the talkers' skip, and the features at half the frame rate."""
        n_frames = x.n_frames
        skip = Branches(self.model.source_split, n_frames, self.memory)
        below: Frames | None = None
        reach = stage.downsample.padding
        for piece, y in self._sweep(stage.blocks, x, margin=reach):
            skip.write(piece.start, piece.core(y))
            half = F.gelu(stage.downsample_norm(stage.downsample(y)))
            half = half[:, (piece.start - piece.first) // 2 :][:, : (piece.stop - piece.start) // 2]
            if below is None:
                below = self.memory.allocate((half.shape[0], n_frames // 2, half.shape[2]), half)
            below.write(piece.start // 2, half)
        assert below is not None
        return skip, below

    def _decode(self, outputs: Iterable[tuple[Piece, Tensor]]) -> Tensor:
        """Turn the talkers' features into waveforms."""
        model, config, mixture = self.model, self.model.config, self.encoded.mixture
        waveforms = mixture.new_zeros(mixture.shape[0] * config.n_sources, mixture.shape[1])
        synthesis = model.decoder.weight.squeeze(1)  # (filters, window)
        for piece, y in outputs:
            stop = min(piece.stop, self.encoded.n_encoded)  # the frames that fill up the coarsest one are cut
            if stop <= piece.start:
                continue
            features = model.output(piece.core(y)[:, : stop - piece.start])
            if config.masking:
                masks = F.relu(features).unflatten(0, (-1, config.n_sources))
                features = (masks * self.encoded.encode(piece.start, stop).unsqueeze(1)).flatten(0, 1)
            samples = overlap_add(features @ synthesis, config.hop_length)
            start = piece.start * config.hop_length
            waveforms[:, start : start + samples.shape[1]] += samples
        return waveforms

    def _run(self, blocks: Iterable[nn.Module], x: Source) -> Frames:
        """Apply blocks and keep what comes out; releases what went in."""
        groups = split_at_global(blocks)
        means: KeyValueMeans | None = self._summarize(groups[0][0], x)
        for group, following in pairwise([*groups, [None]]):
            x, means = self._update(group, means, x, following[0])
        assert isinstance(x, Frames)
        return x

    def _sweep(
        self, blocks: Iterable[nn.Module], x: Source, margin: int = 0
    ) -> Iterator[tuple[Piece, Tensor]]:
        """Apply blocks and give away what comes out, piece by piece; releases what went in.

        Yields:
            Each piece, and what became of the frames that were read for it, which is right for the piece
            itself and for `margin` frames on either side.
        """
        groups = split_at_global(blocks)
        means: KeyValueMeans | None = self._summarize(groups[0][0], x)
        for group, following in pairwise(groups):
            x, means = self._update(group, means, x, following[0])
        yield from self._apply(groups[-1], means, x, margin)
        x.release()

    def _summarize(self, block: Any, x: Source) -> KeyValueMeans:
        means = None
        for piece in read_pieces(x, PIECE_LENGTH):
            part = block.summarize(piece.frames, x.n_frames)
            means = part if means is None else means + part
        assert means is not None
        return means

    def _update(
        self, group: list[Any], means: KeyValueMeans | None, x: Source, following: Any
    ) -> tuple[Frames, KeyValueMeans | None]:
        """Apply a group of blocks, keep what comes out, and summarize it for the block that follows."""
        kept: Frames | None = None
        following_means = None
        for piece, y in self._apply(group, means, x):
            core = piece.core(y)
            if following is not None:
                part = following.summarize(core, x.n_frames)
                following_means = part if following_means is None else following_means + part
            if kept is None:
                kept = x.room(core)
            kept.write_behind(piece.start, core)
        assert kept is not None
        kept.flush()
        x.release(keep=kept)
        return kept, following_means

    def _apply(
        self, group: list[Any], means: KeyValueMeans | None, x: Source, margin: int = 0
    ) -> Iterator[tuple[Piece, Tensor]]:
        """Apply a global block whose means are known, and the local ones after it, to every piece."""
        block, *others = group
        halo = sum(b.halo for b in group) + margin
        for piece in read_pieces(x, PIECE_LENGTH, halo + halo % 2):
            y = block.update(piece.frames, means)
            for other in others:
                y = other(y)
            yield piece, y
            if self.progress is not None:
                self.work_done += y.shape[0] * (piece.stop - piece.start)
                self.progress(self.work_done / self.work)


def split_at_global(blocks: Iterable[nn.Module]) -> list[list[Any]]:
    """Split blocks into groups of a global one and the local ones after it."""
    groups: list[list[Any]] = []
    for block in blocks:
        if hasattr(block, "update"):
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
    """The encoder's output, projected to the features of the first stage; made anew at every reading.

    Args:
        model: Whose encoder.
        mixture: (batch, time), whole frames.
        memory: Room for what is made of the features.
    """

    def __init__(self, model: "SepReformer", mixture: Tensor, memory: FrameMemory) -> None:
        config = model.config
        self.model = model
        self.mixture = mixture
        self.memory = memory
        self.n_encoded = (mixture.shape[-1] - config.filter_length) // config.hop_length + 1
        """Frames of the encoder."""
        self.n_frames = self.n_encoded + -self.n_encoded % 2**config.n_stages
        """The same with the zeros that fill up the last frame of the bottleneck."""
        self.moments = Moments()
        for start in range(0, self.n_encoded, PIECE_LENGTH):
            self.moments.add(self.encode(start, min(start + PIECE_LENGTH, self.n_encoded)))

    def encode(self, first: int, last: int) -> Tensor:
        """Return the encoder's output (batch, last - first, filters)."""
        hop, length = self.model.config.hop_length, self.model.config.filter_length
        return self.model.encode(self.mixture[:, first * hop : (last - 1) * hop + length])

    def read(self, first: int, last: int) -> Tensor:
        model, stop = self.model, max(min(last, self.n_encoded), first)
        if stop == first:  # nothing but filling, which needs at least one frame to know its type
            return self.read(self.n_encoded - 1, last)[:, first - self.n_encoded + 1 :]
        normalized = self.moments.normalize(self.encode(first, stop), model.feature_norm)
        return F.pad(model.feature_projection(normalized), (0, 0, 0, last - stop))

    def room(self, like: Tensor) -> Frames:
        return self.memory.allocate((like.shape[0], self.n_frames, like.shape[2]), like)

    def release(self, keep: Frames | None = None) -> None:
        pass


class Branches:
    """The talkers' branches that a source split makes, normalised at every reading.

    Args:
        split: The source split.
        n_frames: Frames of what it splits.
        memory: Room for the branches.
    """

    def __init__(self, split: "SourceSplit", n_frames: int, memory: FrameMemory) -> None:
        self.split = split
        self.n_frames = n_frames
        self.memory = memory
        self.moments = Moments()
        self.frames: Frames | None = None

    def write(self, start: int, x: Tensor) -> None:
        """Split features (batch, some frames, channels) that begin at frame `start`."""
        branches = self.split.split(x)
        self.moments.add(branches)
        if self.frames is None:
            shape = (branches.shape[0], self.n_frames, branches.shape[2])
            self.frames = self.memory.allocate(shape, branches)
        self.frames.write(start, branches)

    def read(self, first: int, last: int) -> Tensor:
        assert self.frames is not None
        return self.moments.normalize(self.frames.read(first, last), self.split.norm)

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

    def __init__(self, fusion: nn.Module, below: Source, skip: Branches) -> None:
        self.fusion = fusion
        self.below = below
        self.skip = skip
        self.n_frames = skip.n_frames

    def read(self, first: int, last: int) -> Tensor:
        below = self.below.read(first // 2, (last + 1) // 2).repeat_interleave(2, dim=1)
        below = below[:, first % 2 : first % 2 + last - first]
        return self.fusion(torch.cat([below, self.skip.read(first, last)], dim=-1))

    def room(self, like: Tensor) -> Frames:
        return self.skip.room(like)

    def release(self, keep: Frames | None = None) -> None:
        self.below.release(keep)
        self.skip.release(keep)
