"""Whose turn it is: the utterances of each track told apart by voice, and those on the wrong one mended.

A model that hears no overlap between two turns has little to tell it which track the second one belongs to.
The voices tell: every stretch in which one person talks is a point (`voice`), and so is each estimate where
two talk. One likeliest course through them says at which stretch two talkers have changed tracks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flasepformer.conversation.activity import Activity
from flasepformer.conversation.decoding import best_through, likeliest_path
from flasepformer.conversation.frames import FRAME_SECONDS, FRAMES_PER_SECOND
from flasepformer.conversation.people import MOST_SECONDS
from flasepformer.conversation.voice import SAMPLE_RATE, voice_of
from flasepformer.inference.finishing import Passed, read_resampled

LEAST_SECONDS = 0.4
"""A shorter stretch has no voice; it goes with its neighbours."""
WEIGHT_SECONDS = 2.0
"""A stretch so long counts once; shorter ones less, longer ones up to twice."""
SHARPNESS = 24.0
"""Of the likeness of voices, as a log likelihood."""
CHANGE, CHANGE_WITHIN = -1.0, -5.0
"""Log probability that the talkers change tracks from one stretch to the next, and where one talks on."""
N_ROUNDS = 8
TWO_VOICES = 0.2
"""Voices less alike than this are two people's for sure."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """A time in which the same people talk."""

    first: int
    last: int
    """Frames, the last one not included."""
    track: int | None
    """Of who talks, as the model has it; None if both do."""
    voices: NDArray[np.float32] | None
    """(n_dims,) of who talks; or (track, n_dims) of both; None if it is too short."""

    @property
    def weight(self) -> float:
        """How much its voice counts."""
        seconds = (self.last - self.first) * FRAME_SECONDS
        return 0.0 if self.voices is None else min(seconds / WEIGHT_SECONDS, 2.0)


@dataclass(frozen=True)
class Doubt:
    """A stretch of which it is not sure on which track it belongs."""

    start: float
    end: float
    confidence: float
    """Probability that it is on the right track, 0.5 to 1."""
    mended: bool
    """Whether it was moved to the other track than the model's."""

    @classmethod
    def of(cls, stretch: Stretch, gain: float, *, mended: bool = False) -> "Doubt":
        """Say how doubtful a stretch is, by the log odds of its place."""
        confidence = round(float(1 / (1 + np.exp(-gain))), 3)
        first, last = stretch.first * FRAME_SECONDS, stretch.last * FRAME_SECONDS
        return cls(round(first, 2), round(last, 2), confidence, mended)


@dataclass(frozen=True, eq=False)
class Turns:
    """What was found about the stretches of all tracks."""

    swapped: NDArray[np.bool_]
    """(frame,): where the tracks take each other's estimate."""
    doubts: tuple[Doubt, ...]
    n_mended: int
    """Stretches that were moved."""
    likeness: float
    """Of the voices of two talkers, those most alike, -1 to 1; nan if one has none.

    Who never talks alone has the voice of its estimates, if there is any.
    """
    voices: NDArray[np.float64] | None = None
    """(talker, n_dims), of length 1, zero for one who never talks alone; None if nobody does."""


def stretches_of(passed: Passed, activity: Activity) -> list[Stretch]:
    """Cut a conversation (2, frame) where anybody begins or ends, and listen to each stretch."""
    state = activity[0] + 2 * activity[1].astype(int)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(state)) + 1, [len(state)]])
    found = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if state[first] == 0:
            continue
        track = None if state[first] == 3 else int(state[first]) - 1
        found.append(Stretch(first, last, track, voices_in(passed, first, last, track)))
    return found


