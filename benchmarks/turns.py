"""Measure who spoke when, and the tracks, on simulated conversations of two talkers.

Usage: python benchmarks/turns.py SPEECH.csv [--split test] [--count 24] [--seconds 60]

For overlaps of 0, 10 and 30 %: error rates of diarization (DER without a collar, JER; `pyannote.metrics`) by
the level of each estimate, by levels and their ratio, and by voices; the share of the talking time on the
wrong track; wrong turns; SI-SNR improvement at 16 kHz, also of the time in which both talk, and the
log-spectral distance above 4 kHz; each of the estimates and of the finished tracks. Then every recording
alone: how loud the other track is, and how many are said to be of one person.
"""

import argparse
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.core import Annotation
from pyannote.core import Segment as Span
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

from flasepformer.audio import read_audio, resample
from flasepformer.conversation import Conversation, segments_of
from flasepformer.conversation.activity import by_level_alone
from flasepformer.conversation.frames import sweep
from flasepformer.conversation.rendering import Rendering
from flasepformer.data import PlannedMixture, plan_conversations, read_utterances
from flasepformer.inference import Separator
from flasepformer.inference.finishing import Passed, array_reader
from flasepformer.inference.post_filter import PostFiltered
from flasepformer.metrics import si_snr, talker_confusion, wrong_turns
from flasepformer.training.counting import speaks, talking_rms

RATE = 16000
OVERLAPS = (0.0, 0.1, 0.3)


def spoken(
    plan: PlannedMixture, rng: np.random.Generator, seconds: float, n_people: int = 2
) -> tuple[NDArray[np.float32], list[tuple[int, int, int]]]:
    """Return what everybody says (talker, time), 4 dB louder or softer, and turns: talker, first, last."""
    sources = np.zeros((n_people, round(seconds * RATE)), np.float32)
    level, turns = 0.05 * 10 ** (rng.uniform(-4, 4, n_people) / 20), []
    for turn in plan.turns:
        recording = read_audio(turn.utterance.path)
        said = resample(recording.samples.mean(0), recording.sample_rate, RATE)
        first = round(turn.start_seconds * RATE)
        last = min(first + len(said), sources.shape[-1])
        gain = np.float32(level[turn.talker] / talking_rms(said, RATE))
        sources[turn.talker, first:last] += gain * said[: last - first]
        turns.append((turn.talker, first, last))
    return sources, turns


def annotation(active: NDArray[np.bool_]) -> Annotation:
    """Return frames (talker, frame) as the segments of `pyannote`."""
    found = Annotation(uri="talk")
    for number, segment in enumerate(segments_of(active, [str(n) for n in range(len(active))])):
        found[Span(segment.start, segment.end), number] = segment.talker
    return found


