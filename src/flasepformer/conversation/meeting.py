"""Who is who among more than two people, of whom at most two talk at a time.

A model of two tracks gives both to whoever talks. Where one person talks, the recording itself is listened
to; stretches of it are divided among people by their voices (`people`). Then one likeliest course through all
stretches says whose each is: by its voice, by what goes on without a pause, and, where two talk, by the
voices of both estimates, who are two different people.
"""

from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from flasepformer.conversation.activity import Activity
from flasepformer.conversation.decoding import best_through, likeliest_path
from flasepformer.conversation.frames import FRAME_SECONDS, FRAMES_PER_SECOND, Frames, in_db, smoothed
from flasepformer.conversation.people import VoiceSpace, divide, load_voice_space, settled
from flasepformer.conversation.turns import DOUBTFUL_GAIN, LEAST_SECONDS, Doubt, Stretch, Turns, voices_in
from flasepformer.inference.finishing import Passed

PIECE_SECONDS = 0.8
"""Least length of the pieces that somebody's speech is cut into, at its quietest frames ..."""
LONG_SECONDS = 3.0
"""... if it lasts so long; shorter ones only at a pause ..."""
PAUSE_DB = 15.0
"""... so far below what is loud there."""
LEVEL_FRAMES = 5

HEARD = 1.0
"""How much of the evidence of a stretch alone counts in saying whose it is; in counting people it is less."""
HEARD_OF_TWO = 0.25
"""The same of an estimate, which has some of the other voice and may have nothing above 4 kHz."""
PAUSES_SECONDS = (0.0, 0.5, 1.0)
"""No pause; a short one; one of a second; longer ones."""
SAME_ODDS = np.array([[1.2, 4.5], [-0.7, 2.5], [-1.4, 1.8], [-2.0, 0.3]])
"""Log odds (pause, same track) that two stretches of one talker alone are the same person's, on two tracks
and on one; measured on conversations of two to four `valid` talkers, a bit evened."""
CHANGE_WITHIN = -4.0
"""Log probability that two talkers change tracks while one talks on, ..."""
NEITHER = -7.0
"""... and that one falls silent just where two others begin, or the other way round."""
N_ROUNDS = 8

ANYBODY, BEFORE_BOTH, AFTER_BOTH, ALONE = 0, 1, 3, 5
"""Kinds of steps from one stretch to the next: after a pause, if two talk before or after it; from one to two
and from two to one, for each track of the one; from one to one, for each of `SAME_ODDS`."""


@dataclass(frozen=True, eq=False)
class Meeting:
    """Who talks, and on which estimate."""

    activity: Activity
    """(person, frame)."""
    order: NDArray[np.int8]
    """(person, frame): which estimate has each; -1 where both have others."""
    turns: Turns
    """What is doubtful, and the voices."""


def stretches_of_one(passed: Passed, frames: Frames, activity: Activity) -> list[Stretch]:
    """Cut a conversation (2, frame) where anybody begins or ends and at pauses; listen to each stretch."""
    state = activity[0] + 2 * activity[1].astype(int)
    level = in_db(smoothed(frames.mixture, LEVEL_FRAMES))
    edges = np.concatenate([[0], np.flatnonzero(np.diff(state)) + 1, [len(state)]]).tolist()
    found = []
    for first, last in pairwise(edges):
        if state[first] == 0:
            continue
        track = None if state[first] == 3 else int(state[first]) - 1
        pieces = [(first, last)] if track is None else cut_at_pauses(level, first, last)
        found += [Stretch(begin, end, track, voices_in(passed, begin, end, track)) for begin, end in pieces]
    return found


def cut_at_pauses(level: NDArray[np.float64], first: int, last: int) -> list[tuple[int, int]]:
    """Cut frames of somebody's speech into pieces, by the level (frame,) in dB of all.

    >>> level = np.zeros(200)
    >>> level[90:96] = -30.0
    >>> cut_at_pauses(level, 0, 150), cut_at_pauses(level, 100, 180)
    ([(0, 90), (90, 150)], [(100, 180)])
    """
    least = round(PIECE_SECONDS * FRAMES_PER_SECOND)
    pieces, open_ = [], [(first, last)]
    while open_:
        first, last = open_.pop()
        inner = level[first + least : last - least + 1]
        if last - first < 2 * least:
            pieces.append((first, last))
            continue
        at = int(inner.argmin())
        is_long = last - first > LONG_SECONDS * FRAMES_PER_SECOND
        if is_long or inner[at] < np.percentile(level[first:last], 90) - PAUSE_DB:
            open_ += [(first + least + at, last), (first, first + least + at)]
        else:
            pieces.append((first, last))
    return pieces


