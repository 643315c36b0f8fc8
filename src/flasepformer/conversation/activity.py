"""Who speaks in which frame, by the levels of the tracks."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flasepformer.conversation.decoding import likeliest_path
from flasepformer.conversation.frames import FRAMES_PER_SECOND, Frames, in_db, smoothed

SILENT_POWER = 1e-8
"""-80 dBFS: nothing quieter is speech."""

Activity = NDArray[np.bool_]
"""(track, frame)."""


@dataclass(frozen=True, kw_only=True)
class ActivityRule:
    """When a track counts as speech; a talker who speaks is let go later than one is let in."""

    range_db: float = 38.0
    """Speech is at most so far below the loud speech of the recording ..."""
    above_noise_db: float = 6.0
    """... and at least so far above its quietest tenth."""
    ratio_on_db: float = -9.0
    """A track begins to speak where it is at most so far below the loudest one ..."""
    ratio_off_db: float = -14.0
    """... and goes on down to this: what is quieter is a remainder of the other talker."""
    hysteresis_db: float = 5.0
    """What a talker who speaks may fall below the level of one who begins to."""
    above_mixture_db: float = 3.0
    """What a track is louder than the recording by at most: more is invented."""
    smooth_seconds: float = 0.1
    ratio_smooth_seconds: float = 0.38
    fill_seconds: float = 0.3
    """Pauses up to this belong to the speech around them."""
    least_seconds: float = 0.16
    """What is shorter is a noise."""


CROSSTALK_PERCENTILE = 20
"""Of how much lower a channel is than the other: where both talk it is less than crosstalk alone."""
CROSSTALK_ON_DB, CROSSTALK_OFF_DB = 5.0, 3.0
"""A talker is louder on the own channel than others are there as crosstalk by this, to begin and to go on."""


def _frames(seconds: float) -> int:
    return 2 * round(seconds * FRAMES_PER_SECOND / 2) + 1


def rule_for_channels(frames: Frames, rule: ActivityRule) -> ActivityRule:
    """Return the rule for channels, on which others than their talkers are heard: what is louder is speech.

    Args:
        frames: Of channels that have a talker each.
        rule: What holds where there is no crosstalk.
    """
    level = in_db(smoothed(frames.estimates, _frames(rule.ratio_smooth_seconds)))
    heard = level.max(0) > speech_threshold(in_db(frames.mixture), rule)
    below = [
        np.percentile(ratio[ratio < 0], CROSSTALK_PERCENTILE)
        for one in range(len(level))
        for other in range(len(level))
        if one != other and (ratio := (level[one] - level[other])[heard]).min(initial=0) < 0
    ]
    crosstalk = float(max(below, default=-np.inf))
    return replace(
        rule,
        ratio_on_db=max(rule.ratio_on_db, crosstalk + CROSSTALK_ON_DB),
        ratio_off_db=max(rule.ratio_off_db, crosstalk + CROSSTALK_OFF_DB),
    )


def activity_of(frames: Frames, rule: ActivityRule | None = None) -> Activity:
    """Decide by level, by the ratio of the tracks, and by what was said just before.

    Nothing is louder than -80 dBFS where nobody speaks, whatever the recording is like.
    """
    rule = rule or ActivityRule()
    level = in_db(smoothed(frames.estimates, _frames(rule.smooth_seconds)))
    whole = in_db(smoothed(frames.mixture, _frames(rule.smooth_seconds)))
    threshold = speech_threshold(whole, rule)
    longer = in_db(smoothed(frames.estimates, _frames(rule.ratio_smooth_seconds)))
    ratio = longer - longer.max(0)
    level = np.minimum(level, whole + rule.above_mixture_db)
    begins = (level > threshold) & (ratio > rule.ratio_on_db)
    goes_on = (level > threshold - rule.hysteresis_db) & (ratio > rule.ratio_off_db)
    single = np.minimum(in_db(frames.estimates), in_db(frames.mixture) + rule.above_mixture_db)
    sharp = (single > threshold - rule.hysteresis_db) & (single - single.max(0) > rule.ratio_off_db)
    return np.stack(
        [
            trimmed(without_short(filled(held(on, keeps), rule.fill_seconds), rule.least_seconds), inner)
            for on, keeps, inner in zip(begins, goes_on, sharp, strict=True)
        ]
    )


TRUST = 0.35
"""Of a frame's probabilities, as its neighbours say nearly the same."""
CHANGE = -2.5
"""Log probability that somebody begins or ends from one frame to the next."""
TURN = -4.0
"""The same that one ends and the other begins."""
RATIO_DB = 4.0
"""Difference of two tracks in dB at which it is e to 1 which of them speaks."""
RATIO_SECONDS = 0.22


