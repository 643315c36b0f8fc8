"""The speech of a recipe in few bytes, to be carried to a machine that has none."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from flasepformer.audio import AudioError, read_audio
from flasepformer.data import Utterance, read_utterances
from flasepformer.data.acoustics import recordings_of
from flasepformer.data.speech_store import mono
from flasepformer.files import write_whole
from flasepformer.training.recipe import Recipe

MANIFEST_FILE = "MANIFEST.csv"
NOISE_FOLDER = "noise"
_COLUMNS = ("path", "split", "speaker", "duration_s", "sex", "corpus", "licence")
_KBIT = 12.0  # at 8 kHz Opus keeps 15 dB SI-SDR with 10 kbit/s and 20 dB with 16
_OPUS_LEAST, _OPUS_RANGE = 6.0, 250.0  # libsndfile's kbit/s at compression level 1, and what level 0 adds


class PackedSpeech(NamedTuple):
    """What has found room."""

    train_hours: float
    left_out_hours: float
    """Of the speech to train on."""
    n_bytes: int


def pack_speech(recipe: Recipe, folder: str | Path, *, max_bytes: int) -> PackedSpeech:
    """Write what a recipe hears as Opus at the model's sample rate, with a manifest.

    The speech to validate on and the noise go first, then the utterances of the training split, the speakers
    in turn, for as long as there is room.

    Args:
        recipe: Its speech, splits and folders of noise are taken.
        folder: New; takes `MANIFEST.csv`, a folder for each split, and `noise/` with a folder for each.
        max_bytes: Of all files.

    Raises:
        ValueError: Opus does not know the model's sample rate, or there is no room for any training.
        FileExistsError: The folder exists.
    """
    rate, data, folder = recipe.model.sample_rate, recipe.data, Path(folder)
    if rate not in (8000, 12_000, 16_000, 24_000, 48_000):
        raise ValueError(f"Opus does not know the model's sample rate of {rate} Hz")
    exclude = {"licence": data.exclude_licences} if data.exclude_licences else None
    train, valid = (
        read_utterances(data.speech, split, exclude=exclude) for split in (data.train_split, data.valid_split)
    )
    folder.mkdir(parents=True)
    n_bytes, rows = len(",".join(_COLUMNS)) + 1, [_COLUMNS]
    noise = [
        (f"{NOISE_FOLDER}/{Path(place).name}", Utterance(path, "", 0.0))
        for place in recipe.mixing.noise
        for path in recordings_of(Path(place))
    ]
    needed = [*noise, *((data.valid_split, utterance) for utterance in valid)]
    wanted = [*needed, *((data.train_split, utterance) for utterance in _in_turns(train))]
    hours = 0.0
    for number, (place, utterance, content, seconds) in enumerate(_encoded(wanted, rate)):
        is_training = place == data.train_split
        row = (f"{place}/{number:05d}.opus", place, utterance.speaker, f"{seconds:.3f}", utterance.sex,
               utterance.corpus, utterance.licence)  # fmt: skip
        n_bytes += len(content) + (len(",".join(row)) + 2 if utterance.speaker else 0)
        if n_bytes > max_bytes:
            n_bytes -= len(content) + len(",".join(row)) + 2
            break
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / row[0]).write_bytes(content)
        if utterance.speaker:
            rows.append(row)
        hours += is_training * seconds / 3600
    if hours == 0:
        raise ValueError(f"{max_bytes / 1e6:.1f} MB have no room for any of the {len(train)} to train on")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_whole(folder / MANIFEST_FILE, table.getvalue())
    left_out = sum(utterance.duration_seconds for utterance in train) / 3600 - hours
    return PackedSpeech(hours, max(left_out, 0.0), n_bytes)


def _in_turns(utterances: Sequence[Utterance]) -> Iterable[Utterance]:
    """Return the first utterance of every speaker, then the second, and so on."""
    said: Counter[str] = Counter()
    ranked = []
    for number, utterance in enumerate(utterances):
        said[utterance.speaker] += 1
        ranked.append((said[utterance.speaker], number))
    return [utterances[number] for _, number in sorted(ranked)]


def _encoded(
    items: Iterable[tuple[str, Utterance]], rate: int
) -> Iterator[tuple[str, Utterance, bytes, float]]:
    """Yield every recording that can be read with its bytes and its length in seconds."""
    level = 1 - (_KBIT - _OPUS_LEAST) / _OPUS_RANGE
    for place, utterance in items:
        try:
            waveform = mono(read_audio(utterance.path), rate)
        except AudioError:
            continue
        if not len(waveform):
            continue
        waveform *= np.float32(min(1.0, 0.95 / max(float(np.abs(waveform).max()), 1e-9)))
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", rate, 1, "OPUS", format="OGG", compression_level=level) as file:
            for start in range(0, len(waveform), 2**16):
                file.write(waveform[start : start + 2**16])
        yield place, utterance, buffer.getvalue(), len(waveform) / rate
