"""From a model's estimates to a conversation: who spoke when, and a track for each."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import mix_down, read_audio, resample
from flasepformer.conversation.activity import (
    Activity,
    ActivityRule,
    activity_of,
    counted_activity,
    rule_for_channels,
)
from flasepformer.conversation.counting import talker_chances
from flasepformer.conversation.frames import FRAME_SECONDS, FRAMES_PER_SECOND, Frames, sweep
from flasepformer.conversation.meeting import agreement, meet, people_of, stretches_of_one
from flasepformer.conversation.people import MAX_PEOPLE
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
from flasepformer.conversation.turns import Turns, mend
from flasepformer.conversation.voice import SAMPLE_RATE, voice_of
from flasepformer.inference.finishing import Finished, Passed

SPEAKERS = (*(str(number) for number in range(1, MAX_PEOPLE + 1)), "auto")

SEGMENT_FILES = (".rttm", ".json", ".vtt", ".txt")
"""Endings of the files of segments: RTTM, JSON, WebVTT, and labels for Audacity."""
TIMELINE = ".png"
LEAST_SECONDS = 0.4
"""Less is nobody's part in a conversation."""
ONE_VOICE = 0.45
"""Voices of two tracks more alike than this are one person's ..."""
SURE_SECONDS = 6.0
"""... if each is heard alone for so long; with less to go by it is one person's sooner."""
NEVER_ALONE_SECONDS = 1.0
SAME_VOICE = 0.42
"""A voice as like an enrolled one as this is the same: of 4 s, up to 5 % are missed, 0.6 % wrongly taken."""
APART = 0.75
"""Where tracks and voices agree in less of the time on which of two people talks, the network has not told
them apart: both are on one track, or change places all the time. Then each gets what has their voice."""
MAX_TIMES = 10
"""Times that a warning lists; the report has all."""
PERSON_BYTES = 4
"""The same for a frame and a person, beside the estimates."""
FRAME_BYTES = 80
"""Most that exists at a time for a frame and an estimate: 74 measured with 40 minutes of 1150 turns."""
PIECE_BYTES = 120_000_000
"""What the networks and the pieces of tracks take, however long the recording."""
LEAST_SHARE = 0.02
"""Nor is less than this, against the time of whoever speaks most."""