def counted_activity(frames: Frames, chances: NDArray[np.floating[Any]]) -> Activity:
    """Decide by how many talk at a time, and where one does by which of two tracks is the louder.

    Args:
        frames: Of two tracks.
        chances: (3, frame): probabilities that nobody, one and two talk.

    Returns:
        The likeliest course of both.
    """
    level = in_db(smoothed(frames.estimates, _frames(RATIO_SECONDS)))
    ratio = np.clip((level[0] - level[1]) / RATIO_DB, -8, 8)
    count = np.log(np.maximum(chances, 1e-4))
    count[1:, frames.mixture < SILENT_POWER] = np.log(1e-4)
    scores = TRUST * np.stack(
        [count[0], count[1] - np.log1p(np.exp(-ratio)), count[1] - np.log1p(np.exp(ratio)), count[2]], axis=-1
    )
    far = 2 * CHANGE  # both begin or end in one frame
    change = np.array(
        [
            [0, CHANGE, CHANGE, far],
            [CHANGE, 0, TURN, CHANGE],
            [CHANGE, TURN, 0, CHANGE],
            [far, CHANGE, CHANGE, 0],
        ]
    )
    path = likeliest_path(scores, change)
    return np.stack([(path == 1) | (path == 3), (path == 2) | (path == 3)])


def trimmed(active: NDArray[np.bool_], inner: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return activity whose runs begin and end with inner frames, to take back what smoothing added.

    >>> trimmed(np.array([1, 1, 1, 1, 0, 1], bool), np.array([0, 1, 0, 1, 0, 0], bool))
    array([False,  True,  True,  True, False, False])
    """
    kept = np.zeros_like(active)
    for first, last in runs(active):
        at = np.flatnonzero(inner[first:last])
        if len(at):
            kept[first + at[0] : first + at[-1] + 1] = True
    return kept


def by_level_alone(frames: Frames, rule: ActivityRule | None = None) -> Activity:
    """Decide by the level of every track for itself: what activity is measured against."""
    rule = rule or ActivityRule()
    level = in_db(smoothed(frames.estimates, _frames(rule.smooth_seconds)))
    threshold = speech_threshold(in_db(smoothed(frames.mixture, _frames(rule.smooth_seconds))), rule)
    return level > threshold


def speech_threshold(level: NDArray[np.float64], rule: ActivityRule) -> float:
    """Return the level in dB from which on the recording is speech; infinite for silence.

    Args:
        level: (frame,) of the recording in dB.
        rule: What counts as speech.
    """
    heard = level[level > -80.0]
    if not len(heard):
        return float("inf")
    loud, quiet = np.percentile(heard, [95, 10])
    noise = min(quiet, loud - 20.0)  # somebody speaks all the time: the quietest tenth is no noise
    return float(max(loud - rule.range_db, noise + rule.above_noise_db, -80.0))


def held(begins: NDArray[np.bool_], goes_on: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the runs of `goes_on` in which something begins.

    >>> held(np.array([0, 0, 1, 0, 0], bool), np.array([1, 0, 1, 1, 0], bool))
    array([False, False,  True,  True, False])
    """
    either = begins | goes_on
    kept = np.zeros_like(either)
    for first, last in runs(either):
        kept[first:last] = begins[first:last].any()
    return kept


def runs(active: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first frame of every run, and the one after its last.

    >>> runs(np.array([1, 1, 0, 1], bool))
    [(0, 2), (3, 4)]
    """
    changes = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in changes.reshape(-1, 2)]


def filled(active: NDArray[np.bool_], seconds: float) -> NDArray[np.bool_]:
    """Return activity in which pauses up to so many seconds are none; those at the ends stay."""
    active = active.copy()
    for first, last in runs(~active):
        if first > 0 and last < len(active) and last - first <= seconds * FRAMES_PER_SECOND:
            active[first:last] = True
    return active


def without_short(active: NDArray[np.bool_], seconds: float) -> NDArray[np.bool_]:
    """Return activity without the runs shorter than so many seconds."""
    active = active.copy()
    for first, last in runs(active):
        if last - first < seconds * FRAMES_PER_SECOND:
            active[first:last] = False
    return active


def widened(active: NDArray[np.bool_], before_seconds: float, after_seconds: float) -> NDArray[np.bool_]:
    """Return activity that begins earlier and ends later, for soft first and last sounds."""
    wide = active.copy()
    for first, last in runs(active):
        begin = max(first - round(before_seconds * FRAMES_PER_SECOND), 0)
        wide[begin : last + round(after_seconds * FRAMES_PER_SECOND)] = True
    return wide
