"""Tracks of a conversation, made in pieces of any length: the same samples whatever the pieces are.

Where one talker speaks, the track of that talker is the recording itself (or the talker's own channel of it)
and the others are silent; where
several do, the tracks are the model's estimates, and what the recording has above the model's band is divided
between them. Where nobody speaks, all are silent. From each to the next the tracks are faded.
"""

from dataclasses import dataclass
from typing import Any

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
REACH_FRAMES = 16
"""As far as any frame has a part in the samples of another: what is widened, smoothed, and widened again."""


@dataclass(frozen=True, eq=False)
class Rendering:
    """How the tracks are made of the recording and the estimates."""

    passed: Passed
    frames: Frames
    """Of the estimates, in the model's order."""
    activity: Activity
    """(track, frame)."""
    order: NDArray[np.int8]
    """(track, frame): which estimate each track takes, -1 for none."""
    floor: float = 0.0
    """What a silent track keeps of its estimate, as a factor."""
    residual: bool = False
    """Whether one more track has what belongs to nobody."""
    full_band: bool = True
    """Whether the tracks have what the recording holds above the model's band."""

    def tracks(self, first: int, last: int) -> Samples:
        """Return the tracks (track, last - first) at the rate of the recording."""
        passed = self.passed
        place = np.arange(first, last) * (FRAMES_PER_SECOND / passed.sample_rate) - 0.5
        n = self.activity.shape[-1]
        near = slice(max(int(place[0]) - REACH_FRAMES, 0), min(int(place[-1]) + 2 + REACH_FRAMES, n))
        activity, order = self.activity[:, near], self.order[:, near]
        recording = passed.recording(first, last)
        estimates = passed.filtered_at_rate(first, last)
        wide = np.stack([widened(active, BEFORE_SECONDS, AFTER_SECONDS) for active in activity])
        in_talk = smoothed(wide, FADE_FRAMES).astype(np.float32)
        talking, alone = (_between(x, place, near.start, n) for x in (in_talk, _alone(wide, in_talk)))
        own = np.zeros((len(activity), last - first), np.float32)
        for source, estimate in enumerate(estimates):
            takes = smoothed(order == source, FADE_FRAMES).astype(np.float32)
            own += _between(takes, place, near.start, n) * estimate
        if self.full_band and passed.sample_rate > passed.estimate_rate:
            above = recording - passed.mixture_at_rate(first, last)
            own += _between(self._upper_shares(near, in_talk), place, near.start, n) * above
        if len(activity) == 1:
            own = recording[None]
        together = talking - alone
        tracks = (
            alone * (own if passed.channels else recording) + (together + self.floor * (1 - talking)) * own
        )
        if self.residual:
            tracks = np.concatenate([tracks, (recording - tracks.sum(0) + passed.offset)[None]])
        return np.asarray(tracks, np.float32)

    def _upper_shares(self, near: slice, in_talk: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the shares (track, frame) of what lies above the model's band, by the powers just below."""
        order = self.order[:, near]
        powers = smoothed(self.frames.upper[:, near], UPPER_FRAMES)
        powers = np.where(order < 0, 0, np.take_along_axis(powers, np.maximum(order, 0).astype(np.intp), 0))
        powers = powers * np.maximum(in_talk, self.floor) + 1e-20
        return (powers / powers.sum(0)).astype(np.float32)


def _alone(wide: NDArray[np.bool_], in_talk: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 where nobody else is heard (track, frame), at no time more than who talks in all."""
    others = in_talk.sum(0) - in_talk
    alone = wide & (wide.sum(0) == 1) & (others < 1e-3)
    inner = ~np.stack([widened(~one, 1 / FRAMES_PER_SECOND, 1 / FRAMES_PER_SECOND) for one in alone])
    return np.minimum(smoothed(inner, FADE_FRAMES), in_talk).astype(np.float32)


def _between(
    values: NDArray[np.float32], place: NDArray[np.floating[Any]], begin: int, n: int
) -> NDArray[np.float32]:
    """Return values (..., frame), the first of them of frame `begin` of `n`, at places between frames."""
    left = np.clip(np.floor(place).astype(np.int64), 0, n - 1)
    right = np.minimum(left + 1, n - 1)
    share = np.clip(place - left, 0, 1).astype(np.float32)
    return values[..., left - begin] * (1 - share) + values[..., right - begin] * share
