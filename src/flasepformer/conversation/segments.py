"""Who spoke when: from frames to segments, and from segments to the files that others read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flasepformer.conversation.activity import runs
from flasepformer.conversation.frames import FRAME_SECONDS


@dataclass(frozen=True, order=True)
class Segment:
    """One talker speaks, from `start` to `end`."""

    start: float
    """In seconds, a multiple of 20 ms."""
    end: float
    talker: str


def segments_of(
    active: NDArray[np.bool_], talkers: Sequence[str], seconds: float = float("inf")
) -> list[Segment]:
    """Return who speaks when, in order of time.

    Args:
        active: (track, frame).
        talkers: Name of the talker of each track.
        seconds: Length of the recording, where the last segments end at the latest.

    >>> segments_of(np.array([[0, 1, 1, 0]], bool), ["Ann"])
    [Segment(start=0.02, end=0.06, talker='Ann')]
    """
    return sorted(
        Segment(round(first * FRAME_SECONDS, 2), min(round(last * FRAME_SECONDS, 2), seconds), talker)
        for talker, frames in zip(talkers, active, strict=True)
        for first, last in runs(frames)
    )


def overlaps_of(segments: Sequence[Segment]) -> list[tuple[float, float, tuple[str, ...]]]:
    """Return where two or more speak: start, end and who, in order of time.

    >>> overlaps_of([Segment(0.0, 2.0, "Ann"), Segment(1.5, 3.0, "Bo")])
    [(1.5, 2.0, ('Ann', 'Bo'))]
    """
    times = sorted({time for segment in segments for time in (segment.start, segment.end)})
    overlaps: list[tuple[float, float, tuple[str, ...]]] = []
    ordered, begun, speaking = sorted(segments), 0, list[Segment]()
    for start, end in pairwise(times):
        while begun < len(ordered) and ordered[begun].start <= start:
            speaking.append(ordered[begun])
            begun += 1
        speaking = [segment for segment in speaking if segment.end > start]
        who = tuple(sorted({segment.talker for segment in speaking}))
        if len(who) < 2:
            continue
        if overlaps and overlaps[-1][1] == start and overlaps[-1][2] == who:
            start = overlaps.pop()[0]
        overlaps.append((start, end, who))
    return overlaps


def as_rttm(segments: Sequence[Segment], recording: str) -> str:
    r"""Return NIST's Rich Transcription Time Marks; spaces in names, which end fields, become underscores.

    >>> as_rttm([Segment(0.5, 1.25, "Ann")], "a talk")
    'SPEAKER a_talk 1 0.500 0.750 <NA> <NA> Ann <NA> <NA>\n'
    """
    name = _one_word(recording)
    return "".join(
        f"SPEAKER {name} 1 {s.start:.3f} {s.end - s.start:.3f} <NA> <NA> {_one_word(s.talker)} <NA> <NA>\n"
        for s in segments
    )


def as_json(
    segments: Sequence[Segment], recording: str, seconds: float, facts: Mapping[str, Any] | None = None
) -> str:
    """Return segments, overlaps and the talking time of everybody as JSON, and further facts."""
    talkers = sorted({segment.talker for segment in segments})
    content = {
        "recording": recording,
        "seconds": seconds,
        "talkers": {
            talker: {"seconds": round(sum(s.end - s.start for s in segments if s.talker == talker), 2)}
            for talker in talkers
        },
        "segments": [{"start": s.start, "end": s.end, "talker": s.talker} for s in segments],
        "overlaps": [
            {"start": start, "end": end, "talkers": list(who)} for start, end, who in overlaps_of(segments)
        ],
    }
    content |= {name: value for name, value in (facts or {}).items() if name not in content}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_webvtt(segments: Sequence[Segment]) -> str:
    """Return captions that name who speaks, for players of video.

    >>> print(as_webvtt([Segment(0.5, 3661.25, "Ann")]), end="")
    WEBVTT
    <BLANKLINE>
    00:00:00.500 --> 01:01:01.250
    <v Ann>Ann</v>
    """
    cues = [
        f"\n{_clock(s.start)} --> {_clock(s.end)}\n<v {_plain(s.talker)}>{_plain(s.talker)}</v>\n"
        for s in segments
    ]
    return "WEBVTT\n" + "".join(cues)


def as_audacity_labels(segments: Sequence[Segment]) -> str:
    r"""Return what Audacity imports as a label track.

    >>> as_audacity_labels([Segment(0.5, 1.25, "Ann")])
    '0.500000\t1.250000\tAnn\n'
    """
    return "".join(f"{s.start:.6f}\t{s.end:.6f}\t{' '.join(s.talker.split())}\n" for s in segments)


def _one_word(name: str) -> str:
    return "_".join(name.split()) or "_"


def _plain(name: str) -> str:
    return " ".join(name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    return (
        f"{thousandths // 3_600_000:02d}:{thousandths // 60_000 % 60:02d}:"
        f"{thousandths // 1000 % 60:02d}.{thousandths % 1000:03d}"
    )