def people_of(
    stretches: list[Stretch], n_people: int | None = None, space: VoiceSpace | None = None
) -> NDArray[np.intp]:
    """Return who talks in each stretch (stretch,), by voices alone; -1 where two do or it has no voice.

    Args:
        stretches: In order of time.
        n_people: How many there are; None finds out.
        space: Of voices; that of the package by default.
    """
    space = space or load_voice_space()
    alone = [
        at for at, stretch in enumerate(stretches) if stretch.track is not None and stretch.voices is not None
    ]
    who = np.full(len(stretches), -1)
    if alone:
        observed = np.stack([_observed(space, stretches[at]) for at in alone])
        steps = [(0, 0), *(_step(stretches[one], stretches[other]) for one, other in pairwise(alone))]
        pauses, same_track = np.array(steps).T
        who[alone] = divide(space, observed, SAME_ODDS[pauses, same_track], pauses < 2, n_people)
    return who


def _step(one: Stretch, other: Stretch) -> tuple[int, int]:
    """Return the place in `SAME_ODDS` of two stretches of one talker alone."""
    pause = (other.first - one.last) * FRAME_SECONDS
    return int(np.searchsorted(PAUSES_SECONDS, pause)), int(one.track == other.track)


def _observed(space: VoiceSpace, stretch: Stretch, **counts: float) -> NDArray[np.float64]:
    assert stretch.voices is not None
    return space.observed(stretch.voices, (stretch.last - stretch.first) * FRAME_SECONDS, **counts)


def agreement(stretches: list[Stretch], who: NDArray[np.intp]) -> float:
    """Return in what share of the time in which one talks two tracks say the same of who it is as the voices.

    Args:
        stretches: Of two tracks.
        who: One of two people in each stretch (stretch,); -1 where there is nobody's voice.
    """
    known = [
        (s.last - s.first, s.track == person) for s, person in zip(stretches, who, strict=True) if person >= 0
    ]
    frames, same = np.array(known or [(1, 1)]).T
    share = float(frames @ same / frames.sum())
    return max(share, 1 - share)


def meet(stretches: list[Stretch], who: NDArray[np.intp], n_people: int, n_frames: int) -> Meeting:
    """Say who talks in every stretch, and make a track for each.

    Args:
        stretches: In order of time.
        who: A first guess (stretch,), from 0; -1 where there is none.
        n_people: How many there are, two at least.
        n_frames: Of the recording.
    """
    states = _States(n_people)
    if not stretches:
        return _made(stretches, np.zeros(0, np.intp), np.zeros(0), states, n_frames)
    space = load_voice_space()
    heard = [
        None
        if stretch.voices is None
        else _observed(space, stretch, counts=HEARD if stretch.track is not None else HEARD_OF_TWO)
        for stretch in stretches
    ]
    alone = np.array([s.track is not None and s.voices is not None for s in stretches], bool)
    kinds, change = _kinds(stretches), states.change()
    for _ in range(N_ROUNDS):
        scores = _scores(space, states, stretches, heard, who)
        path = likeliest_path(scores, change, kinds)
        newer = np.where(alone, path, -1)
        if (newer == who).all():
            break
        who = newer
    through = best_through(scores, change, kinds)
    every = np.arange(len(path))
    best = through[every, path]
    through[every, path] = -np.inf
    return _made(stretches, path, best - through.max(-1), states, n_frames)


