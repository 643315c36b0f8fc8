"""Evaluations that were written, read again."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flasepformer.evaluation.rows import read_scores
from flasepformer.evaluation.separating import label_run
from flasepformer.evaluation.summary import SUMMARY_FILE, TABLE_FILE, EvaluationResult
from flasepformer.inference import RunOptions


@dataclass(frozen=True)
class StoredResult(EvaluationResult):
    """An evaluation as it was written, with what is known of it."""

    label: str = ""
    """Name of the model, or of the file, and the mode unless mixtures went straight through the network."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The summary file; empty for a table that stands alone."""

    @property
    def separation(self) -> dict[str, Any]:
        """How mixtures went through the model; see `describe_run`. Results of old do not say: the network."""
        noted = self.facts.get("separation")
        return noted if isinstance(noted, dict) else {"mode": "network"}

    @property
    def run_options(self) -> RunOptions | None:
        """The options of `evaluate` that give these results again."""
        known = {key: value for key, value in self.separation.items() if key in RunOptions.__annotations__}
        return None if known.get("mode") == "network" else RunOptions(**known)  # type: ignore[typeddict-item]


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
    result = StoredResult(tuple(read_scores(table)), str(label), facts)
    way = label_run(result.separation)
    return replace(result, label=f"{label}, {way}") if way else result
