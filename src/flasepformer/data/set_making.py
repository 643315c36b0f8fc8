"""Sets of mixtures made from single-talker recordings, in the layout of LibriMix or WHAMR!.

LibriMix: Cosentino et al., 2020, arXiv:2005.11262. Each talker, and the noise, is brought to a loudness of
its own; rooms are simulated, and the target is then the dry source, in line with the direct sound. A set is
made mixture after mixture: one that is interrupted goes on where it stopped, and ends in the same bytes.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flasepformer.audio import AudioError, read_audio, resample, write_audio
from flasepformer.data.acoustics import recordings_of
from flasepformer.data.conversations import Turn, plan_conversation
from flasepformer.data.loudness import load_pyloudnorm, loudness
from flasepformer.data.manifest import Utterance
from flasepformer.data.mixture_manifest import MixtureFiles, write_mixture_manifest
from flasepformer.data.mixture_sets import MAX_PEAK, shuffled_forever, speaker_combinations
from flasepformer.data.simulated_rooms import draw_room, load_pyroomacoustics
from flasepformer.data.speech_store import mono
from flasepformer.files import write_whole, written_whole
from flasepformer.temporary import temporary_folder

SETTINGS_FILE = "settings.json"
TIMELINE_FILE = "timeline.csv"
ROOMS_FILE = "rooms.csv"
_DONE_FOLDER = ".done"  # one file for each mixture that is complete, until the set is
_GROWING = ".growing-"  # and a name: folders of what is half written, which go with their process
_TIMELINE_COLUMNS = ("mixture", "track", "speaker", "start_s", "end_s", "path", "lufs")
_MEMORY = 4 * 2**30  # bytes that all workers together may take
_MEMORY_PER_BYTE = 8  # that a worker takes while it makes tracks of so many bytes
_FADE_SECONDS = 0.05  # at the ends of a recording of noise

Tracks = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """What is done to the talkers of every mixture of a set."""

    sample_rate: int = 8000
    """Hz."""
    mode: Literal["min", "max"] = "min"
    """Cut to the shortest talker, or filled up to the longest; conversations have a length of their own."""
    loudness_lufs: tuple[float, float] = (-33.0, -25.0)
    """Range of the loudness of each talker."""
    noise: str = ""
    """Folder with recordings of noise; empty adds none."""
    noise_lufs: tuple[float, float] = (-38.0, -30.0)
    """Range of the loudness of the noise."""
    reverberant: bool = False
    """Put the talkers into simulated rooms."""
    decay_seconds: tuple[float, float] = (0.2, 0.6)
    """Range of the time in which reverberation falls by 60 dB."""
    seed: int = 0
    """Another seed, other levels, noises and rooms."""

    def __post_init__(self) -> None:
        if self.sample_rate < 2000:
            raise ValueError(f"sample_rate must be at least 2000 Hz, got {self.sample_rate}")
        for name in ("loudness_lufs", "noise_lufs", "decay_seconds"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must run from low to high, got {(low, high)}")


@dataclass(frozen=True)
class PlannedMixture:
    """Who speaks in a mixture, and when."""

    name: str
    speakers: tuple[str, ...]
    turns: tuple[Turn, ...]
    seconds: float | None = None
    """Length of the mixture; None goes by the mode of the set."""


def plan_mixtures(
    utterances: Sequence[Utterance], n_mixtures: int, seed: int, *, n_sources: int = 2
) -> list[PlannedMixture]:
    """Plan mixtures of one utterance each of different speakers, drawn as in `make_mixture_list`.

    Raises:
        ValueError: There are fewer speakers than sources.
    """
    rng = np.random.default_rng(seed)
    by_speaker = _by_speaker(utterances)
    combinations = speaker_combinations(by_speaker, n_sources, rng)
    said = {name: shuffled_forever(items, rng) for name, items in sorted(by_speaker.items())}
    plans = []
    for number, speakers in zip(range(n_mixtures), combinations, strict=False):
        ordered = [speakers[i] for i in rng.permutation(n_sources)]
        turns = tuple(Turn(k, next(said[speaker])) for k, speaker in enumerate(ordered))
        stems = "_".join(turn.utterance.path.stem for turn in turns)
        plans.append(PlannedMixture(_file_name(f"{number:05d}_{stems}"), tuple(ordered), turns))
    return plans


def plan_conversations(
    utterances: Sequence[Utterance],
    n_conversations: int,
    seed: int,
    *,
    n_sources: int = 2,
    seconds: float = 120.0,
    overlap: float = 0.3,
) -> list[PlannedMixture]:
    """Plan conversations of different speakers; see `conversations.plan_conversation`.

    A speaker's utterances come in a random order, and over again when all are said.

    Raises:
        ValueError: There are fewer speakers than sources, or the overlap is out of its range.
    """
    rng = np.random.default_rng([seed, round(1000 * seconds)])
    by_speaker = _by_speaker([item for item in utterances if item.duration_seconds > 0])
    plans = []
    for number, speakers in zip(
        range(n_conversations), speaker_combinations(by_speaker, n_sources, rng), strict=False
    ):
        ordered = [speakers[i] for i in rng.permutation(n_sources)]
        said = [shuffled_forever(by_speaker[speaker], rng) for speaker in ordered]
        turns = tuple(plan_conversation(said, seconds, overlap, rng))
        name = f"{seconds:g}s_{number:04d}_" + "_".join(ordered)
        plans.append(PlannedMixture(_file_name(name), tuple(ordered), turns, seconds))
    return plans


def _file_name(text: str) -> str:
    """Cut a name to what every file system takes, with room for a suffix."""
    return text.replace("/", "-").encode(errors="surrogateescape")[:200].decode(errors="ignore")


def estimated_bytes(plans: Sequence[PlannedMixture], config: SetConfig) -> int:
    """Return about how much disk a set takes."""
    n_bytes = 0
    for plan in plans:
        lengths = [turn.utterance.duration_seconds for turn in plan.turns]
        seconds = plan.seconds or (min(lengths) if config.mode == "min" else max(lengths))
        n_tracks = len(plan.speakers) * (1 + config.reverberant) + 1 + 2 * bool(config.noise)
        n_bytes += round(2 * n_tracks * seconds * config.sample_rate)
    return n_bytes


def _by_speaker(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    return by_speaker


def make_set(
    plans: Sequence[PlannedMixture],
    folder: str | Path,
    config: SetConfig,
    *,
    n_threads: int | None = None,
    progress: bool = False,
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Make the mixtures that are planned, or go on with a set that was interrupted.

    The folder receives `mix_clean/`, `mix_both/` (with noise), `s1/`, `s2/`, ... and `noise/`; for rooms as
    in WHAMR! `mix_clean_reverb/`, `mix_both_reverb/`, `s1_reverb/`, ... and the dry `s1_anechoic/`, ...; a
    manifest of each kind of mixture, `timeline.csv` (who speaks when, and what), `rooms.csv` and
    `settings.json`. All tracks have 16 bits, and a mixture is the exact sum of its parts.

    Args:
        plans: See `plan_mixtures` and `plan_conversations`.
        folder: Where the set is made; new, or with the same plans and config.
        config: What is done to the talkers.
        n_threads: Mixtures made at a time; by default one per core, fewer when they are very long. It
            changes nothing else.
        progress: Show a progress bar when stderr is a terminal.

    Returns:
        The manifests, and name and reason of every mixture that could not be made.

    Raises:
        ValueError: The folder holds something else. OSError: It cannot be written.
        ImportError: The extra "data" is missing.
    """
    folder = Path(folder)
    maker = _Maker(folder, config)
    _start(folder, plans, config)
    if _is_complete(folder):
        return sorted(folder.glob("mix_*.csv")), []
    (folder / _DONE_FOLDER).mkdir(exist_ok=True)
    failures: list[tuple[str, str]] = []
    pool = ThreadPoolExecutor(n_threads or _default_threads(plans, config))
    with temporary_folder(_GROWING, folder) as growing:
        try:
            made = pool.map(partial(maker.make, growing), range(len(plans)), plans)
            with tqdm(made, "making mixtures", len(plans), disable=None if progress else True) as bar:
                failures = [failure for failure in bar if failure]
        finally:
            pool.shutdown(cancel_futures=True)
    return _finish(folder, plans, keep_marks=bool(failures)), failures


