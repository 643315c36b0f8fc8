"""Measure who spoke when, and how many, in simulated conversations of one to four talkers.

Usage: python benchmarks/meetings.py SPEECH.csv [--split test] [--people 1,2,3,4] [--seconds 60] [--count 12]
    [--noise FOLDER] [--rooms FOLDER] [--tracks]

For every number of people and share of overlap: how many are counted, and how many if it were known where one
talks alone, so that only voices are mistaken; error rates of diarization (DER without a collar, JER;
`pyannote.metrics`) by the level of each estimate, with the number found, and with the number told; and the
share of the talking time on the wrong track. Everybody says something for 3 s or more. With noise it is 10 dB
below the talkers; with rooms every talker is heard by the way of one of them, as loud as before. With
--tracks those who talk at a time are counted by the network alone that knows the tracks.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate
from turns import RATE, annotation, passed_of, spoken

from flasepformer.conversation import Conversation, conversation
from flasepformer.conversation.activity import by_level_alone
from flasepformer.conversation.conversation import is_one_person
from flasepformer.conversation.counting import tracked_chances
from flasepformer.conversation.frames import Frames, in_db, smoothed, sweep
from flasepformer.conversation.meeting import LEVEL_FRAMES, cut_at_pauses, people_of
from flasepformer.conversation.people import MAX_PEOPLE
from flasepformer.conversation.rendering import Rendering
from flasepformer.conversation.turns import Stretch, voices_in
from flasepformer.data import plan_conversations, read_utterances
from flasepformer.data.acoustics import Noise, RoomResponse, load_rooms, rms
from flasepformer.inference import Separator
from flasepformer.inference.finishing import Passed
from flasepformer.metrics import talker_confusion
from flasepformer.training.counting import speaks

LEAST_SECONDS = 3.0
WAYS = ("level", "auto", "told")
NOISE_DB = -10.0
Heard = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def conversations(
    speech: Path, split: str, n_people: int, count: int, seconds: float, overlap: float
) -> Iterator[NDArray[np.float32]]:
    """Yield the sources (talker, time) of conversations in which everybody says something."""
    utterances, rng, found = read_utterances(speech, split), np.random.default_rng(1), 0
    plans = plan_conversations(
        utterances, 20 * count, 1, n_sources=n_people, seconds=seconds, overlap=overlap
    )
    for plan in plans:
        lengths = np.zeros(n_people)
        for turn in plan.turns:
            lengths[turn.talker] += (turn.end_seconds or seconds) - turn.start_seconds
        if lengths.min() < LEAST_SECONDS:
            continue
        sources, _ = spoken(plan, rng, seconds, n_people)
        yield sources
        found += 1
        if found == count:
            return


def true_stretches(passed: Passed, frames: Frames, talks: NDArray[np.bool_]) -> list[Stretch]:
    """Return the stretches in which one of all (talker, frame) talks alone, on the louder estimate."""
    who = np.where(talks.sum(0) == 1, talks.argmax(0), -1)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(who)) + 1, [len(who)]]).tolist()
    level = in_db(smoothed(frames.mixture, LEVEL_FRAMES))
    found = []
    for first, last in pairwise(edges):
        if who[first] >= 0:
            track = int(frames.estimates[:, first:last].sum(-1).argmax())
            for begin, end in cut_at_pauses(level, first, last):
                found.append(Stretch(begin, end, track, voices_in(passed, begin, end, track)))
    return found


def heard_in(rooms: Sequence[RoomResponse], noise: Noise | None) -> Heard:
    """Return what mixes sources (talker, time) in rooms and with noise, drawn anew each time."""
    rng = np.random.default_rng(2)

    def mix(sources: NDArray[np.float32]) -> NDArray[np.float32]:
        if rooms:
            dry, ways = sources, rng.integers(len(rooms), size=len(sources))
            sources = np.stack([rooms[way].apply(one) for way, one in zip(ways, dry, strict=True)])
            sources *= np.float32(
                [[rms(one) / max(rms(wet), 1e-9)] for one, wet in zip(dry, sources, strict=True)]
            )
        mixture = sources.sum(0)
        if noise is not None:
            drawn = noise.draw(rng, len(mixture))
            mixture = mixture + drawn * np.float32(
                10 ** (NOISE_DB / 20) * rms(mixture) / max(rms(drawn), 1e-9)
            )
        return mixture

    return mix


def padded(signals: NDArray[np.float32], n: int) -> torch.Tensor:
    """Return signals (n, time), silent where there are fewer."""
    return torch.from_numpy(np.pad(signals, ((0, n - len(signals)), (0, 0))))


def score(separator: Separator, speech: Path, split: str, n_people: int, mix: Heard, **plan: float) -> None:
    """Print what is found in conversations of so many people."""
    rates = {way: (DiarizationErrorRate(), JaccardErrorRate()) for way in WAYS}
    counted, by_truth = np.zeros(MAX_PEOPLE + 1, int), np.zeros(MAX_PEOPLE + 1, int)
    wrong, spoken = dict.fromkeys(WAYS[1:], 0.0), 0.0
    for sources in conversations(speech, split, n_people, **plan):
        passed = passed_of(separator, mix(sources), RATE)
        frames = sweep(passed)
        talks = np.stack([speaks(source, RATE) for source in sources])[:, : len(frames)]
        activity, order, turns = Conversation().who_speaks(passed, frames)
        if is_one_person(activity, turns):
            activity = activity.any(0)[None]
        counted[len(activity)] += 1
        by_truth[people_of(true_stretches(passed, frames, talks)).max(initial=-1) + 1] += 1
        found = {"level": (by_level_alone(frames), order), "auto": (activity, order)}
        if len(activity) == n_people:
            found["told"] = activity, order
        else:
            activity, order, _ = Conversation(speakers=str(n_people)).who_speaks(passed, frames)
            found["told"] = (activity.any(0)[None] if n_people == 1 else activity), order
        for way, (active, taken) in found.items():
            for rate in rates[way]:
                rate(annotation(talks), annotation(active))
            if way != "level":
                tracks = Rendering(passed, frames, active, taken[: len(active)]).tracks(0, passed.n_samples)
                n = max(len(tracks), len(sources))
                share = float(talker_confusion(padded(tracks, n), padded(sources, n), RATE))
                wrong[way] += share * talks.sum()
        spoken += talks.sum()
    shown = " ".join(
        f"{way} {100 * abs(der):.1f} ({100 * abs(jer):.1f})" for way, (der, jer) in rates.items()
    )
    print(
        f"{n_people} people, {plan['seconds']:g} s, {plan['overlap']:.0%} overlap: counted 1, 2, ... "
        f"{counted[1:7].tolist()}, by true stretches {by_truth[1:7].tolist()}; "
        f"DER (JER) % {shown}; talking time on the wrong track: "
        + ", ".join(f"{way} {100 * share / spoken:.1f} %" for way, share in wrong.items()),
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every number of people and overlap."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--people", default="1,2,3,4")
    parser.add_argument("--overlaps", default="0,0.1")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--noise", type=Path, help="folder of recordings of noise")
    parser.add_argument("--rooms", type=Path, help="folder of responses of rooms")
    parser.add_argument("--tracks", action="store_true")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # pyannote has its say about every recording
    separator = Separator.from_pretrained(options.model, device="cpu")
    if options.tracks:
        conversation.talker_chances = tracked_chances
    rooms = [room for group in load_rooms(options.rooms, RATE) for room in group] if options.rooms else []
    mix = heard_in(rooms, Noise.load([options.noise], RATE) if options.noise else None)
    for n_people in map(int, options.people.split(",")):
        for overlap in map(float, options.overlaps.split(",")):
            if n_people > 1 or overlap == 0:
                plan = {"count": options.count, "seconds": options.seconds, "overlap": overlap}
                score(separator, options.speech, options.split, n_people, mix, **plan)


if __name__ == "__main__":
    main()
