"""Which recordings of single talkers there are: a folder per speaker, or a CSV manifest."""

import csv
import itertools
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import soundfile

from flasepformer.audio import AUDIO_EXTENSIONS
from flasepformer.data.mixture_manifest import MixtureFiles, is_mixture_manifest, read_mixture_manifest

_SPLIT = re.compile(
    r"(train|training|tr|valid|validation|val|dev|development|cv|test|testing|tt|eval|evaluation)"
    r"([-_ .]?(clean|other|noisy|cv|set|\d+))*",
    re.IGNORECASE,
)
_NOBODY = re.compile(r"(noises?|rirs?|brirs?|rooms?|impulse[-_ ]?responses?|music)", re.IGNORECASE)
"""Names of folders that stand beside those of the splits, or of the talkers."""


@dataclass(frozen=True)
class Utterance:
    """One recording of one person, and what is known about it; empty where it is not known."""

    path: Path
    speaker: str
    duration_seconds: float
    """As the manifest or the file's header says; 0 where the header does not."""
    sex: str = ""
    corpus: str = ""
    licence: str = ""


def read_utterances(
    source: str | Path,
    split: str | None = None,
    *,
    exclude: Mapping[str, Collection[str]] | None = None,
) -> list[Utterance]:
    """List the single-talker recordings of a folder or a CSV manifest, in a fixed order.

    Args:
        source: A folder laid out `SPEAKER/**/*.wav` (with `split`: `SPLIT/SPEAKER/**/*.wav`), or a CSV file
            with the columns `path` (relative to the CSV's folder), `speaker`, `duration_s`, and where known
            `split`, `sex`, `corpus`, `licence`. Or a manifest of mixtures, of which the sources are taken
            (with `split`: a folder of such manifests, `SPLIT.csv`). A folder of splits, such as train/ and
            valid/, is never taken for one of talkers; nor are noise/ and rir/ for two of those.
        split: Keep only this split, e.g. "train".
        exclude: Manifest rows to leave out, column to values: `{"licence": {"CC BY-SA 4.0"}}`.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: A column or a value is missing, or nothing is left.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no such folder or manifest: {source}")
    if split and (source / f"{split}.csv").is_file():
        source, split = source / f"{split}.csv", None
    if source.is_dir():
        if exclude:
            raise ValueError(f"exclude needs the columns of a CSV manifest, but {source} is a folder")
        if split and not (source / split).is_dir():
            raise FileNotFoundError(
                f"no folder {split} in {source}; expected is one for each split, with a folder per "
                "speaker in it"
            )
        utterances = _read_folder(source / split if split else source)
    else:
        try:
            utterances = _read_manifest(source, split, exclude or {})
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is no CSV manifest: it is not text in UTF-8") from error
    if not utterances:
        which = f" for split {split!r}" if split else ""
        raise ValueError(f"no speech in {source}{which}; expected a folder per speaker or a CSV manifest")
    return utterances


def _read_folder(root: Path) -> list[Utterance]:
    paths = [path for path in sorted(root.glob("*/**/*")) if path.suffix.lower() in AUDIO_EXTENSIONS]
    talkers = [path.relative_to(root).parts[0] for path in paths]
    if splits := sorted({name for name in talkers if _SPLIT.fullmatch(name)}):
        raise ValueError(
            f"the folders {', '.join(splits)} in {root} are splits, not talkers; choose one, for instance "
            f"--split {splits[0]}, or name a folder that has a folder per talker"
        )
    if others := sorted({name for name in talkers if _NOBODY.fullmatch(name)}):
        warnings.warn(f"{', '.join(others)} in {root} counted as no talker", stacklevel=3)
    kept = [(path, talker) for path, talker in zip(paths, talkers, strict=True) if talker not in others]
    if kept and all(len(path.relative_to(root).parts) > 2 for path, _ in kept):
        path, first = kept[0]
        n_talkers, inner = len({talker for _, talker in kept}), path.relative_to(root).parts[1]
        warnings.warn(
            f"{n_talkers} folders in {root}, such as {first}, are taken for one talker each, and what is "
            f"in them, such as {inner}, for recordings of that talker; if those are the talkers, name the "
            "folder that holds them, or a split",
            stacklevel=3,
        )
    return [Utterance(path, talker, _duration_seconds(path)) for path, talker in kept]


def _duration_seconds(path: Path) -> float:
    try:
        return float(soundfile.info(path).duration)
    except soundfile.LibsndfileError:  # damaged, or a video: it stays listed, and SpeechStore decides
        return 0.0


def _read_manifest(path: Path, split: str | None, exclude: Mapping[str, Collection[str]]) -> list[Utterance]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if is_mixture_manifest(reader.fieldnames or []) and not exclude:
            return _sources(path)
        needed = ["path", "speaker", "duration_s", *(["split"] if split else []), *exclude]
        missing = [column for column in needed if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {reader.fieldnames}")
        utterances = []
        for row in reader:
            if split and row["split"] != split:
                continue
            if any(row[column] in values for column, values in exclude.items()):
                continue
            if not row["speaker"] or not row["duration_s"]:
                if split is None:
                    continue  # noise and room responses share the manifest, and nobody speaks in them
                raise ValueError(f"{path}, line {reader.line_num}: speaker and duration_s must not be empty")
            utterances.append(
                Utterance(
                    path.parent / row["path"],
                    row["speaker"],
                    float(row["duration_s"]),
                    sex=row.get("sex") or "",
                    corpus=row.get("corpus") or "",
                    licence=row.get("licence") or "",
                )
            )
    return utterances


def _sources(manifest: Path) -> list[Utterance]:
    """Return the sources of a manifest of mixtures; of an utterance, the one that is cut least."""
    longest: dict[str, Utterance] = {}
    for mixture in read_mixture_manifest(manifest):
        seconds = mixture.n_samples / mixture.sample_rate
        unknown = ("",) * len(mixture.sources)
        labels = zip(
            mixture.sources,
            mixture.speakers,
            mixture.utterances,
            mixture.sexes or unknown,
            mixture.corpora or unknown,
            strict=True,
        )
        for path, speaker, utterance, sex, corpus in labels:
            if not speaker:
                raise ValueError(f"{manifest}: the speakers of {mixture.name} are not known")
            key = utterance or str(path)
            if key not in longest or longest[key].duration_seconds < seconds:
                longest[key] = Utterance(path, speaker, seconds, sex, corpus)
    return list(longest.values())


def shared_speakers(
    train: Iterable[Utterance | MixtureFiles], valid: Iterable[Utterance | MixtureFiles]
) -> list[str]:
    """Return the speakers that are in both splits, sorted; those whose name is not known are in none."""
    return sorted((_speakers(train) & _speakers(valid)) - {""})


def check_disjoint(
    train: Iterable[Utterance | MixtureFiles], valid: Iterable[Utterance | MixtureFiles]
) -> None:
    """Refuse two splits that share a speaker: the score of the second would say nothing about strangers.

    Raises:
        ValueError: Names the shared speakers, or says that those of a mixture are not known.
    """
    train, valid = list(train), list(valid)
    if "" in _speakers(train) | _speakers(valid):
        raise ValueError("the speakers of some mixtures are not known, and may be in both splits")
    if shared := shared_speakers(train, valid):
        names = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
        raise ValueError(f"{len(shared)} speaker(s) are in both splits: {names}; split by speaker")


def _speakers(items: Iterable[Utterance | MixtureFiles]) -> set[str]:
    names = ((item.speaker,) if isinstance(item, Utterance) else item.speakers for item in items)
    return set(itertools.chain.from_iterable(names))
