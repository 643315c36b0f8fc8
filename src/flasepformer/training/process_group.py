"""The processes of a run: how they find each other, and how all of them end."""

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from flasepformer.training.precision import resolve_precision
from flasepformer.training.recipe import NEEDS_EXTRA, Recipe
from flasepformer.training.run_folder import RunFolder, TrainingError


@contextlib.contextmanager
def process_group(recipe: Recipe, folder: RunFolder, device: str = "auto") -> Iterator[Any]:
    """Give the `Accelerator` of this process, and end what the processes have in common on every way out.

    The last owner of gloo's process group must not be the network's reducer. Its destructor keeps Python's
    lock while it waits for gloo's threads, one of which may wait for that lock to free a tensor; then the
    process never ends. So a reference is kept here, which outlives the network and lets go of the lock. What
    the block makes of the network must stay in a function called from it: local variables of the block itself
    live on.

    Raises:
        TrainingError: If the processes do not find each other, or one of the others is gone.
    """
    with folder.unmade_if_refused():
        accelerator = _accelerator(recipe, folder.path, device)
    group = distributed.group.WORLD if distributed.is_initialized() else None
    try:
        yield accelerator
        accelerator.wait_for_everyone()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # whose variables own the network
        if group is not None and isinstance(error, RuntimeError) and "gloo" in str(error):
            raise TrainingError(
                f"another process of the run is gone ({str(error).splitlines()[0]}); --resume goes on from "
                "the last checkpoint"
            ) from error
        raise
    finally:
        accelerator.free_memory()
        gc.collect()  # modules hang together in circles
        if distributed.is_initialized():
            distributed.destroy_process_group()
        del group


def _accelerator(recipe: Recipe, folder: Path, device: str) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    settings = recipe.optimization
    may_idle = settings.auxiliary_weight == 0 or settings.auxiliary_decay_steps > 0
    has_heads = getattr(recipe.model, "auxiliary_heads", False)
    idle_heads = DistributedDataParallelKwargs(find_unused_parameters=has_heads and may_idle)
    n_processes = int(os.environ.get("WORLD_SIZE", 1))
    has_gpu = torch.cuda.is_available() and device != "cpu"
    if device.startswith("cuda"):
        if not has_gpu:
            raise TrainingError(f"device {device} cannot be used (not on this machine); use auto or cpu")
        if ":" in device:
            torch.cuda.set_device(device)
    # Each process measures for itself, and on one machine they find the same, but for a tie.
    precision, measured = resolve_precision(settings.precision, torch.device("cuda" if has_gpu else "cpu"))
    start_anew = "start them with torchrun, or unset WORLD_SIZE"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with="tensorboard",
            project_dir=str(folder),
            kwargs_handlers=[idle_heads],
            cpu=device == "cpu"
            or (n_processes > 1 and not has_gpu),  # untold, accelerate leaves each process alone on a CPU
        )
    except ValueError as error:
        if n_processes == 1:
            raise
        raise TrainingError(
            f"WORLD_SIZE says that there are {n_processes} processes, but they do not find each other "
            f"({error}); {start_anew}"
        ) from error
    if accelerator.num_processes != n_processes:
        raise TrainingError(
            f"WORLD_SIZE says that there are {n_processes} processes, but {accelerator.num_processes} found "
            f"together, and each would train a run of its own into {folder}; {start_anew}"
        )
    if measured and accelerator.is_main_process:
        print(measured, file=sys.stderr)
    return accelerator
