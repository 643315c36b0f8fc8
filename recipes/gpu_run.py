"""Train a recipe on one GPU without internet, in the minutes that there are, from a bare checkout.

Usage:
    python recipes/gpu_run.py pack recipes/gpu-default.yaml --speech MANIFEST.csv --out runs/pack
    python recipes/gpu_run.py train recipes/gpu-default.yaml --pack runs/pack --out RESULTS --minutes 9
    python recipes/gpu_run.py train recipes/gpu-default.yaml --pack runs/pack --out RESULTS --minutes 9 \
        --resume EARLIER_RESULTS
    python recipes/gpu_run.py join RESULTS --out runs/mine

`pack` runs where the speech is. It writes all that the recipe hears, coded at the model's sample rate in as
many bits as fit, and the wheels that the other machine lacks. Take that folder along with the checkout.

`train` runs on the GPU (or, slowly, without one). It times a few steps and chooses the number of steps so
that the learning rate has fallen to zero, and the last validation is over, when the minutes are; should the
machine become slower, the run is ended and kept all the same. The results are few and small enough to carry:

    model.safetensors, config.json      the best weights in half precision: RESULTS is a checkpoint of ours
    checkpoint-STEP-1-of-N.part, ...    everything to go on from; in bfloat16 what may be, if it must be
    curve.csv, log.txt, recipe.yaml     the run; the recipe with the machine on top

`join` makes of them the folder of an ordinary run, for `flasepformer train --resume` or `publish.py`.
"""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil  # type: ignore[import-untyped]
import soundfile
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # the checkout need not be installed

from flasepformer.audio import AudioError, read_audio
from flasepformer.data import DynamicMixing, SpeechStore, Utterance, read_utterances
from flasepformer.data.acoustics import recordings_of
from flasepformer.data.dynamic_mixing import SIMULATED
from flasepformer.data.speech_store import mono
from flasepformer.models import load_model, save_model
from flasepformer.training import Recipe, TrainingError, load_recipe, save_recipe, train
from flasepformer.training.run_folder import (
    BEST_FOLDER,
    CHECKPOINT_FILE,
    CURVE_FILE,
    RECIPE_FILE,
    RunFolder,
)

ROOT = Path(__file__).parents[1]
MIB = 2**20

INDEX_FILE = "index.csv"
LOG_FILE = "log.txt"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

INDEX_COLUMNS = (
    "path", "split", "speaker", "duration_s", "sex", "corpus", "licence", "stream", "start", "n_samples",
)  # fmt: skip
NOISE_FOLDER = "noise"
ROOMS_FOLDER = "rooms"
WHEELS_FOLDER = "wheels"
SITE_FOLDER = "runs/site"
"""Where the wheels are installed on the other machine."""
STREAM_SECONDS = 600.0
"""Of speech in one file: so many that all cores can decode."""
KBIT_RANGE = (10.0, 16.0)
"""Bit rate of the speech. At 8 kHz Opus keeps 20 dB SI-SDR with 16 kbit/s and 15 dB with 10; with 20 it takes
another mode and keeps 19."""
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
_OPUS_LEAST, _OPUS_RANGE = 6.0, 250.0  # libsndfile's kbit/s at compression level 1, and what level 0 adds
_OVERHEAD = 1.04  # of the container, and what the encoder takes beyond its rate

PACKAGES = ("soundfile", "cffi", "pycparser", "soxr")
"""What training needs beside PyTorch, numpy, accelerate, tensorboard, safetensors, huggingface-hub, pyyaml,
tqdm and typer."""
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)

N_PROBE_STEPS = 8
PACE_SHARE = 0.1
"""Share of the time after which the pace is known well enough to plan the rest."""
SLACK = 0.03
"""Share of the steps that the last plan leaves out, in case the pace falls."""
N_MIXED = 50
"""Mixtures that are made to see how long one takes."""
_N_SMALL_FILES = 4  # of the results: config, curve, log and recipe


# --- pack: speech and wheels into one folder ---


