"""Mixtures whose tracks lie on disk, listed in a CSV manifest with paths relative to it."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flasepformer.files import written_whole

_EXCESS = "values without a column"  # where a row is longer than the header
_COLUMNS = ("source_path", "speaker", "utterance", "sex", "corpus")  # of each source


@dataclass(frozen=True)
class MixtureFiles:
    """Where the tracks of one mixture lie; all tuples have one entry for each source."""

    name: str
    mixture: Path
    sources: tuple[Path, ...]
    """What a separation is scored against, or trained towards."""
    speakers: tuple[str, ...]
    utterances: tuple[str, ...]
    """Names of what is said in the sources; the same name is the same recording, perhaps cut elsewhere."""
    n_samples: int
    """Length of every track."""
    sample_rate: int
    """Hz."""
    noise: Path | None = None
    sexes: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()


def is_mixture_manifest(columns: Iterable[str]) -> bool:
    """Tell a manifest of mixtures from other CSV files by its header; LibriMix's own metadata pass, too."""
    return "mixture_path" in columns


def write_mixture_manifest(files: Sequence[MixtureFiles], path: str | Path) -> None:
    """Write a manifest, one mixture per row; an existing one is replaced."""
    path = Path(path)
    n_sources = len(files[0].sources)
    columns = [f"{column}_{s}" for s in range(1, n_sources + 1) for column in _COLUMNS]
    unknown = ("",) * n_sources
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "n_samples", "sample_rate", "mixture_path", "noise_path", *columns])
        for item in files:
            row = [item.name, item.n_samples, item.sample_rate, _relative(item.mixture, path)]
            row.append(_relative(item.noise, path) if item.noise else "")
            tracks = [_relative(source, path) for source in item.sources]
            labels = (item.speakers, item.utterances, item.sexes or unknown, item.corpora or unknown)
            for per_source in zip(tracks, *labels, strict=True):
                row += per_source
            writer.writerow(row)


def read_mixture_manifest(path: str | Path) -> list[MixtureFiles]:
    """Read a manifest that `write_mixture_manifest` wrote.

    Raises:
        ValueError: A column is missing, a row is too short or too long, a number is not one, there is no row,
            or the file is no CSV at all.
    """
    path = Path(path)
    try:
        return _read(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no manifest of mixtures: it is not text in UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no manifest of mixtures: {error}") from error


def _read(path: Path) -> list[MixtureFiles]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restkey=_EXCESS)
        header = reader.fieldnames or []
        n_sources = max(1, sum(column.startswith("source_path_") for column in header))
        needed = ["name", "n_samples", "sample_rate", "mixture_path"]
        needed += [f"{column}_{s}" for s in range(1, n_sources + 1) for column in _COLUMNS]
        missing = [column for column in needed if column not in header]
        if missing:
            raise ValueError(
                f"{path} is no manifest of mixtures: it lacks {', '.join(missing)}; "
                "`flasepformer prepare` writes one for a published set"
            )
        files = []
        for row in reader:
            try:
                _check(row, header, n_sources)
                files.append(_parse(row, path.parent, n_sources))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not files:
        raise ValueError(f"{path} lists no mixture")
    return files


def _check(row: Mapping[str, str | list[str] | None], header: Sequence[str], n_sources: int) -> None:
    n_missing, n_excess = sum(value is None for value in row.values()), len(row.get(_EXCESS) or ())
    if n_missing or n_excess:
        raise ValueError(
            f"{len(header) - n_missing + n_excess} values for {len(header)} columns; "
            "the file may be cut off, or a comma may lack its quotes"
        )
    for column in ("name", "mixture_path", *(f"source_path_{s}" for s in range(1, n_sources + 1))):
        if not row[column]:
            raise ValueError(f"{column} is empty")


def read_split(folder: str | Path, split: str) -> list[MixtureFiles]:
    """Read the manifest `SPLIT.csv` of a set; a split may lie below, such as "train/mix_clean".

    Raises:
        FileNotFoundError: There is no such manifest.
        ValueError: It is none of mixtures, or lists none.
    """
    path = Path(folder) / f"{split}.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"no manifest {path}; expected is the folder of manifests that `flasepformer prepare` writes, "
            f"with one of the split {split!r}"
        )
    return read_mixture_manifest(path)


def _parse(row: Mapping[str, str], folder: Path, n_sources: int) -> MixtureFiles:
    paths, speakers, utterances, sexes, corpora = (
        tuple(row[f"{column}_{s}"] or "" for s in range(1, n_sources + 1)) for column in _COLUMNS
    )
    return MixtureFiles(
        name=row["name"],
        mixture=folder / row["mixture_path"],
        sources=tuple(folder / path for path in paths),
        speakers=speakers,
        utterances=utterances,
        n_samples=int(row["n_samples"]),
        sample_rate=int(row["sample_rate"]),
        noise=folder / row["noise_path"] if row.get("noise_path") else None,
        sexes=sexes if any(sexes) else (),
        corpora=corpora if any(corpora) else (),
    )


def _relative(track: Path, manifest: Path) -> str:
    return Path(os.path.relpath(track, manifest.parent)).as_posix()
