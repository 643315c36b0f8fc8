"""Evaluations that were written, read again."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flasepformer.evaluation.rows import read_scores
from flasepformer.evaluation.summary import SUMMARY_FILE, TABLE_FILE, EvaluationResult


@dataclass(frozen=True)
class StoredResult(EvaluationResult):
    """An evaluation as it was written, with what is known of it."""

    label: str = ""
    """Name of the model, or of the file."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The summary file; empty for a table that stands alone."""


def load_result(path: str | Path) -> StoredResult:
    """Read a folder that `EvaluationResult.write` wrote, or the table alone.

    Raises:
        ValueError: It is no such folder or table.
        OSError: It cannot be read.
    """
    path = Path(path)
    table = path / TABLE_FILE if path.is_dir() else path
    summary = table.with_name(SUMMARY_FILE)
    facts: dict[str, Any] = {}
    if table.name == TABLE_FILE and summary.is_file():
        try:
            facts = json.loads(summary.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{summary} cannot be read as JSON ({error})") from error
    model = facts.get("model")
    label = model["name"] if isinstance(model, dict) and "name" in model else table.stem
    return StoredResult(tuple(read_scores(table)), str(label), facts)