def pack(
    recipe: Recipe,
    speech: Path,
    out: Path,
    *,
    max_bytes: int,
    max_hours: float = float("inf"),
    progress: Callable[[str], None] = lambda line: None,
) -> float:
    """Write all that a recipe hears into a folder, in at most so many bytes.

    Args:
        recipe: Its splits are taken, its folders of noise and of rooms; a path that does not exist is sought
            beside the speech.
        speech: As `data.speech` of a recipe.
        out: New, or a pack, which is replaced.
        max_bytes: Of all files.
        max_hours: Of the speech to train on; every speaker gets a share of them.
        progress: Called with what is done.

    Returns:
        The bit rate in kbit/s.

    Raises:
        ValueError: So much does not fit, or Opus does not know the model's sample rate.
    """
    rate = recipe.model.sample_rate
    if rate not in OPUS_RATES:
        raise ValueError(f"Opus knows the sample rates {OPUS_RATES}, the model has {rate} Hz")
    exclude = {"licence": recipe.data.exclude_licences} if recipe.data.exclude_licences else None
    names = (recipe.data.train_split, recipe.data.valid_split)
    train_split, valid_split = (read_utterances(speech, name, exclude=exclude) for name in names)
    items = [(names[0], u) for u in _spread(train_split, 3600 * max_hours)]
    items += [(names[1], u) for u in valid_split]
    beside = speech if speech.is_dir() else speech.parent
    for folder in recipe.mixing.noise:
        paths = recordings_of(_found(Path(folder), beside))
        items += [(f"{NOISE_FOLDER}/{Path(folder).name}", Utterance(path, "", 0.0)) for path in paths]
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    if there - {WHEELS_FOLDER} and INDEX_FILE not in there:
        raise ValueError(f"{out} is not empty and holds no pack; choose another folder")
    for old in [*out.glob("*.opus"), *out.glob(INDEX_FILE)]:
        old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    n_bytes = _copy_rooms(recipe, beside, out)

    progress(f"decoding {len(items)} recordings")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(lambda item: _decoded(item[1].path, rate), items))
    items = [item for item, waveform in zip(items, decoded, strict=True) if len(waveform)]
    waveforms = [waveform for waveform in decoded if len(waveform)]
    index = _index(items, waveforms, rate)
    n_bytes += sum(len(",".join(map(str, row.values()))) + 1 for row in index)
    seconds = sum(map(len, waveforms)) / rate
    affordable = (max_bytes - n_bytes) * 8 / 1000 / seconds / _OVERHEAD
    kbit = min(KBIT_RANGE[1], affordable)
    if kbit < KBIT_RANGE[0]:
        hours = affordable / KBIT_RANGE[0] * seconds / 3600
        raise ValueError(
            f"{seconds / 3600:.2f} h of speech and noise do not fit into {max_bytes / MIB:.1f} MiB; about "
            f"{max(hours, 0):.2f} h would, at {KBIT_RANGE[0]:g} kbit/s: give max_hours"
        )
    progress(f"coding {seconds / 3600:.2f} h at {kbit:.1f} kbit/s")
    streams: dict[str, list[NDArray[np.float32]]] = {}
    for row, waveform in zip(index, waveforms, strict=True):
        streams.setdefault(row["stream"], []).append(waveform)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda s: _encode(out / s[0], np.concatenate(s[1]), rate, kbit), streams.items()))
    with (out / INDEX_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS)
        writer.writeheader()
        writer.writerows(index)
    return kbit


def _spread(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Keep about so much speech, the speakers in turn, in the order that it has."""
    turns: dict[str, int] = {}
    ranked = []
    for number, utterance in enumerate(utterances):
        turns[utterance.speaker] = turns.get(utterance.speaker, 0) + 1
        ranked.append((turns[utterance.speaker], number))
    kept, total = set(), 0.0
    for _, number in sorted(ranked):
        total += utterances[number].duration_seconds
        if total > seconds:
            break
        kept.add(number)
    return [utterance for number, utterance in enumerate(utterances) if number in kept]


def _found(path: Path, beside: Path) -> Path:
    for place in (path, beside / path):
        if place.exists():
            return place
    raise ValueError(f"the recipe names {path}, which is neither here nor in {beside}")


def _copy_rooms(recipe: Recipe, beside: Path, out: Path) -> int:
    """Copy the room responses, if there are any; return their bytes."""
    shutil.rmtree(out / ROOMS_FOLDER, ignore_errors=True)
    if recipe.mixing.rooms in ("", SIMULATED):
        return 0
    shutil.copytree(_found(Path(recipe.mixing.rooms), beside), out / ROOMS_FOLDER)
    return folder_bytes(out / ROOMS_FOLDER)


def _decoded(path: Path, rate: int) -> NDArray[np.float32]:
    """Return a recording, below full scale; empty if it cannot be read."""
    try:
        waveform = mono(read_audio(path), rate)
    except AudioError as error:
        print(f"left out: {error}", file=sys.stderr)
        return np.zeros(0, np.float32)
    return waveform * np.float32(min(1.0, 0.95 / max(float(np.abs(waveform).max(initial=0.0)), 1e-9)))


def _index(
    items: Sequence[tuple[str, Utterance]], waveforms: Sequence[NDArray[np.float32]], rate: int
) -> list[dict[str, Any]]:
    """Return where each recording lies: the recordings one after another, in streams of some minutes."""
    rows: list[dict[str, Any]] = []
    stream, start = 0, 0
    for number, ((split, utterance), waveform) in enumerate(zip(items, waveforms, strict=True)):
        if start > STREAM_SECONDS * rate:
            stream, start = stream + 1, 0
        rows.append(
            {
                "path": f"{split}/{number:05d}.wav",
                "split": split,
                "speaker": utterance.speaker,
                "duration_s": round(len(waveform) / rate, 3),
                "sex": utterance.sex,
                "corpus": utterance.corpus,
                "licence": utterance.licence,
                "stream": f"{stream:03d}.opus",
                "start": start,
                "n_samples": len(waveform),
            }
        )
        start += len(waveform)
    return rows


def _encode(path: Path, waveform: NDArray[np.float32], rate: int, kbit: float) -> None:
    level = 1 - (kbit - _OPUS_LEAST) / _OPUS_RANGE
    with soundfile.SoundFile(
        path, "w", rate, 1, "OPUS", format="OGG", compression_level=min(max(level, 0.0), 1.0)
    ) as file:
        for start in range(0, len(waveform), 2**16):
            file.write(waveform[start : start + 2**16])


def unpack(folder: Path, into: Path) -> None:
    """Write the recordings of a pack as WAV files with a manifest; one that is there already stays.

    Raises:
        ValueError: The folder holds no pack, or part of one.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        raise ValueError(f"{folder} holds no pack: there is no {INDEX_FILE}")
    content = index.read_bytes()
    if (into / "MANIFEST.csv").exists() and (into / INDEX_FILE).read_bytes() == content:
        return
    shutil.rmtree(into, ignore_errors=True)
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    streams: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        streams.setdefault(row["stream"], []).append(row)
        (into / row["path"]).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda stream: _decode_stream(folder / stream[0], stream[1], into), streams.items()))
    (into / INDEX_FILE).write_bytes(content)
    temporary = into / ".manifest.part"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS[:7], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in rows if row["speaker"])
    temporary.replace(into / "MANIFEST.csv")  # last: it says that all is there


