"""Rows on disk as soon as they are known, so that an evaluation that is killed can go on."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flasepformer.evaluation.rows import EvaluationRow
from flasepformer.evaluation.summary import without_nan
from flasepformer.inference import OutputError


class Journal:
    """A file of JSON lines: what is evaluated, then a row for each mixture.

    Args:
        path: Continued if it is there; its folder is made if missing.
        identity: What the rows depend on: plain values for JSON, under names that a message can hold.

    Raises:
        ValueError: The file belongs to another evaluation.
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[EvaluationRow] = []
        """Those of the evaluation that was cut short."""
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # the last one may be cut off
        if whole and (differing := _differing(_load(whole[0]), identity)):
            raise ValueError(
                f"{path} holds an unfinished evaluation with other {', '.join(differing)}; "
                "finish that one, choose another folder, or overwrite it"
            )
        self.rows = [_row(_load(line)) for line in whole[1:]]
        if not whole:
            self._write(_line(identity), "wb")
        elif len(whole) < len(lines):
            os.truncate(path, sum(map(len, whole)))

    def append(self, row: EvaluationRow) -> None:
        """Add a row; it is in the file when this returns."""
        self._write(_line(without_nan(asdict(row))), "ab")

    def _write(self, content: bytes, mode: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                file.write(content)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; make room or choose another folder with --out, "
                "then run the same command again: what is scored is kept"
            ) from error


def _differing(noted: Any, identity: Mapping[str, Any]) -> list[str]:
    noted = noted if isinstance(noted, dict) else {}
    return [key for key in {**identity, **noted} if noted.get(key) != identity.get(key)]


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _load(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"the journal of the evaluation is damaged: {error}; overwrite it") from error


def _row(content: dict[str, Any]) -> EvaluationRow:
    scores = {metric: tuple(map(_number, values)) for metric, values in content.pop("scores").items()}
    seconds, compute_seconds = _number(content.pop("seconds")), _number(content.pop("compute_seconds"))
    notes = tuple(content.pop("notes"))
    return EvaluationRow(
        **content, scores=scores, seconds=seconds, compute_seconds=compute_seconds, notes=notes
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
