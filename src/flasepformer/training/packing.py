"""The state of a run as a small folder that can be committed, and from which another machine goes on.

Kept are the running average of the weights, in 127 levels a row and compressed, the progress, the recipe
and the curve. The weights themselves and the momentum of the optimizers are not: the run goes on from its
average, which is the better of both, and finds the momentum again within a hundred steps.
"""

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from flasepformer.files import write_whole
from flasepformer.models.eight_bits import from_eight_bits, to_eight_bits
from flasepformer.models.registry import FAMILIES
from flasepformer.training.optimizers import build_optimizers
from flasepformer.training.recipe import Recipe, load_recipe
from flasepformer.training.run_folder import CURVE_FILE, RECIPE_FILE, RunFolder, TrainingError

AVERAGE_FILE = "average.safetensors"
PROGRESS_FILE = "progress.json"
_ENVIRONMENT_FILE = "environment.txt"
_LEVELS = 63  # above and below zero
_ROWS = "rows"
_AVERAGE_PREFIX = "module."


def pack_run(run: str | Path, folder: str | Path) -> int:
    """Write the state of a run from its last checkpoint, in place of what the folder holds of an earlier one.

    Args:
        run: Folder of the run.
        folder: Where to pack it; made if missing.

    Returns:
        The step that was packed.

    Raises:
        TrainingError: The run has no checkpoint.
    """
    run_folder, folder = RunFolder(run), Path(folder)
    state = run_folder.load_checkpoint()
    average = {
        name.removeprefix(_AVERAGE_PREFIX): value
        for name, value in state["average"].items()
        if name.startswith(_AVERAGE_PREFIX)
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / AVERAGE_FILE, save(_compressed(to_eight_bits(average, _LEVELS))))
    # Python's JSON reads back the minus infinity of a run that has not been validated.
    (folder / PROGRESS_FILE).write_text(json.dumps(state["progress"], indent=1) + "\n", encoding="utf-8")
    for name in (RECIPE_FILE, CURVE_FILE, _ENVIRONMENT_FILE):
        if (run_folder.path / name).exists():
            shutil.copyfile(run_folder.path / name, folder / name)
    return int(state["progress"]["step"])


def unpack_run(folder: str | Path, run: str | Path, recipe: Recipe) -> int:
    """Make a run that `train(..., resume=True)` goes on with, from a packed state.

    Args:
        folder: What `pack_run` has written.
        run: Folder of the run, which must not hold one.
        recipe: What it goes on with; of the same network.

    Returns:
        The step it goes on from.

    Raises:
        TrainingError: There is a run already, no state, or the recipe is of another network.
    """
    folder, run_folder = Path(folder), RunFolder(run)
    if run_folder.checkpoint is not None:
        raise TrainingError(f"{run} holds a run already; resume it, or choose another folder")
    for name in (AVERAGE_FILE, PROGRESS_FILE, RECIPE_FILE):
        if not (folder / name).is_file():
            raise TrainingError(f"{folder} is no packed state: {name} is missing")
    packed = load_recipe(folder / RECIPE_FILE)
    if packed.model != recipe.model:
        raise TrainingError(f"{folder} has another config than the recipe: {packed.model}")
    model: Any = FAMILIES[packed.family][1](packed.model)
    average = _unpacked(load_file(folder / AVERAGE_FILE), model.state_dict())
    model.load_state_dict(average)
    progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    state = {
        "model": model.state_dict(),
        "average": {
            "n_averaged": torch.tensor(int(progress["step"])),
            **{f"{_AVERAGE_PREFIX}{name}": value for name, value in model.state_dict().items()},
        },
        "optimizers": [optimizer.state_dict() for optimizer in build_optimizers(model, recipe.optimization)],
        # what was kept as the best weights stays behind with the run
        "progress": {**progress, "best_db": -float("inf"), "n_epochs_since_best": 0, "candidates": []},
    }
    if not run_folder.save_checkpoint(state):
        raise TrainingError(f"no room for a checkpoint in {run}")
    if (folder / CURVE_FILE).exists():
        shutil.copyfile(folder / CURVE_FILE, run_folder.curve)
    return int(progress["step"])


def _compressed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put all rows of whole numbers into one tensor of bytes, in the order of the names.

    They are noise, which repeats nothing: Huffman's code alone is as small, and quicker.
    """
    rows = [value.flatten() for _, value in sorted(stored.items()) if value.dtype == torch.int8]
    coder = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = coder.compress(torch.cat(rows).numpy().tobytes()) + coder.flush()
    others = {name: value for name, value in stored.items() if value.dtype != torch.int8}
    return {**others, _ROWS: torch.from_numpy(np.frombuffer(packed, np.uint8).copy())}


def _unpacked(packed: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_compressed` and the rounding to levels; `like` tells the shapes."""
    stored = dict(packed)
    rows = torch.from_numpy(
        np.frombuffer(zlib.decompress(stored.pop(_ROWS).numpy().tobytes()), np.int8).copy()
    )
    names = sorted(like.keys() - stored.keys())
    for name, part in zip(names, rows.split([like[name].numel() for name in names]), strict=True):
        stored[name] = part.view(like[name].shape)
    return from_eight_bits(stored)
