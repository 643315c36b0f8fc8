"""Tracks of a conversation, made in pieces of any length: the same samples whatever the pieces are.

Where one talker speaks, the track of that talker is the recording itself (or the talker's own channel of it)
and the others are silent; where
several do, the tracks are the model's estimates, and what the recording has above the model's band is divided
between them. Where nobody speaks, all are silent. From each to the next the tracks are faded.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flasepformer.conversation.activity import Activity, widened
from flasepformer.conversation.frames import FRAMES_PER_SECOND, Frames, smoothed
from flasepformer.inference.finishing import Passed, Samples

BEFORE_SECONDS, AFTER_SECONDS = 0.1, 0.16
"""Of the recording that belong to a segment before and after it: soft first and last sounds."""
FADE_FRAMES = 3
"""Frames that a fade is smoothed over; with the line between frames it lasts about 80 ms."""
UPPER_FRAMES = 5
"""Frames over which the shares of the upper band are smoothed."""


@dataclass(frozen=True, eq=False)
class Rendering:
    """How the tracks are made of the recording and the estimates."""

    passed: Passed
    frames: Frames
    """Of the estimates, in the model's order."""
    activity: Activity
    """(track, frame)."""
    order: NDArray[np.intp]
    """(track, frame): which estimate each track takes."""
    floor: float = 0.0
    """What a silent track keeps of its estimate, as a factor."""
    residual: bool = False
    """Whether one more track has what belongs to nobody."""
    full_band: bool = True
    """Whether the tracks have what the recording holds above the model's band."""

    @cached_property
    def _talking(self) -> NDArray[np.float32]:
        """(track, frame), 0 to 1."""
        wide = np.stack([widened(active, BEFORE_SECONDS, AFTER_SECONDS) for active in self.activity])
        return smoothed(wide, FADE_FRAMES).astype(np.float32)

    @cached_property
    def _alone(self) -> NDArray[np.float32]:
        """(track, frame): 1 where nobody else is heard, at no time more than `_talking`."""
        others = self._talking.sum(0) - self._talking
        wide = np.stack([widened(active, BEFORE_SECONDS, AFTER_SECONDS) for active in self.activity])
        alone = wide & (wide.sum(0) == 1) & (others < 1e-3)
        inner = ~np.stack([widened(~one, 1 / FRAMES_PER_SECOND, 1 / FRAMES_PER_SECOND) for one in alone])
        return np.minimum(smoothed(inner, FADE_FRAMES), self._talking).astype(np.float32)

    @cached_property
    def _takes(self) -> NDArray[np.float32]:
        """(track, source, frame): what each track takes of each estimate."""
        sources = range(self.passed.n_sources)
        takes = np.empty((len(self.order), len(sources), self.order.shape[-1]), np.float32)
        for own, taken in zip(takes, self.order, strict=True):
            for source in sources:  # one at a time, for the memory of a day
                own[source] = smoothed(taken == source, FADE_FRAMES)
        return takes

    @cached_property
    def _upper_shares(self) -> NDArray[np.float32]:
        """(track, frame): of what lies above the model's band, by the powers just below."""
        powers = np.take_along_axis(smoothed(self.frames.upper, UPPER_FRAMES), self.order, 0)
        powers = powers * np.maximum(self._talking, self.floor) + 1e-20
        return (powers / powers.sum(0)).astype(np.float32)

    def tracks(self, first: int, last: int) -> Samples:
        """Return the tracks (track, last - first) at the rate of the recording."""
        passed = self.passed
        recording = passed.recording(first, last)
        estimates = passed.estimates_at_rate(first, last)
        talking, alone, takes = (
            self._at(values, first, last) for values in (self._talking, self._alone, self._takes)
        )
        own = np.einsum("kst,st->kt", takes, estimates)
        if self.full_band and passed.sample_rate > passed.estimate_rate:
            above = recording - passed.mixture_at_rate(first, last)
            own += self._at(self._upper_shares, first, last) * above
        if len(self.activity) == 1:
            own = recording[None]
        together = talking - alone
        tracks = (
            alone * (own if passed.channels else recording) + (together + self.floor * (1 - talking)) * own
        )
        if self.residual:
            tracks = np.concatenate([tracks, (recording - tracks.sum(0) + passed.offset)[None]])
        return np.asarray(tracks, np.float32)

    def _at(self, values: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
        """Return values (..., frame) for samples from first to last, on lines between frames' centres."""
        place = np.arange(first, last) * (FRAMES_PER_SECOND / self.passed.sample_rate) - 0.5
        n = values.shape[-1]
        left = np.clip(np.floor(place).astype(np.int64), 0, n - 1)
        right = np.minimum(left + 1, n - 1)
        share = np.clip(place - left, 0, 1).astype(np.float32)
        begin, end = int(left[0]), int(right[-1]) + 1
        some = values[..., begin:end]
        return some[..., left - begin] * (1 - share) + some[..., right - begin] * share
