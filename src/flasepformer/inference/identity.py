"""What a separation was made of, told by digests: another recording of the same name is another one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

_OPTION_WORDS = {"mix_channels": "mixing of channels", "chunk_seconds": "length of chunks",
                 "overlap_seconds": "overlap of chunks", "finisher": "way to finish the tracks",
                 "passes": "number of passes", "also": "second model",
                 "post_filter": "share of the filter"}  # fmt: skip
_ALWAYS_BEFORE = {"passes": 1, "also": None, "post_filter": 0.0}  # of reports that do not say


def file_identity(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file's content: "bytes" and "sha256"."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def weights_digest(*networks: nn.Module) -> str:
    """Return the SHA-256 of all weights of some networks, with their names."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_report(path: Path) -> dict[str, Any]:
    """Return what the report of an earlier separation says; nothing if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def difference(
    report: Mapping[str, Any], content: Mapping[str, Any], weights_sha256: str, options: Mapping[str, Any]
) -> str | None:
    """Say what an earlier separation was made of that is not the same now; None if it is all the same.

    The memory that was allowed counts only where it decided that the recording went in chunks.

    Args:
        report: The report of the earlier one.
        content: `file_identity` of the recording.
        weights_sha256: `weights_digest` of the model.
        options: Those of this run.
    """
    was: dict[str, Any] = {part: report.get(part) for part in ("content", "model", "options")}
    if not all(isinstance(part, dict) for part in was.values()):
        return "an earlier version wrote it, which does not say of which recording"
    if was["content"] != content:
        return "it is of another recording, or of this one before it changed"
    if was["model"].get("weights_sha256") != weights_sha256:
        return f"it is by another model, {was['model'].get('name')} with other weights"
    squeezed = report.get("mode") == "chunks" and options.get("mode") == "auto"
    for name, value in options.items():
        before = was["options"].get(name, _ALWAYS_BEFORE.get(name))
        if before != value and (name != "memory" or squeezed):
            return (
                f"it is with another {_OPTION_WORDS.get(name, name)}: {_shown(before)}, now {_shown(value)}"
            )
    return None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return "none" if value is None else str(value)
