"""What a run says of itself when it begins or goes on: its recipe, those before, and where it runs."""

import dataclasses
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import flasepformer
from flasepformer.training.recipe import Recipe, load_recipe, save_recipe
from flasepformer.training.run_folder import RECIPE_FILE, RunFolder


def write_beginning(recipe: Recipe, folder: RunFolder, accelerator: Any, step: int) -> None:
    """Write `recipe.yaml` and `environment.txt`; what another recipe said until now is kept, and told."""
    if step > 0 and folder.recipe.is_file():
        before = load_recipe(folder.recipe)
        if changes := differences(before, recipe):
            kept = folder.path / f"recipe-until-step-{step:08d}.yaml"
            folder.recipe.replace(kept)
            print(f"from step {step} on, {'; '.join(changes)} (before: {kept.name})", file=sys.stderr)
    save_recipe(recipe, folder.path / RECIPE_FILE)
    (folder.path / "environment.txt").write_text(describe_environment(accelerator), encoding="utf-8")


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Say what one recipe has otherwise than another, such as "seed is 2 and was 1"."""
    old, new = _flat(before), _flat(now)
    names = [*new, *(name for name in old if name not in new)]
    return [
        f"{name} is {new.get(name)!r} and was {old.get(name)!r}"
        for name in names
        if new.get(name) != old.get(name)
    ]


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(recipe).items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {}
        flat |= {} if isinstance(value, dict) else {key: value}
    return flat


def describe_environment(accelerator: Any) -> str:
    """Say what ran, by which command, from which state of the sources, and on what."""
    return (
        f"flasepformer {flasepformer.__version__}, sources {_git_state()}\n"
        f"command {shlex.join([_program(), *sys.argv[1:]])}\n"
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores\n"
        f"device {accelerator.device}, {accelerator.num_processes} processes "
        f"of {torch.get_num_threads()} threads\nstarted {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n"
    )


def _program() -> str:
    """Return what was called, without the folders of this computer."""
    called = Path(sys.argv[0])
    return called.parent.name if called.name == "__main__.py" else called.name


def _git_state() -> str:
    """Return commit and changes of the clone that this package is run from."""
    here = Path(__file__).parent
    try:
        words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True
        )
        if tracked.returncode == 0:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here
    return "not from a clone"
