"""Measure interviews with a microphone for each of two talkers, who is heard on the other one too.

Usage: python benchmarks/microphones.py SPEECH.csv [--split test] [--noise FOLDER] [--rooms FOLDER]

For conversations of 60 s, as many at 0, 10 and 30 % overlap each: how many are taken for a channel each, so
that they are not separated, by how much lower the other talker is on a channel; crosstalk straight, 1.5 ms
later, or by the way of a room; then what is none, such as noise beside a channel with both talkers. Of those
that are, and by crosstalk: error rates of diarization (DER without a collar, JER; `pyannote.metrics`).
"""

import argparse
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate
from turns import OVERLAPS, RATE, annotation, spoken

from flasepformer.audio import read_audio, resample, talkers_have_channels
from flasepformer.conversation import Conversation
from flasepformer.conversation.frames import sweep
from flasepformer.data import plan_conversations, read_utterances
from flasepformer.data.acoustics import RoomResponse, load_rooms, recordings_of, rms
from flasepformer.inference.finishing import Passed, array_reader
from flasepformer.training.counting import speaks

CROSSTALK = (3, 6, 8, 10, 12, 15, 20, 30)
NOISE_DB = (0, 10, 20)
SECONDS = 60.0
DELAY = 24
HISS = 1e-4

Samples = NDArray[np.float32]


def interviews(
    sources: Samples, rng: np.random.Generator, noises: Sequence[Path], rooms: Sequence[RoomResponse]
) -> Iterator[tuple[str, Samples]]:
    """Yield recordings (2, time) of two talkers (talker, time) and what they are."""
    hiss = HISS * rng.standard_normal(sources.shape).astype(np.float32)
    others = {"straight": np.roll(sources[::-1], DELAY, axis=1)}
    if rooms:
        room = rooms[rng.integers(len(rooms))]
        others["by a room"] = np.stack(
            [room.apply(source) * np.float32(1 / room_gain(room)) for source in sources]
        )[::-1]
    for way, other in others.items():
        for db in CROSSTALK:
            yield f"{db} dB, {way}", sources + np.float32(10 ** (-db / 20)) * other + hiss
    both = sources.sum(0)
    time = np.arange(len(both)) / RATE
    yield "hum", np.stack([both, 0.3 * rms(both) * np.sin(2 * np.pi * 50 * time)]).astype(np.float32)
    notes = 220 * 2 ** (rng.integers(25, size=round(2 * SECONDS)) / 12)
    played = np.sin(2 * np.pi * np.repeat(notes, RATE // 2) * time) * np.exp(-4 * (time % 0.5))
    yield "played notes", np.stack([both, rms(both) * played]).astype(np.float32)
    if noises:
        recording = read_audio(noises[rng.integers(len(noises))])
        noise = resample(recording.samples.mean(0), recording.sample_rate, RATE)
        noise = np.resize(noise, len(both)) * np.float32(rms(both) / rms(noise))
        for db in NOISE_DB:
            yield f"recorded noise, {db} dB below", np.stack([both, np.float32(10 ** (-db / 20)) * noise])


def room_gain(room: RoomResponse) -> float:
    """Return how much louder a room makes a noise."""
    return float(np.sqrt(np.square(room.samples, dtype=np.float64).sum()))


def passed_of_channels(recording: Samples) -> Passed:
    """Return what passes for estimates: the channels."""
    low = resample(recording, RATE, RATE // 2)
    return Passed(
        n_samples=recording.shape[1], sample_rate=RATE, recording=array_reader(recording.sum(0)),
        n_estimate_samples=low.shape[1], estimate_rate=RATE // 2, n_sources=2,
        mixture=array_reader(low.sum(0)), estimates=array_reader(low), channels=True,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every kind of recording."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=12, help="conversations for each overlap")
    parser.add_argument("--noise", type=Path, help="folder of recordings of noise")
    parser.add_argument("--rooms", type=Path, help="folder of responses of rooms")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # pyannote has its say about every recording
    noises = recordings_of(options.noise) if options.noise else []
    rooms = [room for group in load_rooms(options.rooms, RATE) for room in group] if options.rooms else []
    rng, utterances = np.random.default_rng(1), read_utterances(options.speech, options.split)
    taken, made = defaultdict[str, int](int), defaultdict[str, int](int)
    rates = defaultdict[str, tuple[DiarizationErrorRate, JaccardErrorRate]](
        lambda: (DiarizationErrorRate(), JaccardErrorRate())
    )
    for overlap in OVERLAPS:
        for plan in plan_conversations(utterances, options.count, 1, seconds=SECONDS, overlap=overlap):
            sources, _ = spoken(plan, rng, SECONDS)
            talks = np.stack([speaks(source, RATE) for source in sources])
            for kind, recording in interviews(sources, rng, noises, rooms):
                made[kind] += 1
                if not talkers_have_channels(recording, RATE):
                    continue
                taken[kind] += 1
                if " dB, " in kind and "below" not in kind:
                    passed = passed_of_channels(recording)
                    activity, _, _ = Conversation().who_speaks(passed, sweep(passed))
                    for rate in rates[kind]:
                        rate(annotation(talks), annotation(activity))
    for kind, n in made.items():
        said = " and ".join(f"{100 * abs(rate):.1f} %" for rate in rates.get(kind, ()))
        print(f"{kind}: a channel each in {taken[kind]} of {n}" + (f"; DER and JER {said}" if said else ""))


if __name__ == "__main__":
    main()