def voices_in(passed: Passed, first: int, last: int, track: int | None) -> NDArray[np.float32] | None:
    """Listen to the frames from first to last: a voice (n_dims,), or (track, n_dims) if two talk there.

    Args:
        passed: The recording.
        first: Frame.
        last: The one after the last.
        track: On which one talks alone, so that the recording is listened to; None if both do.

    Returns:
        None if it is too short to have a voice; of a long time, that of its middle.
    """
    if (last - first) * FRAME_SECONDS < LEAST_SECONDS:
        return None
    spare = max(0, last - first - round(MOST_SECONDS * FRAMES_PER_SECOND))
    frame = round(FRAME_SECONDS * SAMPLE_RATE)
    first, last = (first + spare // 2) * frame, (last - (spare - spare // 2)) * frame
    if track is None:
        read, n, rate = passed.estimates, passed.n_estimate_samples, passed.estimate_rate
        return np.stack([voice_of(one) for one in read_resampled(read, n, rate, SAMPLE_RATE, first, last)])
    read, n, rate = passed.recording, passed.n_samples, passed.sample_rate
    return voice_of(read_resampled(read, n, rate, SAMPLE_RATE, first, last))


def mend(passed: Passed, activity: Activity) -> Turns:
    """Find where two talkers have changed tracks.

    Args:
        passed: The recording.
        activity: (2, frame): who talks on which track.
    """
    found = stretches_of(passed, activity)
    swapped = np.zeros(activity.shape[-1], bool)
    if not any(stretch.track is not None and stretch.weight > 0 for stretch in found):
        return Turns(swapped, (), 0, float("nan"))
    # Where all that one alone says lies on one track, it is two people's only if they are clearly two.
    starts = _starts(found)
    if np.isnan(_likeness(found, starts[0])):
        starts = [start for start in starts[1:] if _likeness(found, _settle(found, start)[0]) < TWO_VOICES]
        starts = starts or [np.zeros(len(found), np.intp)]
    best: tuple[float, NDArray[np.intp], NDArray[np.float64]] | None = None
    for start in starts:
        states, gains, total = _settle(found, start)
        if best is None or total > best[0]:
            best = total, states, gains
    assert best is not None
    _, states, gains = best
    spoken = np.array([stretch.last - stretch.first for stretch in found])
    if (spoken * states).sum() > spoken.sum() / 2:  # both names are as good; most stays where it was
        states = 1 - states
    end = 0
    for stretch, state in zip(found, states, strict=True):
        swapped[(end + stretch.first) // 2 : stretch.last] = bool(state)  # changes in the middle of a pause
        end = stretch.last
    doubts = tuple(
        Doubt.of(stretch, gain, mended=bool(state))
        for stretch, state, gain in zip(found, states, gains, strict=True)
        if gain < DOUBTFUL_GAIN and stretch.last - stretch.first >= LEAST_SECONDS * FRAMES_PER_SECOND
    )
    sums = _sums(found, states)
    voices = sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-9)
    likeness = _likeness(found, states, estimates=True)
    return Turns(swapped, doubts, int(states.sum()), likeness, voices)


DOUBTFUL_GAIN = 2.2
"""A stretch whose place is less sure than nine in ten is listed."""


def _starts(found: list[Stretch]) -> list[NDArray[np.intp]]:
    """Return first guesses: as the model has it, and by the voices alone."""
    starts = [np.zeros(len(found), np.intp)]
    alone = [index for index, stretch in enumerate(found) if stretch.track is not None and stretch.weight > 0]
    if len(alone) > 2:
        voices = np.stack([_voice(found[index]) for index in alone])
        weights = np.array([found[index].weight for index in alone])
        centred = (voices - np.average(voices, axis=0, weights=weights)) * np.sqrt(weights)[:, None]
        side = np.linalg.svd(centred, full_matrices=False)[0][:, 0] > 0
        guess = np.zeros(len(found), np.intp)
        for index, one in zip(alone, side, strict=True):
            guess[index] = int(one) ^ int(found[index].track or 0)
        starts.append(guess)
    return starts


def _voice(stretch: Stretch) -> NDArray[np.float32]:
    assert stretch.voices is not None
    return stretch.voices


def _settle(
    found: list[Stretch], states: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64], float]:
    """Go on from a guess until it stays; return states, how much each beats its contrary, and the score."""
    change = np.zeros((len(found), 2, 2))
    for index in range(1, len(found)):
        one, other = found[index - 1], found[index]
        goes_on = one.last == other.first and None in (one.track, other.track)  # somebody talks in both
        cost = CHANGE_WITHIN if goes_on else CHANGE
        change[index] = [[0, cost], [cost, 0]]
    gains, total = np.zeros(len(found)), -np.inf
    for _ in range(N_ROUNDS):
        scores = _scores(found, states)
        path = likeliest_path(scores, change)
        through = best_through(scores, change)
        gains = through[np.arange(len(found)), path] - through[np.arange(len(found)), 1 - path]
        total = float(through[0].max())
        if (path == states).all():
            break
        states = path
    return states, gains, total


def _scores(found: list[Stretch], states: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the log likelihoods (stretch, 2) as they are and swapped, each by the voices of all others."""
    scores = np.zeros((len(found), 2))
    sums = _sums(found, states, estimates=True)
    talks_alone = np.linalg.norm(_sums(found, states), axis=-1, keepdims=True) > 0
    for index, (stretch, state) in enumerate(zip(found, states, strict=True)):
        if stretch.voices is None:
            continue
        others = sums.copy()
        if stretch.track is not None:
            others[stretch.track ^ int(state)] -= stretch.weight * stretch.voices
        else:
            heard = stretch.weight * stretch.voices[[int(state), 1 - int(state)]]
            others -= np.where(talks_alone, 0.0, heard)
        lengths = np.linalg.norm(others, axis=-1)
        if lengths.min() < 1e-6:
            continue
        like = stretch.voices @ (others / lengths[:, None]).T  # (2,) or (track, 2)
        if stretch.track is None:
            gain = 0.5 * (like[0, 0] + like[1, 1] - like[0, 1] - like[1, 0])  # each has some of the other
        else:
            gain = like[stretch.track] - like[1 - stretch.track]
        scores[index] = np.array([0.5, -0.5]) * SHARPNESS * stretch.weight * gain
    return scores


def _sums(found: list[Stretch], states: NDArray[np.intp], *, estimates: bool = False) -> NDArray[np.float64]:
    """Return the weighted sums (2, n_dims) of the voices of both talkers, by the stretches of one alone.

    With `estimates`, who never talks alone has the sum of the estimates where both talk, instead of none.
    """
    n_dims = next((stretch.voices.shape[-1] for stretch in found if stretch.voices is not None), 1)
    alone, of_estimates = np.zeros((2, n_dims)), np.zeros((2, n_dims))
    for stretch, state in zip(found, states, strict=True):
        if stretch.voices is None:
            continue
        if stretch.track is None:
            of_estimates += stretch.weight * stretch.voices[[int(state), 1 - int(state)]]
        else:
            alone[stretch.track ^ int(state)] += stretch.weight * stretch.voices
    if not estimates:
        return alone
    return np.where(alone.any(-1, keepdims=True), alone, of_estimates)


def _likeness(found: list[Stretch], states: NDArray[np.intp], *, estimates: bool = False) -> float:
    """Return how alike the two talkers are, nan if one has no voice; see `_sums`."""
    sums = _sums(found, states, estimates=estimates)
    lengths = np.linalg.norm(sums, axis=-1)
    return float(sums[0] @ sums[1] / lengths.prod()) if lengths.min() > 1e-6 else float("nan")