class _States:
    """Who talks: a person alone, or one on the first estimate and one on the second."""

    def __init__(self, n_people: int) -> None:
        self.pairs = np.array(list(permutations(range(n_people), 2)))
        self.n_people, self.n = n_people, n_people + len(self.pairs)

    def spread(self, likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log likelihoods (state,) of those of one voice (person,) or of two (2, person)."""
        scores = np.zeros(self.n)
        if likelihoods.ndim == 1:
            scores[: self.n_people] = likelihoods
        else:
            scores[self.n_people :] = likelihoods[[0, 1], self.pairs].sum(-1)
        return scores

    def change(self) -> NDArray[np.float64]:
        """Return the log probabilities (kind, state, state) of the second after the first."""
        n = self.n_people
        change = np.zeros((ALONE + SAME_ODDS.size, self.n, self.n))
        change[ALONE:, :n, :n] = SAME_ODDS.reshape(-1, 1, 1) * np.eye(n)
        for track in (0, 1):
            talks_on = self.pairs[:, track] == np.arange(n)[:, None]  # (person, pair)
            swaps = self.pairs[:, 1 - track] == np.arange(n)[:, None]
            costs = np.where(talks_on, 0.0, np.where(swaps, CHANGE_WITHIN, NEITHER))
            change[BEFORE_BOTH + track, :n, n:] = costs
            change[AFTER_BOTH + track, n:, :n] = costs.T
        return change


def _kinds(stretches: list[Stretch]) -> NDArray[np.intp]:
    """Return the kind of the step to each stretch (stretch,)."""
    kinds = np.full(len(stretches), ANYBODY)
    for at, (one, other) in enumerate(pairwise(stretches), 1):
        if one.track is not None and other.track is not None:
            pause, same_track = _step(one, other)
            kinds[at] = ALONE + SAME_ODDS.shape[1] * pause + same_track
        elif one.last == other.first and one.track is not None:
            kinds[at] = BEFORE_BOTH + one.track
        elif one.last == other.first and other.track is not None:
            kinds[at] = AFTER_BOTH + other.track
    return kinds


def _scores(
    space: VoiceSpace,
    states: _States,
    stretches: list[Stretch],
    heard: list[NDArray[np.float64] | None],
    who: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return the log likelihoods (stretch, state), each by the voices of all others."""
    n = states.n_people
    sums = np.zeros((n, len(space.between) + 1))
    for person, observed in zip(who.tolist(), heard, strict=True):
        if person >= 0 and observed is not None:
            sums[person] += observed
    scores = np.full((len(stretches), states.n), -np.inf)
    for row, stretch, person, observed in zip(scores, stretches, who.tolist(), heard, strict=True):
        row[slice(n, None) if stretch.track is None else slice(n)] = 0.0
        if observed is None:
            continue
        others = sums
        if person >= 0:
            others = sums.copy()
            others[person] -= observed
        others = settled(others)
        row += states.spread(space.evidence(others + observed[..., None, :]) - space.evidence(others))
    return scores


def _made(
    stretches: list[Stretch],
    path: NDArray[np.intp],
    gains: NDArray[np.float64],
    states: _States,
    n_frames: int,
) -> Meeting:
    n = states.n_people
    activity, order = np.zeros((n, n_frames), bool), np.zeros((n, n_frames), np.int8)
    sums, end = np.zeros((n, len(load_voice_space().mean))), 0
    for stretch, state in zip(stretches, path.tolist(), strict=True):
        taken = np.full(n, -1, np.int8)
        if stretch.track is None:
            people = states.pairs[state - n]
            taken[people] = [0, 1]
        else:
            people = np.array([state])
            taken[:] = 1 - stretch.track
            taken[state] = stretch.track
            if stretch.voices is not None:
                sums[state] += stretch.weight * stretch.voices
        activity[people, stretch.first : stretch.last] = True
        order[:, (end + stretch.first) // 2 :] = taken[:, None]  # changes in the middle of a pause
        end = stretch.last
    doubts = tuple(
        Doubt.of(stretch, gain)
        for stretch, gain in zip(stretches, gains.tolist(), strict=True)
        if gain < DOUBTFUL_GAIN and stretch.last - stretch.first >= LEAST_SECONDS * FRAMES_PER_SECOND
    )
    voices = sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-9)
    alike = (voices @ voices.T)[np.triu_indices(n, 1)]
    return Meeting(activity, order, Turns(np.zeros(n_frames, bool), doubts, 0, float(alike.max()), voices))
