"""How often a recording has been tried, on the disk, so that none kills processes for ever."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

MAX_TRIES = 2
"""After so many a recording is left alone until it changes, or somebody asks for it."""

DIED = "its process died, perhaps for want of memory"


@dataclass(frozen=True)
class Tries:
    """What is known of one recording that has failed, or is under way."""

    input: str
    identity: str
    """Of the recording and the model: one that has changed is another one."""
    n_failed: int = 0
    error: str = ""
    """Of the last failure."""
    run: str = ""
    """The run that works on it, if one does. One that died itself is no try: it may have been told to."""

    @property
    def over(self) -> bool:
        """Whether it is not tried again."""
        return self.n_failed >= MAX_TRIES

    def failed(self, error: str) -> "Tries":
        """Return what is known after another failure."""
        return replace(self, n_failed=self.n_failed + 1, error=error, run="")


class TryBook:
    """Tries of all recordings of a run, one small file for each that is under way or has failed.

    Args:
        folder: For the files; made if missing.
        run: Name of this run, the same in all its processes.
        again: Whether recordings that other runs gave up are tried anew.
    """

    def __init__(self, folder: Path, run: str, *, again: bool = False) -> None:
        self._folder, self._run, self._again = folder, run, again
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, key: str, source: str, identity: str) -> tuple[Tries, bool]:
        """Note that a recording that is claimed is under way, unless it is not to be tried again.

        Returns:
            Its tries so far, and whether a process ended over the last of them.
        """
        before = self._read(key)
        fresh = Tries(source, identity)
        was_cut_off = before is not None and before.run != ""
        if before is None or before.identity != identity:
            before = fresh
        elif before.run == self._run:  # and nobody works on it: who did has died
            before = before.failed(DIED)
            self.write(key, before)
        elif before.over and self._again:
            before = fresh
        if before.over:
            return before, was_cut_off
        self.write(key, replace(before, run=self._run))
        return before, was_cut_off

    def write(self, key: str, tries: Tries) -> None:
        """Note a failure."""
        path = self._path(key)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(asdict(tries)), encoding="ascii")
        os.replace(temporary, path)

    def end(self, key: str) -> None:
        """Note that a recording is done."""
        self._path(key).unlink(missing_ok=True)

    def _read(self, key: str) -> Tries | None:
        with suppress(OSError, ValueError, TypeError):
            return Tries(**json.loads(self._path(key).read_text(encoding="ascii")))
        return None

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