_RESERVED = re.compile(r"\s*|residual|speaker\d+")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Finishes what has passed a model of two talkers: tracks without ghosts, and who spoke when.

    There may be more people than two, of whom at most two talk at a time.

    Raises:
        ValueError: An option makes no sense.
        ModuleNotFoundError: A timeline is wanted, and matplotlib is missing.
    """

    speakers: str = "auto"
    """How many people talk, "1" to "10"; "auto" finds out. With other models than of two tracks, or channels
    with a talker each, there are never more than those."""
    segments: bool = False
    """Write who spoke when, as RTTM, JSON, WebVTT and Audacity labels."""
    timeline: bool = False
    """Draw it."""
    residual: bool = False
    """One more track has what belongs to nobody; with it the tracks add up to the recording."""
    floor_db: float | None = None
    """What a silent track keeps of its estimate, in dB; None for nothing."""
    activity: Literal["voices", "levels"] = "voices"
    """How it is decided who speaks: by networks that count talkers and tell voices apart; or by the levels of
    the tracks alone, as it always is of more than two tracks, and of channels with a talker each."""
    names: tuple[tuple[str, str], ...] = ()
    """Names of talkers, each with a recording of that voice alone, of 5 s or more: their tracks get them."""
    rule: ActivityRule = field(default_factory=ActivityRule)
    """When a track counts as speech by its level."""

    def __post_init__(self) -> None:
        if self.speakers not in SPEAKERS:
            raise ValueError(f"speakers must be 1 to {MAX_PEOPLE} or auto, got {self.speakers!r}")
        if self.activity == "levels" and self.speakers not in ("1", "2", "auto"):
            raise ValueError(f"{self.speakers} speakers are told apart by their voices, not by levels")
        if self.activity not in ("voices", "levels"):
            raise ValueError(f"activity must be voices or levels, got {self.activity!r}")
        if self.floor_db is not None and not self.floor_db <= 0:
            raise ValueError(f"floor_db must be at most 0, got {self.floor_db}")
        known = [name for name, _ in self.names]
        if len(set(known)) < len(known) or any(map(_RESERVED.fullmatch, known)):
            raise ValueError(f"names must differ, and be other ones than speaker1 or residual, got {known}")
        if self.timeline:
            check_can_draw()

    @property
    def options(self) -> dict[str, Any]:
        """What decides the tracks, as plain values."""
        return {
            "speakers": self.speakers, "segments": self.segments, "timeline": self.timeline,
            "residual": self.residual, "floor_db": self.floor_db, "activity": self.activity,
            "names": [name for name, _ in self.names],
        }  # fmt: skip

    def labels(self, n_sources: int) -> tuple[str, ...]:
        """Return the labels of all tracks that there may be."""
        n_tracks = 1 if self.speakers == "1" else max(n_sources, self._most_people(n_sources))
        known = tuple(name for name, _ in self.names)
        return (*dict.fromkeys((*_speakers(n_tracks), *known)), *(("residual",) * self.residual))

    def endings(self) -> tuple[str, ...]:
        """Return the ends of the names of all files that there may be beside the tracks."""
        return (*(SEGMENT_FILES if self.segments else ()), *((TIMELINE,) if self.timeline else ()))

    def need_bytes(self, n_sources: int, seconds: float) -> int:
        """See `Finisher`."""
        frame_bytes = FRAME_BYTES * n_sources + PERSON_BYTES * self._most_people(n_sources)
        return PIECE_BYTES + round(frame_bytes * seconds * FRAMES_PER_SECOND)

    def _most_people(self, n_sources: int) -> int:
        """Return how many people's tracks there may be beyond those of the model, or instead."""
        if self.activity == "levels" or n_sources != 2:
            return n_sources
        return MAX_PEOPLE if self.speakers == "auto" else int(self.speakers)

    def finish(self, passed: Passed) -> Finished:
        """Decide who speaks when, and make the tracks."""
        frames = sweep(passed)
        seconds = passed.n_samples / passed.sample_rate
        activity, order, turns = self.who_speaks(passed, frames)
        notes, warnings = [], []
        is_one = self.speakers == "auto" and is_one_person(activity, turns)
        if is_one:
            notes.append("one person talks in this recording: there is one track")
        if self.speakers == "1" or is_one:
            activity = np.asarray(activity.any(0))[None]
        if self.speakers == "auto" and len(activity) > passed.n_sources:
            notes.append(
                f"{len(activity)} people were counted by their voices: there are as many tracks; "
                "if that is wrong, say how many speakers there are"
            )
        if self.speakers != "auto" and len(activity) < int(self.speakers):
            reason = "channels have a talker each" if passed.channels else "tracks are what the model has"
            warnings.append(f"there are {len(activity)} tracks, not {self.speakers}: so many {reason}")
        if not activity.any():
            notes.append("nobody speaks in this recording: the tracks are silent")
        rendering = Rendering(
            passed,
            frames,
            activity,
            order[: len(activity)],
            floor=0.0 if self.floor_db is None else 10 ** (self.floor_db / 20),
            residual=self.residual,
        )
        talkers, matches = self._named(activity, turns, is_one)
        labels = (*talkers, *(("residual",) * self.residual))
        segments = segments_of(activity, talkers, seconds)
        doubts = () if turns is None or is_one else turns.doubts
        if doubts:
            times = ", ".join(f"{doubt.start:.0f} s" for doubt in doubts[:MAX_TIMES])
            warnings.append(
                f"{len(doubts)} stretches may be on the wrong track, at {times}"
                + (", ..." if len(doubts) > MAX_TIMES else "")
            )
        facts = {
            "talkers": _talking_seconds(activity, talkers),
            "overlap_seconds": _overlap(segments),
            "n_mended": 0 if turns is None or is_one else turns.n_mended,
            "likeness": None if turns is None or np.isnan(turns.likeness) else round(turns.likeness, 3),
            "names": matches,
            "doubtful": [asdict(doubt) for doubt in doubts],
        }
        return Finished(
            labels=labels,
            tracks=rendering.tracks,
            files=self._files(passed, segments, talkers, seconds, facts),
            facts=facts,
            warnings=tuple(warnings),
            notes=tuple(notes),
        )

    def who_speaks(self, passed: Passed, frames: Frames) -> tuple[Activity, NDArray[np.int8], Turns | None]:
        """Return who speaks on which track, the estimate that each track takes, and what the voices said."""
        n_tracks = passed.n_sources
        order = np.repeat(np.arange(n_tracks, dtype=np.int8)[:, None], len(frames), 1)
        if self.activity == "levels" or n_tracks != 2 or passed.channels:
            rule = rule_for_channels(frames, self.rule) if passed.channels else self.rule
            return activity_of(frames, rule), order, None
        activity = counted_activity(frames, talker_chances(passed, frames))
        if self.speakers != "1":
            wanted = None if self.speakers in ("2", "auto") else int(self.speakers)
            stretches = stretches_of_one(passed, frames, activity)
            who = people_of(stretches, wanted)
            n_people = wanted or int(who.max(initial=-1)) + 1
            is_more = n_people > 2 and self.speakers != "2"
            if is_more or (n_people == 2 and agreement(stretches, who) < APART):
                meeting = meet(stretches, who, n_people, len(frames))
                return meeting.activity, meeting.order, meeting.turns
        turns = mend(passed, activity)
        if self.speakers == "1":
            return activity, order, turns
        swapped = turns.swapped
        return np.where(swapped, activity[::-1], activity), np.where(swapped, order[::-1], order), turns

    def _named(
        self, activity: Activity, turns: Turns | None, is_one: bool
    ) -> tuple[tuple[str, ...], dict[str, float]]:
        """Return the names of the tracks, and how alike the voices of those that were found are."""
        talkers = list(_speakers(len(activity)))
        if not self.names or turns is None or turns.voices is None:
            return tuple(talkers), {}
        found = turns.voices
        if is_one or len(activity) == 1:  # one voice, on the track that has it
            whole = found.sum(0)
            own = int(activity.sum(-1).argmax())
            found = np.zeros((len(activity), found.shape[-1]))
            found[own] = whole / max(float(np.linalg.norm(whole)), 1e-9)
        known = np.stack([enrolled_voice(Path(path)) for _, path in self.names])
        likeness, matches = found @ known.T, dict[str, float]()
        while likeness.max() >= SAME_VOICE:
            track, index = np.unravel_index(likeness.argmax(), likeness.shape)
            talkers[track] = self.names[index][0]
            matches[self.names[index][0]] = round(float(likeness[track, index]), 3)
            likeness[track], likeness[:, index] = -1, -1
        return tuple(talkers), matches

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
                as_json(segments, passed.name, seconds, facts),
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