def _decode_stream(path: Path, rows: Sequence[dict[str, str]], into: Path) -> None:
    if not path.is_file():
        raise ValueError(f"the pack is not whole: {path} is missing")
    samples, rate = soundfile.read(path, dtype="int16")
    for row in rows:
        start, n_samples = int(row["start"]), int(row["n_samples"])
        if start + n_samples > len(samples):
            raise ValueError(f"the pack is not whole: {path} ends at sample {len(samples)}")
        soundfile.write(into / row["path"], samples[start : start + n_samples], rate, "PCM_16")


def fetch_wheels(folder: Path, packages: Sequence[str], python: str) -> None:
    """Download the wheels of packages, in the versions installed here, for another Python on Linux."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, *platforms, "--dest", str(folder),
        *(f"{name}=={version(name)}" for name in packages),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def checkout_bytes() -> int:
    """Return the bytes of the files of the checkout that git knows or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    paths = (ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


# --- results: weights and checkpoint in a few small files ---


@dataclass(frozen=True)
class Limits:
    """What may be left behind."""

    file_bytes: int = 16 * MIB - 2**16
    n_files: int = 8
    total_bytes: int = 64 * MIB


def export(run: Path, out: Path, recipe: Recipe, log: Path | None, limits: Limits) -> None:
    """Leave what a run has so far: weights, checkpoint, curve, log and recipe, each file whole or not at all.

    Weights larger than a file may be are split like the checkpoint; a checkpoint that does not fit at all is
    left out, and both are said.
    """
    out.mkdir(parents=True, exist_ok=True)
    fresh: list[Path] = []
    if (run / BEST_FOLDER).is_dir():
        with tempfile.TemporaryDirectory() as name:
            _halve(run / BEST_FOLDER, Path(name))
            weights, config = ((Path(name) / file).read_bytes() for file in (WEIGHTS_FILE, CONFIG_FILE))
        _check_room_for_weights(weights, limits)
        fresh += [
            _write(out / CONFIG_FILE, config),
            *_write_parts(weights, out, WEIGHTS_FILE, limits.file_bytes),
        ]
    environment = run / "environment.txt"  # missing if the run ended before it began
    notes = environment.read_text(encoding="utf-8").splitlines() if environment.is_file() else []
    if torch.cuda.is_available():
        notes.append(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as name:
        save_recipe(recipe, Path(name) / RECIPE_FILE)
        settings = (Path(name) / RECIPE_FILE).read_text(encoding="utf-8")
    texts = {RECIPE_FILE: "".join(f"# {note}\n" for note in notes) + settings}
    for source in filter(None, (run / CURVE_FILE, log)):
        if source.is_file():
            texts[source.name] = source.read_text(encoding="utf-8")
    for file, text in texts.items():
        fresh.append(_write(out / file, text.encode()))

    state = torch.load(run / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    n_parts = limits.n_files - len(fresh)
    room = min(limits.total_bytes - sum(path.stat().st_size for path in fresh), n_parts * limits.file_bytes)
    name = f"checkpoint-{state['progress']['step']:08d}"
    sizes = []
    for kind in (lambda whole: whole, shrink):
        shrunk = kind(state)
        sizes.append(f"{_tensor_bytes(shrunk) / MIB:.1f}")
        if _tensor_bytes(shrunk) <= room and len(content := _serialised(shrunk)) <= room:
            fresh += _write_parts(content, out, name, limits.file_bytes)
            break
    else:
        print(
            f"the checkpoint is left out: it has {sizes[0]} MiB, {sizes[1]} MiB in bfloat16, and only "
            f"{room / MIB:.1f} MiB in {n_parts} files are left; resuming starts from the weights alone"
        )
    for old in [*out.glob("checkpoint-*.part"), *out.glob(f"{WEIGHTS_FILE}*")]:
        if old not in fresh:
            old.unlink()


def _check_room_for_weights(weights: bytes, limits: Limits) -> None:
    n_parts = -(-len(weights) // limits.file_bytes)
    if n_parts > limits.n_files - _N_SMALL_FILES or len(weights) > limits.total_bytes - MIB:
        raise TrainingError(
            f"the weights have {len(weights) / MIB:.1f} MiB, more than {limits.n_files} files of "
            f"{limits.file_bytes / MIB:g} MiB, {limits.total_bytes / MIB:g} MiB in all, can hold"
        )
    if n_parts > 1:
        print(f"the weights have {len(weights) / MIB:.1f} MiB; `join` puts their {n_parts} parts together")


def _halve(folder: Path, into: Path) -> None:
    """Store a checkpoint of ours in half precision, with what is known of it."""
    info = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["info"]
    save_model(load_model(folder), into, info, dtype=torch.float16)


def shrink(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of about 60 % of the size: weights exact, the rest in bfloat16.

    The moments of the optimizers keep their range and 8 bits; of the running average, its difference from the
    weights does.
    """
    weights = state["model"]
    average = {
        name: _narrow(value - weights[name.removeprefix("module.")]) if name.startswith("module.") else value
        for name, value in state["average"].items()
    }
    optimizers = [
        {**optimizer, "state": {key: _narrow_all(moments) for key, moments in optimizer["state"].items()}}
        for optimizer in state["optimizers"]
    ]
    return {**state, "average": average, "optimizers": optimizers, "shrunk": True}


def expand(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `shrink`, as far as it can be; leave any other checkpoint alone."""
    if not state.get("shrunk"):
        return state
    weights = state["model"]
    average = {
        name: weights[name.removeprefix("module.")] + value if name.startswith("module.") else value
        for name, value in state["average"].items()
    }
    optimizers = [
        {
            **optimizer,
            "state": {
                key: {name: v.float() if _is_narrow(v) else v for name, v in moments.items()}
                for key, moments in optimizer["state"].items()
            },
        }
        for optimizer in state["optimizers"]
    ]
    kept = {key: value for key, value in state.items() if key != "shrunk"}
    return {**kept, "average": average, "optimizers": optimizers}


def _narrow_all(moments: dict[str, Any]) -> dict[str, Any]:
    return {name: _narrow(value) if torch.is_tensor(value) else value for name, value in moments.items()}


def _narrow(value: torch.Tensor) -> torch.Tensor:
    """Return float32 as bfloat16; counts, and single numbers such as the step, as they are."""
    return value.bfloat16() if value.dtype == torch.float32 and value.ndim > 0 else value


def _is_narrow(value: Any) -> bool:
    return torch.is_tensor(value) and value.dtype == torch.bfloat16


def _tensor_bytes(content: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries and lists."""
    if torch.is_tensor(content):
        return content.numel() * content.element_size()
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return sum(map(_tensor_bytes, items))


def _serialised(state: dict[str, Any]) -> bytes:
    """Return a checkpoint as bytes that end with their digest."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    return content + hashlib.sha256(content).digest()


def _write_parts(content: bytes, folder: Path, name: str, size: int) -> list[Path]:
    """Write a file under its name, or in parts if it is larger; a checkpoint always in parts."""
    n_parts = -(-len(content) // size)
    if n_parts == 1 and not name.startswith("checkpoint-"):
        return [_write(folder / name, content)]
    return [
        _write(folder / f"{name}-{k + 1}-of-{n_parts}.part", content[k * size : (k + 1) * size])
        for k in range(n_parts)
    ]


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path


def _read_parts(folder: Path, name: str) -> bytes | None:
    """Return what `_write_parts` wrote; None if there is nothing of that name.

    Raises:
        ValueError: A part is missing.
    """
    parts = sorted(folder.glob(f"{name}-*-of-*.part"), key=lambda path: int(path.stem.split("-")[-3]))
    if not parts:
        return None
    n_parts = int(parts[0].stem.split("-")[-1])
    if [path.name for path in parts] != [f"{name}-{k + 1}-of-{n_parts}.part" for k in range(n_parts)]:
        raise ValueError(f"of the {n_parts} parts of {name}, {folder} has {[path.name for path in parts]}")
    return b"".join(path.read_bytes() for path in parts)


def restore(results: Path, run: Path) -> bool:
    """Make the folder of an ordinary run of what `export` left, or of a run's folder itself.

    Returns:
        Whether there is a checkpoint to go on from; otherwise the weights are all.

    Raises:
        ValueError: There are no weights either, or the checkpoint is not whole.
    """
    run.mkdir(parents=True, exist_ok=True)
    if results.resolve() == run.resolve():
        return RunFolder(run).checkpoint is not None
    for name in (CURVE_FILE, RECIPE_FILE, CHECKPOINT_FILE):
        if (results / name).is_file():
            shutil.copyfile(results / name, run / name)
    if (results / BEST_FOLDER).is_dir():
        shutil.copytree(results / BEST_FOLDER, run / BEST_FOLDER, dirs_exist_ok=True)
        return (run / CHECKPOINT_FILE).exists()
    weights = _read_parts(results, WEIGHTS_FILE)
    if weights is None and (results / WEIGHTS_FILE).is_file():
        weights = (results / WEIGHTS_FILE).read_bytes()
    if weights is None or not (results / CONFIG_FILE).is_file():
        raise ValueError(
            f"{results} holds no weights: expected {WEIGHTS_FILE}, or its parts, and {CONFIG_FILE}"
        )
    (run / BEST_FOLDER).mkdir(exist_ok=True)
    (run / BEST_FOLDER / WEIGHTS_FILE).write_bytes(weights)
    shutil.copyfile(results / CONFIG_FILE, run / BEST_FOLDER / CONFIG_FILE)
    names = sorted({path.name.split("-")[1] for path in results.glob("checkpoint-*.part")})
    if not names:
        return False
    content = _read_parts(results, f"checkpoint-{names[-1]}") or b""
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError(f"the checkpoint in {results} is damaged: its parts do not fit together")
    state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
    torch.save(expand(state), run / CHECKPOINT_FILE)
    return True


# --- train: as many steps as there is time for ---


class OutOfTimeError(Exception):
    """The time is up before the steps are."""


@dataclass
class Budget:
    """The time there is, and how fast the run goes; all in seconds."""

    start: float
    """On the clock of `time.monotonic`."""
    seconds: float
    step_seconds: float = 0.0
    """Of one step, with its share of the validations in between."""
    segment_seconds: float = 0.0
    """What a segment takes beside its steps: to set up, to validate and to save."""
    export_seconds: float = 0.0
    """To write the results."""

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def reserve(self) -> float:
        """Seconds at the end in which the results are written."""
        return 2 * self.export_seconds + 0.01 * self.seconds

    def steps_until(self, moment: float) -> int:
        """Return how many steps a segment has room for that begins now and ends so long after the start."""
        return int((moment - self.spent - self.segment_seconds) / max(self.step_seconds, 1e-9))


def train_in_time(
    recipe: Recipe,
    run: Path,
    cache: Path,
    budget: Budget,
    *,
    decay: float,
    validate_minutes: float,
    export: Callable[[Recipe], None],
) -> Recipe:
    """Begin or go on with a run, and end it in the time there is.

    It runs in four segments. The first, of a few steps, and the second, until a tenth of the time is over,
    tell the pace; the third lasts until the learning rate begins to fall; in the last it falls to zero. Each
    is planned with the pace of the one before. If the pace falls in the last, it is cut short.

    Args:
        recipe: Its numbers of steps are replaced; one with schedules in epochs is refused.
        run: Folder of the run; it goes on if there is a checkpoint.
        cache: Folder for the decoded speech.
        budget: The time; the pace is written into it.
        decay: Share of the time in which the learning rate falls; 0 leaves it where it is.
        validate_minutes: Minutes between two validations.
        export: Called with the recipe after every segment.

    Returns:
        The recipe of the last segment; one that was cut short has fewer steps behind it.

    Raises:
        ValueError: The recipe has schedules in epochs.
        TrainingError: The time was up before the first step, or the run broke off.
    """
    _check_schedules(recipe)
    planned = recipe
    moments = (0.0, PACE_SHARE * budget.seconds, (1 - decay) * budget.seconds, budget.seconds)
    try:
        for number, moment in enumerate(moments):
            is_last = number == len(moments) - 1
            if number == 0:
                n_steps, every = N_PROBE_STEPS, N_PROBE_STEPS
            else:
                n_steps = budget.steps_until(moment - (budget.reserve if is_last else 0))
                n_steps = int((1 - SLACK) * n_steps) if is_last else n_steps
                every = max(1, round(60 * validate_minutes / max(budget.step_seconds, 1e-9)))
            if n_steps < 1 or (number == 2 and decay == 0):
                continue
            if number == 2:
                recipe = _with_shorter_warmup(recipe, run, budget)
            n_decay = n_steps if is_last and decay > 0 else 0
            planned = _planned(recipe, _step(run) + n_steps, n_decay, every)
            if number == 0:
                planned = _probe(planned, run, cache, budget)
                recipe = _with_batches_of(planned, recipe)
                _tell_mixing_rate(recipe, cache, budget)
            else:
                _segment(planned, run, cache, budget)
            _timed_export(export, planned, budget)
    except OutOfTimeError:
        if RunFolder(run).checkpoint is None:
            raise TrainingError("the time was up before the first step; give more minutes") from None
        print(f"out of time at step {_step(run)} of {planned.optimization.n_steps}", flush=True)
        _segment(_closing(planned, _step(run) + 1), run, cache, budget, is_closing=True)
        _timed_export(export, planned, budget)
    return planned


def _check_schedules(recipe: Recipe) -> None:
    optimization = recipe.optimization
    neutral = {
        "plateau_factor": 1.0, "early_stop_epochs": 0, "auxiliary_decay_factor": 1.0, "average_best": 1,
    }  # fmt: skip
    for name, value in neutral.items():
        if getattr(optimization, name) != value:
            raise ValueError(
                f"optimization.{name} counts epochs or validations, which here follow the clock; "
                f"give --set optimization.{name}={value:g}"
            )


def _planned(recipe: Recipe, n_steps: int, decay_steps: int, every: int) -> Recipe:
    """Return the recipe of a segment that ends at step `n_steps`.

    A warm-up that goes on beyond that is as steep as it was, up to a peak that is lower. One that reaches
    into the fall goes first.
    """
    optimization = recipe.optimization
    warmup_steps = min(optimization.warmup_steps, n_steps)
    share = warmup_steps / optimization.warmup_steps if optimization.warmup_steps else 1.0
    planned = dataclasses.replace(
        optimization,
        n_steps=n_steps,
        warmup_steps=warmup_steps,
        decay_steps=min(decay_steps, n_steps - warmup_steps),
        learning_rate=share * optimization.learning_rate,
    )
    return dataclasses.replace(recipe, optimization=planned, steps_per_epoch=every)


def _closing(recipe: Recipe, n_steps: int) -> Recipe:
    """Return the recipe of a last step that changes no weights, after which they are validated."""
    optimization = dataclasses.replace(
        recipe.optimization, n_steps=n_steps, learning_rate=0.0, warmup_steps=0, decay_steps=0
    )
    return dataclasses.replace(recipe, optimization=optimization, steps_per_epoch=n_steps)


def _with_batches_of(probed: Recipe, recipe: Recipe) -> Recipe:
    batches = {name: getattr(probed.optimization, name) for name in ("batch_size", "accumulate_steps")}
    return dataclasses.replace(recipe, optimization=dataclasses.replace(recipe.optimization, **batches))


def _with_shorter_warmup(recipe: Recipe, run: Path, budget: Budget) -> Recipe:
    """Let the warm-up take at most a fifth of the steps that there will be."""
    step = _step(run)
    n_steps = step + budget.steps_until(budget.seconds)
    warmup = max(step, n_steps // 10)
    if recipe.optimization.warmup_steps <= max(step, n_steps // 5):
        return recipe
    print(f"warm-up ends at step {warmup}, not {recipe.optimization.warmup_steps}, of about {n_steps}")
    return dataclasses.replace(
        recipe, optimization=dataclasses.replace(recipe.optimization, warmup_steps=warmup)
    )


def _probe(recipe: Recipe, run: Path, cache: Path, budget: Budget) -> Recipe:
    """Train the first segment, in smaller batches if the GPU has not the memory; return the recipe for it."""
    while True:
        try:
            _segment(recipe, run, cache, budget)
            return recipe
        except torch.OutOfMemoryError:
            optimization = recipe.optimization
            if optimization.batch_size % 2:
                raise
            batch_size, n_batches = optimization.batch_size // 2, 2 * optimization.accumulate_steps
            print(f"out of memory; now {n_batches} batches of {batch_size} a step", flush=True)
        torch.cuda.empty_cache()
        optimization = dataclasses.replace(optimization, batch_size=batch_size, accumulate_steps=n_batches)
        recipe = dataclasses.replace(recipe, optimization=optimization)


def _segment(recipe: Recipe, run: Path, cache: Path, budget: Budget, *, is_closing: bool = False) -> None:
    """Train up to the last step of the recipe, and note the pace.

    Raises:
        OutOfTimeError: It would not have ended in time, and was cut short, with a checkpoint; not if it is
            the closing one.
    """
    before, started = _progress(run), time.monotonic()
    until = budget.seconds - budget.reserve - budget.segment_seconds
    with contextlib.nullcontext() if is_closing else _alarm(until - budget.spent):
        train(recipe, run, resume=RunFolder(run).checkpoint is not None, speech_cache=cache)
    after = _progress(run)
    seconds = after["seconds"] - before["seconds"]
    budget.step_seconds = seconds / max(after["step"] - before["step"], 1)
    budget.segment_seconds = time.monotonic() - started - seconds
    print(
        f"step {after['step']}: {budget.step_seconds:.4f} s a step, {budget.segment_seconds:.1f} s beside "
        f"the steps, {budget.seconds - budget.spent:.0f} s left",
        flush=True,
    )


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End a training after so many seconds, as SIGTERM does: after the step under way, with a checkpoint."""
    rang = over = False

    def ring() -> None:
        nonlocal rang
        rang = True
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(*_: Any) -> None:
        if not over:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)  # `train` takes over once it trains
    timer = threading.Timer(max(seconds, 0.0), ring)
    timer.daemon = True
    timer.start()
    try:
        yield
        over = True
    except KeyboardInterrupt:
        if not rang:
            raise
        raise OutOfTimeError from None
    finally:
        over = True
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _progress(run: Path) -> dict[str, Any]:
    if RunFolder(run).checkpoint is None:
        return {"step": 0, "seconds": 0.0}
    return dict(RunFolder(run).load_checkpoint()["progress"])


def _step(run: Path) -> int:
    return int(_progress(run)["step"])


def _timed_export(export: Callable[[Recipe], None], recipe: Recipe, budget: Budget) -> None:
    started = time.monotonic()
    export(recipe)
    budget.export_seconds = time.monotonic() - started


def print_profile(recipe: Recipe, folder: Path, cache: Path) -> None:
    """Print what two steps take their time for, operation by operation; the run is thrown away."""
    data = dataclasses.replace(recipe.data, n_valid_mixtures=1)
    with_gpu = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if with_gpu else []
    with torch.profiler.profile(activities=kinds) as profiler:
        train(_planned(dataclasses.replace(recipe, data=data), 2, 0, 2), folder, speech_cache=cache)
    shutil.rmtree(folder)
    order = "self_cuda_time_total" if with_gpu else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60))


def _tell_mixing_rate(recipe: Recipe, cache: Path, budget: Budget) -> None:
    """Print whether the worker processes mix as fast as the network learns."""
    data, optimization = recipe.data, recipe.optimization
    utterances = read_utterances(data.speech, data.train_split)
    store = SpeechStore.load(utterances, recipe.model.sample_rate, cache=cache)
    mixing = DynamicMixing(store, recipe.mixing, recipe.seed, cache=cache)
    mixing.example(0)  # the first one waits for the disk
    started = time.monotonic()
    for index in range(1, N_MIXED + 1):
        mixing.example(index)
    rate = N_MIXED / (time.monotonic() - started)
    needed = optimization.batch_size * optimization.accumulate_steps / budget.step_seconds
    n_workers = max(data.n_workers, 1)
    verdict = "enough" if n_workers * rate > needed else "TOO FEW: raise data.n_workers"
    print(
        f"a process mixes {rate:.0f} mixtures a second, {n_workers} of them {n_workers * rate:.0f}; the "
        f"first steps took {needed:.0f} a second: {verdict}",
        flush=True,
    )


# --- the command ---


def run_pack(options: argparse.Namespace) -> None:
    """Pack, and say how to go on."""
    recipe = load_recipe(options.recipe, options.settings)
    wheels = options.out / WHEELS_FOLDER
    if options.wheels:
        packages = [*PACKAGES, *(["pyroomacoustics"] if recipe.mixing.rooms == SIMULATED else [])]
        fetch_wheels(wheels, packages, options.python)
    else:
        shutil.rmtree(wheels, ignore_errors=True)
    checkout = 0 if options.no_checkout else checkout_bytes()
    limit = int(options.limit * MIB)
    others = checkout + folder_bytes(wheels) + sum(map(folder_bytes, options.beside))
    kbit = pack(
        recipe,
        options.speech,
        options.out,
        max_bytes=limit - MIB - others,
        max_hours=options.max_hours,
        progress=lambda line: print(line, file=sys.stderr),
    )
    total = folder_bytes(options.out) + checkout + sum(map(folder_bytes, options.beside))
    if total > limit:
        raise ValueError(
            f"all together has {total / MIB:.1f} MiB, more than {options.limit:g}; give --max-hours"
        )
    heard = folder_bytes(options.out) - folder_bytes(wheels)
    print(f"speech and noise at {kbit:.1f} kbit/s: {heard / MIB:.1f} MiB")
    print(f"wheels: {folder_bytes(wheels) / MIB:.1f} MiB, files of the checkout: {checkout / MIB:.1f} MiB")
    print(f"together: {total / MIB:.1f} of {options.limit:g} MiB")
    print("Take along, beside the checkout:", *options.beside, options.out)
    print("There, in the checkout:\n")
    start = "python3 "
    if options.wheels:
        print(
            "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade "
            f"--target {SITE_FOLDER} {wheels}/*.whl &&"
        )
        start = f"PYTHONPATH={SITE_FOLDER} python3 "
    settings = "".join(f" --set {setting}" for setting in options.settings)
    print(
        f"{start}-u recipes/gpu_run.py train {options.recipe} --pack {options.out} --out RESULTS --minutes 9"
        f"{settings}"
    )


def run_train(options: argparse.Namespace) -> None:
    """Train, with everything that is printed in the log, too."""
    start = time.monotonic() - options.age
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / LOG_FILE
    with log.open("w", encoding="utf-8") as file:
        out, err = (_Tee(stream, file) for stream in (sys.stdout, sys.stderr))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                _train(options, Budget(start, 60 * options.minutes), log)
            except Exception as error:
                print(f"error: {error}", file=sys.stderr)
                raise


def _train(options: argparse.Namespace, budget: Budget, log: Path) -> None:
    named = load_recipe(options.recipe, options.settings)
    if torch.cuda.is_available():  # what is not in bfloat16 may be in TF32; shapes never change
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    speech, run = options.work / "speech", options.work / "run"
    unpack(options.pack, speech)
    print(f"unpacked after {budget.spent:.0f} s", flush=True)
    recipe = _local(named, speech, options.pack)
    if options.resume is not None and not restore(options.resume, run):
        initial = options.work / "initial"
        shutil.rmtree(initial, ignore_errors=True)
        shutil.copytree(run / BEST_FOLDER, initial)
        print("there is no checkpoint: the optimizers start anew", flush=True)
        recipe = dataclasses.replace(recipe, initial_checkpoint=str(initial), fourier_filters=False)

    if options.profile:
        print_profile(recipe, options.work / "profile", options.work / "cache")

    def leave(recipe: Recipe) -> None:
        planned = {name: getattr(recipe, name) for name in ("optimization", "steps_per_epoch")}
        export(run, options.out, dataclasses.replace(named, **planned), log, options.limits)

    try:
        train_in_time(
            recipe,
            run,
            options.work / "cache",
            budget,
            decay=options.decay,
            validate_minutes=options.validate_minutes,
            export=leave,
        )
    except KeyboardInterrupt:
        if RunFolder(run).checkpoint is not None:
            leave(recipe)
        raise
    for path in sorted(options.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size / MIB:.2f} MiB")


def _local(recipe: Recipe, speech: Path, packed: Path) -> Recipe:
    """Return a recipe with what was unpacked in place of its folders."""
    noise = tuple(str(speech / NOISE_FOLDER / Path(folder).name) for folder in recipe.mixing.noise)
    if missing := [folder for folder in noise if not Path(folder).is_dir()]:
        raise ValueError(f"the pack has no noise {Path(missing[0]).name}; pack with this recipe")
    rooms = recipe.mixing.rooms
    if rooms not in ("", SIMULATED):
        rooms = str(packed / ROOMS_FOLDER)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, speech=str(speech / "MANIFEST.csv")),
        mixing=dataclasses.replace(recipe.mixing, noise=noise, rooms=rooms),
    )


class _Tee(io.TextIOBase):
    """Writes to two places."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self.places = (first, second)

    def write(self, text: str) -> int:
        for place in self.places:
            place.write(text)
            place.flush()
        return len(text)

    def flush(self) -> None:
        for place in self.places:
            place.flush()


def run_join(options: argparse.Namespace) -> None:
    """Make an ordinary run of results."""
    if RunFolder(options.out).checkpoint is not None:
        raise ValueError(f"{options.out} holds a run already")
    has_checkpoint = restore(options.results, options.out)
    print(f"{options.out}: {'weights and checkpoint' if has_checkpoint else 'weights, no checkpoint'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)

    packing = commands.add_parser("pack", help="all that a recipe hears, and wheels, in one folder")
    packing.set_defaults(run=run_pack)
    packing.add_argument(
        "--speech", type=Path, required=True, help="CSV manifest of single talkers, or folder"
    )
    packing.add_argument("--out", type=Path, required=True, help="folder in the checkout that git ignores")
    packing.add_argument("--limit", type=float, default=64.0, help="MiB of all together [default: 64]")
    packing.add_argument("--beside", type=Path, nargs="*", default=[], help="folders that go along, too")
    packing.add_argument("--max-hours", type=float, default=float("inf"), help="of speech to train on")
    packing.add_argument("--python", default="3.12", help="version there [default: 3.12]")
    packing.add_argument("--no-wheels", dest="wheels", action="store_false", help="all packages are there")
    packing.add_argument("--no-checkout", action="store_true", help="the checkout does not count")

    training = commands.add_parser("train", help="train in the minutes that there are")
    training.set_defaults(run=run_train)
    training.add_argument("--pack", type=Path, required=True, help="folder of `pack`")
    training.add_argument("--out", type=Path, required=True, help="folder for the results")
    training.add_argument("--minutes", type=float, required=True, help="from start to end, all included")
    training.add_argument("--resume", type=Path, help="folder of results, or of a run, to go on from")
    training.add_argument("--work", type=Path, default=Path("runs/gpu"), help="[default: runs/gpu]")
    training.add_argument(
        "--decay", type=float, default=0.4,
        help="share of the time in which the learning rate falls to zero; 0 for a run that will go on",
    )  # fmt: skip
    training.add_argument("--validate-minutes", type=float, default=2.0, help="minutes between validations")
    training.add_argument("--profile", action="store_true", help="print what a step takes its time for")
    training.add_argument("--max-file", type=float, default=15.9, help="MiB of a file of the results")
    training.add_argument("--max-files", type=int, default=8, help="files of the results")
    training.add_argument("--max-total", type=float, default=64.0, help="MiB of the results")

    for command in (packing, training):
        command.add_argument("recipe", type=Path, help="YAML, see recipes/")
        command.add_argument(
            "--set",
            dest="settings",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change the recipe",
        )
    joining = commands.add_parser("join", help="an ordinary run of results")
    joining.set_defaults(run=run_join)
    joining.add_argument("results", type=Path)
    joining.add_argument("--out", type=Path, required=True, help="folder of the run")
    return parser


def main(arguments: Sequence[str] | None = None, age: float | None = None) -> None:
    """Do what the command line says.

    Args:
        arguments: Those of the process by default.
        age: Seconds of the minutes that are over; by default the age of the process, imports included.
    """
    options = _parser().parse_args(arguments)
    options.age = time.time() - psutil.Process().create_time() if age is None else age
    if "decay" in options and not 0 <= options.decay <= 1:
        sys.exit("error: --decay is a share, from 0 to 1")
    if "max_file" in options:
        options.limits = Limits(
            round(options.max_file * MIB), options.max_files, round(options.max_total * MIB)
        )
    try:
        options.run(options)
    except (ValueError, OSError, TrainingError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
