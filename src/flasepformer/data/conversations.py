"""Who speaks when: turns that follow each other, with pauses and overlap."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flasepformer.data.manifest import Utterance

MAX_OVERLAP = 0.5
"""Largest share of overlap that turns of unlike lengths can be brought to."""
_KEEP_TURN = 0.15  # how often a talker goes on after a pause
_PAUSE_SECONDS = (0.1, 1.5)
_MIN_GAP = 0.1  # seconds between two utterances of one talker
_MAX_COVER = 0.9  # of a turn by the next one


class Turn(NamedTuple):
    """One utterance in the track of a talker."""

    talker: int
    utterance: Utterance
    start_seconds: float = 0.0
    end_seconds: float | None = None
    """The utterance is cut there; None keeps all of it."""


def plan_conversation(
    utterances: Sequence[Iterator[Utterance]], seconds: float, overlap: float, rng: np.random.Generator
) -> list[Turn]:
    """Let talkers take turns for so long.

    Each turn either follows after a pause or comes in before the last one ends, by as much as brings the
    share of overlap to what is asked for. Where more is wanted than a short turn has, it is a remark within
    the other's long one, and others may follow there.

    Args:
        utterances: What each talker says, one after another, without end.
        seconds: Length of the conversation; the last utterances are cut there.
        overlap: Share of the time with speech in which two or more speak, 0 to `MAX_OVERLAP`.
        rng: Draws who speaks, the pauses and the overlaps.
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ValueError(f"overlap must be from 0 to {MAX_OVERLAP}, got {overlap}")
    turns: list[Turn] = []
    ends = np.full(len(utterances), -np.inf)  # of what each has said so far
    last_start = speech = overlapped = 0.0
    talker = int(rng.integers(len(utterances)))
    while True:
        utterance = next(utterances[talker])
        duration = utterance.duration_seconds
        second, latest = np.sort([0.0, 0.0, *ends])[-2:]  # ends of the two that speak longest
        wanted = (overlap * (speech + duration) - overlapped) / (1 + overlap)
        others_speak = ends[talker] + _MIN_GAP < latest
        if others_speak and wanted > 0 and rng.random() > _pause_share(overlap):
            together = min(wanted * rng.uniform(0.7, 1.3), _MAX_COVER * duration)
            earliest = max(last_start, ends[talker] + _MIN_GAP)
            remark = earliest + rng.uniform(*_PAUSE_SECONDS)
            is_within = wanted > duration and remark + duration < latest
            start = remark if is_within else max(latest - together, earliest)
        else:
            start = latest + rng.uniform(*_PAUSE_SECONDS)
        start = round(float(start), 3)
        if start >= seconds:
            return turns
        end = min(round(start + duration, 3), seconds)
        speech += max(0.0, end - max(start, latest))
        overlapped += max(0.0, min(end, latest) - max(start, second))
        turns.append(Turn(talker, utterance, start, end))
        ends[talker], last_start = end, start
        listens = end < ends.max() and overlapped < overlap * speech  # and has time for another remark
        others = [other for other in range(len(utterances)) if other != talker]
        if others and not listens and rng.random() > _KEEP_TURN:
            talker = int(rng.choice(others))


def _pause_share(overlap: float) -> float:
    """Return how often a turn waits for the last one to end, though there could be more overlap."""
    return 0.5 * (1 - overlap / MAX_OVERLAP)
