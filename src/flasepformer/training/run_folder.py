"""The files of a run: each appears whole or not at all, and a full disk costs a file, never the run."""

import contextlib
import csv
import errno
import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flasepformer.errors import FlasepformerError
from flasepformer.files import write_whole

CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_CHECKPOINT_FILE = "checkpoint-previous.pt"
BEST_FOLDER = "best"
CANDIDATES_FOLDER = "candidates"
BOARD_FOLDER = "tensorboard"
CURVE_FILE = "curve.csv"
RECIPE_FILE = "recipe.yaml"
SPEECH_CACHE_FOLDER = "speech-cache"

CURVE_COLUMNS = (
    "step", "hours_heard", "minutes", "learning_rate", "train_loss_db", "gradient_norm",
    "valid_si_snr_improvement_db", "held_out_si_snr_improvement_db", "wrong_turns", "best_db",
    "audio_seconds_per_second", "steps_per_second",
)  # fmt: skip


class TrainingError(FlasepformerError, RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class RunFolder:
    """The folder of one run.

    Args:
        path: Made if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self.best, self.recipe, self.curve, self.speech_cache = (
            self.path / name for name in (BEST_FOLDER, RECIPE_FILE, CURVE_FILE, SPEECH_CACHE_FOLDER)
        )
        self._had_cache = self.speech_cache.exists()

    @contextlib.contextmanager
    def unmade_if_refused(self) -> Iterator[None]:
        """Leave nothing of a run that does not begin: no folder, and no speech decoded for it.

        An interrupt is no refusal: the next attempt finds the speech that was decoded.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, Exception) and not self._had_cache:
                shutil.rmtree(self.speech_cache, ignore_errors=True)
            for folder in self._made:
                with contextlib.suppress(OSError):  # something else is in it
                    folder.rmdir()
            raise

    def clear(self) -> None:
        """Remove what a run has left; the speech that was decoded for it and files of others stay."""
        for folder in (self.best, self.path / CANDIDATES_FOLDER, self.path / BOARD_FOLDER):
            shutil.rmtree(folder, ignore_errors=True)
        files = [CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE, CURVE_FILE, RECIPE_FILE, "environment.txt"]
        for path in [*(self.path / name for name in files), *self.path.glob("recipe-until-step-*.yaml")]:
            path.unlink(missing_ok=True)

    def candidate(self, step: int) -> Path:
        """Return the folder for the weights that were validated after a step."""
        return self.path / CANDIDATES_FOLDER / f"step-{step:08d}"

    def present(self, candidates: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
        """Return those of the candidates (score and step) that are there, and name the others."""
        found = [(score, step) for score, step in candidates if self.candidate(step).is_dir()]
        if gone := sorted({step for _, step in candidates} - {step for _, step in found}):
            print(f"the weights of steps {gone} are gone; the mean goes on without them", file=sys.stderr)
        return found

    def remove_candidates(self, except_steps: Collection[int]) -> None:
        """Remove the validated weights but those of some steps."""
        kept = {self.candidate(step) for step in except_steps}
        for folder in (self.path / CANDIDATES_FOLDER).glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder)

    @property
    def checkpoint(self) -> Path | None:
        """The last whole checkpoint, or None.

        It is the previous one for the moment in which one takes the place of the other.
        """
        paths = (self.path / name for name in (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE))
        return next((path for path in paths if path.exists()), None)

    def load_checkpoint(self) -> dict[str, Any]:
        """Read the last checkpoint; nothing in it is executed."""
        path = self.checkpoint
        if path is None:
            raise TrainingError(f"nothing to resume: {self.path / CHECKPOINT_FILE} does not exist")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            previous = path.with_name(PREVIOUS_CHECKPOINT_FILE)
            raise TrainingError(
                f"{path} is damaged ({error}); to resume from the one before, put {previous} in its place"
            ) from error
        return state

    def save_checkpoint(self, state: Mapping[str, Any]) -> bool:
        """Write a checkpoint; the one before it stays. Return False if the disk is full."""
        path = self.path / CHECKPOINT_FILE
        return self._save(state, path, replaced=path.with_name(PREVIOUS_CHECKPOINT_FILE))

    def save_batch(self, batch: Mapping[str, Any], process_index: int) -> Path:
        """Write a batch that a run could not cope with."""
        path = self.path / f"bad-batch-{process_index}.pt"
        self._save(batch, path)
        return path

    def _save(self, content: Mapping[str, Any], path: Path, replaced: Path | None = None) -> bool:
        buffer = io.BytesIO()  # in memory first: a full disk then is an OSError, not one of the serializer's
        torch.save(dict(content), buffer)

        def write() -> None:
            temporary = path.with_suffix(".part")
            try:
                with temporary.open("wb") as file:
                    file.write(buffer.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                if replaced is not None and path.exists():
                    path.replace(replaced)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

        return unless_disk_full(write)

    def append_to_curve(self, row: Mapping[str, Any]) -> None:
        """Add a row to the curve."""

        def write() -> None:
            is_new = not self.curve.exists()
            with self.curve.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, CURVE_COLUMNS)
                if is_new:
                    writer.writeheader()
                writer.writerow(row)

        unless_disk_full(write)

    def cut_curve(self, step: int) -> None:
        """Drop the rows beyond a step: a run that goes on from there writes them again.

        Columns that an older version did not write stay empty.
        """
        if not self.curve.exists():
            return
        with self.curve.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(row for row in rows if int(row["step"]) <= step)
        write_whole(self.curve, table.getvalue())


def unless_disk_full(write: Callable[[], object]) -> bool:
    """Write a file of the run; return False, and say so, if the disk or the quota is full."""
    try:
        write()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise
        print(f"disk full, the run goes on without this file: {error}", file=sys.stderr)
        return False
    return True