def is_one_person(activity: Activity, turns: Turns | None) -> bool:
    """Tell whether all speech on the tracks (track, frame) is one person's; not so if nobody speaks."""
    is_one = talks_alone(activity) or (len(activity) == 2 and is_one_voice(activity, turns))
    return is_one and bool(activity.any())


def is_one_voice(activity: Activity, turns: Turns | None) -> bool:
    """Tell whether the speech on two tracks is one person's, cut in two.

    It is if the voices are alike; how much alike they must be grows with the time that the lesser of the two
    talks alone, and with the share of the time in which both do. One who never talks alone, and next to never
    at all, is nobody.
    """
    if turns is None:
        return False
    both = activity.all(0)
    together = both.sum() / max(activity.any(0).sum(), 1)
    alone = float((activity & ~both).sum(-1).min()) * FRAME_SECONDS
    if alone < LEAST_SECONDS and both.sum() * FRAME_SECONDS < NEVER_ALONE_SECONDS and together < 0.5:
        return True
    return bool(turns.likeness > ONE_VOICE * min(alone / SURE_SECONDS, 1.0) + together)


def enrolled_voice(path: Path) -> NDArray[np.float64]:
    """Return the voice in a recording of one person, the mean over stretches of 4 s.

    Raises:
        AudioError: It cannot be read.
        ValueError: It is shorter than a second, or silent.
    """
    recording = read_audio(path)
    samples, _ = mix_down(recording.samples)
    samples = resample(samples, recording.sample_rate, SAMPLE_RATE)
    if len(samples) < SAMPLE_RATE or np.abs(samples).max() < 1e-4:
        raise ValueError(f"{path}: too short or too quiet to know a voice by; take 5 s or more of one person")
    n_parts = max(1, round(len(samples) / (4 * SAMPLE_RATE)))
    voices = [voice_of(part).astype(np.float64) for part in np.array_split(samples, n_parts)]
    mean = np.mean(voices, axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _talking_seconds(activity: Activity, talkers: tuple[str, ...]) -> dict[str, float]:
    return {
        talker: round(float(frames.sum()) * FRAME_SECONDS, 2)
        for talker, frames in zip(talkers, activity, strict=True)
    }


def _overlap(segments: list[Segment]) -> float:
    return round(sum(end - start for start, end, _ in overlaps_of(segments)), 2)