def passed_of(separator: Separator, recording: NDArray[np.float32], rate: int) -> Passed:
    """Separate a recording at the model's rate."""
    mixture = resample(recording, rate, separator.sample_rate)
    plain = separator.alike({"post_filter": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimates = plain.separate(mixture, separator.sample_rate)
    return Passed(
        n_samples=len(recording), sample_rate=rate, recording=array_reader(recording),
        n_estimate_samples=len(mixture), estimate_rate=separator.sample_rate, n_sources=len(estimates),
        mixture=array_reader(mixture), estimates=array_reader(estimates),
        filtered=PostFiltered(
            array_reader(mixture), array_reader(estimates), len(mixture), separator.sample_rate,
            separator.post_filter, separator.filter_network, talking_rms(mixture, separator.sample_rate),
        ),
    )  # fmt: skip


def in_order(tracks: NDArray[np.float32], sources: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the tracks in the order in which they are most like the sources."""
    kept, changed = (
        sum(
            float(si_snr(torch.from_numpy(t), torch.from_numpy(s)))
            for t, s in zip(order, sources, strict=True)
        )
        for order in (tracks, tracks[::-1])
    )
    return tracks if kept >= changed else tracks[::-1].copy()


def spectral_distance(
    track: NDArray[np.float32], source: NDArray[np.float32], frames: NDArray[np.bool_]
) -> float:
    """Return the log-spectral distance in dB above 4 kHz in frames of 20 ms, with a floor of -70 dBFS."""
    n = 320
    rows = np.arange(min(len(frames), len(source) // n))[frames[: len(source) // n]]
    window = np.hanning(n)
    power = [
        np.abs(np.fft.rfft(x[: len(x) // n * n].reshape(-1, n)[rows] * window))[:, n // 4 :] ** 2 / n
        for x in (track, source)
    ]
    levels = [10 * np.log10(p + 1e-7) for p in power]
    return float(np.sqrt(np.square(levels[0] - levels[1]).mean(-1)).mean())


def score_conversations(separator: Separator, speech: Path, split: str, count: int, seconds: float) -> None:
    """Print a row for every overlap and way."""
    utterances = read_utterances(speech, split)
    for overlap in OVERLAPS:
        plans = plan_conversations(utterances, count, 1, seconds=seconds, overlap=overlap)
        rng = np.random.default_rng(1)
        rates = {way: (DiarizationErrorRate(), JaccardErrorRate()) for way in ("level", "levels", "voices")}
        figures = defaultdict[str, list[float]](list)
        for plan in plans:
            sources, turns = spoken(plan, rng, seconds)
            mixture = sources.sum(0)
            passed = passed_of(separator, mixture, RATE)
            frames = sweep(passed)
            talks = np.stack([speaks(source, RATE) for source in sources])[:, : len(frames)]
            found = {"level": by_level_alone(frames)}
            for way in ("levels", "voices"):
                activity, order, listened = Conversation(activity=way, speakers="2").who_speaks(
                    passed, frames
                )
                found[way] = activity
                if way == "levels":
                    continue
                figures["mended"].append(listened.n_mended if listened else 0)
                figures["doubtful"].append(len(listened.doubts) if listened else 0)
                finished = Rendering(passed, frames, activity, order).tracks(0, passed.n_samples)
            for way, active in found.items():
                for rate in rates[way]:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        rate(annotation(talks), annotation(active))
            estimates = passed.filtered_at_rate(0, passed.n_samples)
            both = np.repeat(talks.all(0), 320)[: len(mixture)]
            figures["turns"].append(len(turns))
            for name, tracks in (("estimates", estimates), ("finished", finished)):
                tensors = torch.from_numpy(tracks), torch.from_numpy(sources)
                figures[f"{name} wrong time %"].append(100 * float(talker_confusion(*tensors, RATE)))
                if overlap == 0:
                    figures[f"{name} wrong turns"].append(wrong_turns(tensors[0], turns))
                tracks = in_order(tracks, sources)
                for part, chosen in (("", slice(None)), (" both talk", both)):
                    if part and both.sum() < RATE:
                        continue
                    gained = [
                        float(si_snr(torch.from_numpy(t[chosen]), torch.from_numpy(s[chosen])))
                        - float(si_snr(torch.from_numpy(mixture[chosen]), torch.from_numpy(s[chosen])))
                        for t, s in zip(tracks, sources, strict=True)
                    ]
                    figures[f"{name} SI-SNRi{part}"].append(float(np.mean(gained)))
                distances = [
                    spectral_distance(t, s, talk) for t, s, talk in zip(tracks, sources, talks, strict=True)
                ]
                figures[f"{name} LSD above 4 kHz"].append(float(np.mean(distances)))
        print(f"overlap {overlap:.0%}, {count} conversations of {seconds:g} s")
        for way, (der, jer) in rates.items():
            print(f"  {way}: DER {100 * abs(der):.1f} %, JER {100 * abs(jer):.1f} %")
        for name, values in figures.items():
            is_sum = "turns" in name or name in ("mended", "doubtful")
            print(f"  {name}: {sum(values) if is_sum else np.mean(values):.2f}", flush=True)


def score_alone(separator: Separator, speech: Path, split: str, count: int) -> None:
    """Print how loud the other track is where one talks; `count` recordings evenly spread."""
    leaks: dict[str, list[float]] = {"estimates": [], "levels": [], "voices": []}
    one, utterances = {"levels": 0, "voices": 0}, read_utterances(speech, split)
    utterances = utterances[:: max(1, len(utterances) // count)][:count]
    for utterance in utterances:
        recording = read_audio(utterance.path)
        passed = passed_of(separator, recording.samples.mean(0), recording.sample_rate)
        tracks = {"estimates": passed.filtered_at_rate(0, passed.n_samples)}
        for way in ("levels", "voices"):
            finished = Conversation(activity=way, speakers="auto").finish(passed)
            tracks[way] = finished.tracks(0, passed.n_samples)
            one[way] += len(finished.labels) == 1
        whole = float(np.square(recording.samples.mean(0)).mean())
        for way, made in tracks.items():
            leaks[way].append(10 * np.log10(np.sort(np.square(made).mean(-1))[:-1].sum() / whole + 1e-12))
    print(f"{len(utterances)} recordings of one talker")
    for way, found in leaks.items():
        above = np.array(found)
        said = f", one track in {one[way] / len(utterances):.1%}" if way in one else ""
        print(
            f"  {way}: leak above -40 dB in {(above > -40).mean():.1%}, "
            f"above -20 dB in {(above > -20).mean():.1%}{said}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--alone", type=int, default=150, help="recordings of one talker")
    parser.add_argument("--model", default="default")
    options = parser.parse_args(arguments)
    separator = Separator.from_pretrained(options.model)
    score_conversations(separator, options.speech, options.split, options.count, options.seconds)
    score_alone(separator, options.speech, options.split, options.alone)


if __name__ == "__main__":
    main()
