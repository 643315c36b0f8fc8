"""From a model's estimates to a conversation: who spoke when, and a track for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flasepformer.conversation.activity import Activity, ActivityRule, activity_of
from flasepformer.conversation.frames import FRAME_SECONDS, sweep
from flasepformer.conversation.rendering import Rendering
from flasepformer.conversation.segments import (
    Segment,
    as_audacity_labels,
    as_json,
    as_rttm,
    as_webvtt,
    overlaps_of,
    segments_of,
)
from flasepformer.conversation.timeline import check_can_draw, draw_timeline
from flasepformer.inference.finishing import Finished, Passed

Speakers = Literal["1", "2", "auto"]

SEGMENT_FILES = (".rttm", ".json", ".vtt", ".txt")
"""Endings of the files of segments: RTTM, JSON, WebVTT, and labels for Audacity."""
TIMELINE = ".png"
LEAST_SECONDS = 0.4
"""Less is nobody's part in a conversation."""
LEAST_SHARE = 0.02
"""Nor is less than this, against the time of whoever speaks most."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Finishes what has passed a model of two talkers: tracks without ghosts, and who spoke when.

    Raises:
        ValueError: An option makes no sense.
        ModuleNotFoundError: A timeline is wanted, and matplotlib is missing.
    """

    speakers: Speakers = "2"
    """How many talkers there are; "auto" finds out whether it is one or two."""
    segments: bool = False
    """Write who spoke when, as RTTM, JSON, WebVTT and Audacity labels."""
    timeline: bool = False
    """Draw it."""
    residual: bool = False
    """One more track has what belongs to nobody; with it the tracks add up to the recording."""
    floor_db: float | None = None
    """What a silent track keeps of its estimate, in dB; None for nothing."""
    rule: ActivityRule = field(default_factory=ActivityRule)
    """When a track counts as speech."""

    def __post_init__(self) -> None:
        if self.speakers not in ("1", "2", "auto"):
            raise ValueError(f"speakers must be 1, 2 or auto, got {self.speakers!r}")
        if self.floor_db is not None and not self.floor_db <= 0:
            raise ValueError(f"floor_db must be at most 0, got {self.floor_db}")
        if self.timeline:
            check_can_draw()

    @property
    def options(self) -> dict[str, Any]:
        """What decides the tracks, as plain values."""
        return {
            "speakers": self.speakers, "segments": self.segments, "timeline": self.timeline,
            "residual": self.residual, "floor_db": self.floor_db,
        }  # fmt: skip

    def labels(self, n_sources: int) -> tuple[str, ...]:
        """Return the labels of all tracks that there may be."""
        n_tracks = 1 if self.speakers == "1" else n_sources
        return (*_speakers(n_tracks), *(("residual",) * self.residual))

    def endings(self) -> tuple[str, ...]:
        """Return the ends of the names of all files that there may be beside the tracks."""
        return (*(SEGMENT_FILES if self.segments else ()), *((TIMELINE,) if self.timeline else ()))

    def finish(self, passed: Passed) -> Finished:
        """Decide who speaks when, and make the tracks."""
        frames = sweep(passed)
        seconds = passed.n_samples / passed.sample_rate
        activity = activity_of(frames, self.rule)
        notes = []
        if self.speakers == "1" or (self.speakers == "auto" and talks_alone(activity)):
            activity = np.asarray(activity.any(0))[None]
            if self.speakers == "auto":
                notes.append("one person talks in this recording: there is one track")
        if not activity.any():
            notes.append("nobody speaks in this recording: the tracks are silent")
        order = np.repeat(np.arange(len(activity))[:, None], len(frames), 1)
        rendering = Rendering(
            passed,
            frames,
            activity,
            order,
            floor=0.0 if self.floor_db is None else 10 ** (self.floor_db / 20),
            residual=self.residual,
        )
        labels = (*_speakers(len(activity)), *(("residual",) * self.residual))
        talkers = labels[: len(activity)]
        segments = segments_of(activity, talkers, seconds)
        facts = {"talkers": _talking_seconds(activity, talkers), "overlap_seconds": _overlap(segments)}
        return Finished(
            labels=labels,
            tracks=rendering.tracks,
            files=self._files(passed, segments, talkers, seconds, facts),
            facts=facts,
            notes=tuple(notes),
        )

    def _files(
        self,
        passed: Passed,
        segments: list[Segment],
        talkers: tuple[str, ...],
        seconds: float,
        facts: Mapping[str, Any],
    ) -> dict[str, Callable[[Path], None]]:
        files: dict[str, Callable[[Path], None]] = {}
        if self.segments:
            texts = (
                as_rttm(segments, passed.name),
                as_json(segments, passed.name, seconds),
                as_webvtt(segments),
                as_audacity_labels(segments),
            )
            files |= {
                ending: partial(_write, text) for ending, text in zip(SEGMENT_FILES, texts, strict=True)
            }
        if self.timeline:
            files[TIMELINE] = partial(
                draw_timeline, passed=passed, segments=segments, talkers=talkers, seconds=seconds
            )
        return files


def _speakers(n_tracks: int) -> tuple[str, ...]:
    return tuple(f"speaker{number}" for number in range(1, n_tracks + 1))


def talks_alone(activity: Activity) -> bool:
    """Tell whether all but one track speak next to never: it is one person, and noises."""
    seconds = np.sort(activity.sum(-1)) * FRAME_SECONDS
    return bool(seconds[:-1].sum() < max(LEAST_SECONDS, LEAST_SHARE * seconds[-1]))


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _talking_seconds(activity: Activity, talkers: tuple[str, ...]) -> dict[str, float]:
    return {
        talker: round(float(frames.sum()) * FRAME_SECONDS, 2)
        for talker, frames in zip(talkers, activity, strict=True)
    }


def _overlap(segments: list[Segment]) -> float:
    return round(sum(end - start for start, end, _ in overlaps_of(segments)), 2)