def _default_threads(plans: Sequence[PlannedMixture], config: SetConfig) -> int:
    """Return one per core, unless so many of the longest mixture would not fit into the memory allowed."""
    longest = max((estimated_bytes([plan], config) for plan in plans), default=0)
    return max(1, min(os.cpu_count() or 1, _MEMORY // max(_MEMORY_PER_BYTE * longest, 1)))


def _start(folder: Path, plans: Sequence[PlannedMixture], config: SetConfig) -> None:
    """Take the folder for this set, unless it is another's."""
    digest = hashlib.sha256()
    for plan in plans:
        for turn in plan.turns:
            file = os.path.relpath(turn.utterance.path, folder)
            digest.update(repr((plan.name, file, turn.talker, turn.start_seconds, turn.end_seconds)).encode())
    settings = {**asdict(config), "n_mixtures": len(plans), "plan": digest.hexdigest()}
    text = json.dumps(settings, indent=2) + "\n"
    path = folder / SETTINGS_FILE
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{folder} holds a set with other settings, see {path}; choose another folder")
    elif folder.exists() and any(found.suffix != ".part" for found in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no set; choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def _is_complete(folder: Path) -> bool:
    return (folder / TIMELINE_FILE).exists() and not (folder / _DONE_FOLDER).exists()


def _finish(folder: Path, plans: Sequence[PlannedMixture], *, keep_marks: bool) -> list[Path]:
    """Write what describes the set; return the manifests."""
    marks = [_mark(folder, number) for number in range(len(plans))]
    rows = [json.loads(mark.read_text(encoding="utf-8")) for mark in marks if mark.exists()]
    manifests = []
    for kind in rows[0]["mixtures"] if rows else []:
        files = [_files(folder, row, kind) for row in rows]
        manifests.append(folder / f"{kind}.csv")
        write_mixture_manifest(files, manifests[-1])
    if any("room" in row for row in rows):
        _write_csv(folder / ROOMS_FILE, [row["room"] for row in rows])
    _write_csv(folder / TIMELINE_FILE, [turn for row in rows for turn in row["timeline"]])
    if not keep_marks:
        shutil.rmtree(folder / _DONE_FOLDER)
    return sorted(manifests)


def _mark(folder: Path, number: int) -> Path:
    return folder / _DONE_FOLDER / f"{number}.json"


def _files(folder: Path, row: Mapping[str, Any], kind: str) -> MixtureFiles:
    file = f"{row['name']}.wav"
    return MixtureFiles(
        name=row["name"],
        mixture=folder / kind / file,
        sources=tuple(folder / track / file for track in row["sources"]),
        speakers=tuple(row["speakers"]),
        utterances=tuple(row["utterances"]),
        n_samples=row["n_samples"],
        sample_rate=row["sample_rate"],
        noise=folder / "noise" / file if kind.startswith("mix_both") else None,
        sexes=tuple(row["sexes"]),
        corpora=tuple(row["corpora"]),
    )


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0]) if rows else list(_TIMELINE_COLUMNS)
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


class _Maker:
    """Makes one mixture after another; what is drawn for one depends on the seed and its number only."""

    def __init__(self, folder: Path, config: SetConfig) -> None:
        self.folder, self.config = folder, config
        self.noises = recordings_of(Path(config.noise)) if config.noise else []
        if config.noise and not self.noises:
            raise ValueError(f"no recordings of noise in {config.noise}")
        load_pyloudnorm()  # before any work: is the extra installed?
        if config.reverberant:
            load_pyroomacoustics()

    def make(self, growing: Path, number: int, plan: PlannedMixture) -> tuple[str, str] | None:
        """Make one mixture unless it is there; return its name and why it could not be made, if so.

        What is half written lies in the folder `growing`, which goes with its process.
        """
        mark = _mark(self.folder, number)
        if mark.exists():
            return None
        try:
            tracks, row = self._render(number, plan)
        except (AudioError, ValueError, OSError) as error:
            return plan.name, str(error)
        for track, waveform in tracks.items():
            path, whole = self.folder / track / f"{plan.name}.wav", growing / f"{number}-{track}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(whole, waveform, self.config.sample_rate, subtype="PCM_16")
            whole.replace(path)
        write_whole(mark, json.dumps(row))
        return None

    def _render(self, number: int, plan: PlannedMixture) -> tuple[Tracks, dict[str, Any]]:
        """Return the tracks of a mixture, and what the manifests say about it."""
        config = self.config
        levels, noises, rooms = (np.random.default_rng([config.seed, number, k]) for k in (1, 2, 3))
        timeline: list[dict[str, Any]] = []
        sources = self._sources(plan, levels, timeline)
        row: dict[str, Any] = {
            "name": plan.name,
            "speakers": plan.speakers,
            "timeline": timeline,
            **_labels(plan, self.folder),
        }
        targets, heard = sources, sources
        if config.reverberant:
            room = draw_room(rooms, len(sources), config.decay_seconds)
            row["room"] = {"mixture": plan.name, **asdict(room)}
            paths, responses = zip(*room.responses(config.sample_rate), strict=True)
            targets, heard = (
                np.stack([response.apply(source) for response, source in zip(way, sources, strict=True)])
                for way in (paths, responses)
            )
        noise = self._noise(noises, sources.shape[1], plan.name, timeline) if self.noises else None
        tracks = _tracks(targets, heard, noise, reverberant=config.reverberant)
        row["mixtures"] = [track for track in tracks if track.startswith("mix_")]
        target = "s{}_anechoic" if config.reverberant else "s{}"
        row["sources"] = [target.format(k) for k in range(1, len(sources) + 1)]
        row |= {"n_samples": sources.shape[1], "sample_rate": config.sample_rate}
        return tracks, row

    def _sources(
        self, plan: PlannedMixture, rng: np.random.Generator, timeline: list[dict[str, Any]]
    ) -> NDArray[np.float32]:
        """Return the dry sources (source, time), each at its loudness."""
        rate = self.config.sample_rate
        targets = rng.uniform(*self.config.loudness_lufs, len(plan.speakers)).round(2).tolist()
        pieces = [self._utterance(turn, targets[turn.talker]) for turn in plan.turns]
        starts = [round(turn.start_seconds * rate) for turn in plan.turns]
        ends = [start + len(piece) for start, piece in zip(starts, pieces, strict=True)]
        if plan.seconds is not None:
            n_samples = round(plan.seconds * rate)
        else:
            n_samples = min(ends) if self.config.mode == "min" else max(ends)
        sources = np.zeros((len(plan.speakers), n_samples), np.float32)
        for turn, piece, start in zip(plan.turns, pieces, starts, strict=True):
            piece = piece[: max(n_samples - start, 0)]
            sources[turn.talker, start : start + len(piece)] = piece
            track, end = f"s{turn.talker + 1}", start + len(piece)
            speaker, level = plan.speakers[turn.talker], targets[turn.talker]
            timeline.append(self._entry(plan.name, track, speaker, start, end, turn.utterance.path, level))
        return sources

    def _utterance(self, turn: Turn, target_lufs: float) -> NDArray[np.float32]:
        """Return what is said in a turn, at its loudness, peaks kept below full scale."""
        recording = read_audio(turn.utterance.path)
        original = mono(recording, recording.sample_rate)
        waveform = _at_loudness(original, recording.sample_rate, target_lufs, turn.utterance.path)
        waveform *= min(1.0, MAX_PEAK / float(np.abs(waveform).max()))
        rate = self.config.sample_rate
        end = None if turn.end_seconds is None else round((turn.end_seconds - turn.start_seconds) * rate)
        return resample(waveform, recording.sample_rate, rate)[:end].astype(np.float32, copy=False)

    def _noise(
        self, rng: np.random.Generator, n_samples: int, name: str, timeline: list[dict[str, Any]]
    ) -> NDArray[np.float32]:
        """Return noise (time,) from recordings drawn at random, the first from any place of it on."""
        rate = self.config.sample_rate
        target = round(float(rng.uniform(*self.config.noise_lufs)), 2)
        pieces: list[NDArray[np.float32]] = []
        start = 0
        for path in shuffled_forever(self.noises, rng):
            piece = mono(read_audio(path), rate)
            if not pieces:
                piece = piece[int(rng.integers(max(len(piece) - n_samples, 0) + 1)) :]
            pieces.append(_faded(piece, round(_FADE_SECONDS * rate))[: n_samples - start])
            end = start + len(pieces[-1])
            timeline.append(self._entry(name, "noise", "", start, end, path, target))
            start = end
            if end == n_samples:
                break
        return _at_loudness(np.concatenate(pieces), rate, target, Path(self.config.noise))

    def _entry(
        self, name: str, track: str, speaker: str, start: int, end: int, path: Path, lufs: float
    ) -> dict[str, Any]:
        """Return a row of the timeline."""
        rate = self.config.sample_rate
        values = (
            name,
            track,
            speaker,
            round(start / rate, 6),
            round(end / rate, 6),
            _relative(path, self.folder),
            lufs,
        )
        return dict(zip(_TIMELINE_COLUMNS, values, strict=True))


def _tracks(
    targets: NDArray[np.float32],
    heard: NDArray[np.float32],
    noise: NDArray[np.float32] | None,
    *,
    reverberant: bool,
) -> Tracks:
    """Return every track by its folder, turned down together where one would come near full scale."""
    clean = heard.sum(0)
    loudest = max(float(np.abs(track).max()) for track in (targets, heard, clean))
    if noise is not None:
        loudest = max(loudest, float(np.abs(noise).max()), float(np.abs(clean + noise).max()))
    scale = np.float32(min(1.0, MAX_PEAK / loudest))
    suffix = "_reverb" if reverberant else ""
    tracks = {f"s{k}{suffix}": _rounded(track * scale) for k, track in enumerate(heard, start=1)}
    tracks[f"mix_clean{suffix}"] = clean = np.stack([*tracks.values()]).sum(0)
    if noise is not None:
        tracks["noise"] = _rounded(noise * scale)
        tracks[f"mix_both{suffix}"] = clean + tracks["noise"]
    if reverberant:
        tracks |= {f"s{k}_anechoic": _rounded(track * scale) for k, track in enumerate(targets, start=1)}
    return tracks


def _labels(plan: PlannedMixture, folder: Path) -> dict[str, list[str]]:
    """Return what is known about the talkers; what they say has a name when it is one utterance each."""
    said = {turn.talker: turn.utterance for turn in reversed(plan.turns)}
    talkers = [said.get(k) for k in range(len(plan.speakers))]  # None: never came to speak
    single = len(plan.turns) == len(plan.speakers)
    return {
        "utterances": [_relative(u.path, folder) if u and single else "" for u in talkers],
        "sexes": [u.sex if u else "" for u in talkers],
        "corpora": [u.corpus if u else "" for u in talkers],
    }


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _faded(waveform: NDArray[np.float32], n_fade: int) -> NDArray[np.float32]:
    """Return a waveform (time,) that comes and goes without a click."""
    rise = np.minimum(np.arange(1, len(waveform) + 1) / n_fade, 1.0).astype(np.float32)
    return waveform * rise * rise[::-1]


def _at_loudness(
    waveform: NDArray[np.float32], sample_rate: int, target_lufs: float, path: Path
) -> NDArray[np.float32]:
    level = loudness(waveform, sample_rate) if len(waveform) else float("-inf")
    if level == float("-inf"):
        raise ValueError(f"{path} is silent, or below -70 LUFS; it has no loudness to change")
    louder: NDArray[np.float32] = waveform * np.float32(10 ** ((target_lufs - level) / 20))
    return louder


def _rounded(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 16 bits, so that sums of what is written are what is written of sums."""
    steps: NDArray[np.float32] = np.rint(waveform * np.float32(2**15))
    return steps / np.float32(2**15)
