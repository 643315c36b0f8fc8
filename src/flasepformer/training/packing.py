"""The state of a run as a small folder that can be committed, and from which another machine goes on.

Kept are the running average of the weights in half precision, a model in our format; the difference of the
weights themselves from it in 63 levels a tensor; the progress, the recipe and the curve. The momentum of the
optimizers is not: it would double the size, and is found again within a hundred steps.
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

from flasepformer.models import load_model, save_model
from flasepformer.training.optimizers import build_optimizers
from flasepformer.training.recipe import Recipe, load_recipe
from flasepformer.training.run_folder import CURVE_FILE, RECIPE_FILE, RunFolder, TrainingError

DIFFERENCE_FILE = "difference.safetensors"
PROGRESS_FILE = "progress.json"
_ENVIRONMENT_FILE = "environment.txt"
_LEVELS = 31  # above and below zero
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
    recipe = load_recipe(run_folder.recipe)
    average = _averaged(state["average"])
    model = _network(recipe, average)
    step = int(state["progress"]["step"])
    save_model(model, folder, {**recipe.card, "step": step}, dtype=torch.float16)
    stored = load_model(folder).state_dict()  # as it comes back
    (folder / DIFFERENCE_FILE).write_bytes(save(_difference(state["model"], stored)))
    # Python's JSON reads back the minus infinity of a run that has not been validated.
    (folder / PROGRESS_FILE).write_text(json.dumps(state["progress"], indent=1) + "\n", encoding="utf-8")
    for name in (RECIPE_FILE, CURVE_FILE, _ENVIRONMENT_FILE):
        if (run_folder.path / name).exists():
            shutil.copyfile(run_folder.path / name, folder / name)
    return step


def unpack_run(folder: str | Path, run: str | Path, recipe: Recipe) -> int:
    """Make a run that `train(..., resume=True)` goes on with, from a packed state.

    Args:
        folder: What `pack_run` has written.
        run: Folder of the run, which must not hold one.
        recipe: What it goes on with; of the same network.

    Returns:
        The step it goes on from.

    Raises:
        TrainingError: There is a run already, or the recipe is of another network.
    """
    folder, run_folder = Path(folder), RunFolder(run)
    if run_folder.checkpoint is not None:
        raise TrainingError(f"{run} holds a run already; resume it, or choose another folder")
    model: Any = load_model(folder)
    if model.config != recipe.model:
        raise TrainingError(f"{folder} has another config than the recipe: {model.config}")
    average = model.state_dict()
    progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    raw = _with_difference(average, load_file(folder / DIFFERENCE_FILE))
    state = {
        "model": raw,
        "average": {
            "n_averaged": torch.tensor(int(progress["step"])),
            **{f"{_AVERAGE_PREFIX}{name}": value for name, value in average.items()},
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


def _averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _AVERAGE_PREFIX
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _network(recipe: Recipe, weights: Mapping[str, Tensor]) -> Any:
    from flasepformer.models.registry import FAMILIES

    model: Any = FAMILIES[recipe.family][1](recipe.model)
    model.load_state_dict(weights)
    return model


def _difference(weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rounded differences of all tensors, compressed, and the largest one of each tensor."""
    levels, scales = [], []
    for name, value in average.items():
        if value.is_floating_point():
            difference = (weights[name] - value).float()
            scale = difference.abs().amax().clamp_min(1e-30)
            levels.append((difference / scale * _LEVELS).round().to(torch.int8).flatten())
            scales.append(scale)
    compressed = zlib.compress(torch.cat(levels).numpy().tobytes(), 9)
    return {
        "levels": torch.from_numpy(np.frombuffer(compressed, np.uint8).copy()),
        "scales": torch.stack(scales),
    }


def _with_difference(average: Mapping[str, Tensor], packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_difference`."""
    levels = np.frombuffer(zlib.decompress(packed["levels"].numpy().tobytes()), np.int8)
    weights, start = {}, 0
    scales = iter(packed["scales"])
    for name, value in average.items():
        weights[name] = value.clone()
        if value.is_floating_point():
            part = torch.from_numpy(levels[start : start + value.numel()].astype(np.float32))
            weights[name] += (part.reshape(value.shape) * (next(scales) / _LEVELS)).to(value.dtype)
            start += value.numel()
    return weights
