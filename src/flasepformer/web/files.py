"""What the page consists of, and writing it where any static host can take it from."""

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from flasepformer.errors import InputError
from flasepformer.files.whole import written_whole

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
"""By the end of the name; anything else is bytes."""


class PageError(InputError):
    """The page cannot be written there, or is not whole."""


@dataclass(frozen=True)
class PageFile:
    """One file of the page: of the package, or made when it is asked for."""

    name: str
    """Relative to the page, with slashes."""
    path: Path | None = None
    content: bytes = b""

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES.get(Path(self.name).suffix, "application/octet-stream")

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if self.path is None else self.path.stat().st_size

    def read(self) -> bytes:
        return self.content if self.path is None else self.path.read_bytes()


def page_files() -> dict[str, PageFile]:
    """Return all files of the page by name, and `files.json`, which browsers hold the others against.

    Raises:
        PageError: The page is missing from this installation.
    """
    package = Path(str(files("flasepformer")))
    page, pretrained = package / "web/page", package / "pretrained"
    if not (page / "index.html").is_file():
        raise PageError(f"the page is missing from this installation: there is no {page / 'index.html'}")
    found = {path.relative_to(page).as_posix(): path for path in sorted(page.rglob("*")) if path.is_file()}
    for prefix, model in {"": pretrained / "default", "live-": pretrained / "default-live"}.items():
        found[f"{prefix}weights.safetensors"] = model / "model.safetensors"
        found[f"{prefix}model-card.md"] = model / "MODEL_CARD.md"
    found["filter-weights.safetensors"] = pretrained / "default/filter.safetensors"
    listed = {name: PageFile(name, path) for name, path in found.items()}
    return {**listed, "files.json": PageFile("files.json", content=_list(listed))}


def write_page(folder: Path) -> list[Path]:
    """Write the page into a folder that is new or empty, or holds a page; return its files.

    Raises:
        PageError: There is something else in that folder.
        OSError: It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise PageError(f"{folder} is a file; name a folder for the page")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "files.json").is_file():
        raise PageError(f"{folder} holds something else; name a folder that is new or empty")
    written = []
    for file in page_files().values():  # `files.json` comes last, when all that it lists is there
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as growing:
            if file.path is None:
                growing.write_bytes(file.content)
            else:
                shutil.copyfile(file.path, growing)
        written.append(target)
    return written


def _list(listed: Mapping[str, PageFile]) -> bytes:
    """Return every file with what its content must hash to, and a version that changes with any of them."""
    digests = {}
    for name, file in listed.items():
        digest = hashlib.sha256(file.read()).digest()
        digests[name] = "sha256-" + base64.b64encode(digest).decode("ascii")
    version = hashlib.sha256(json.dumps(digests, sort_keys=True).encode("ascii")).hexdigest()[:16]
    return (json.dumps({"version": version, "files": digests}, indent=1) + "\n").encode("ascii")
