"""The minutes on a GPU, rehearsed on the CPU: state and speech go in, a state comes back that trains on."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flasepformer.training import pack_run, pack_speech, save_recipe

PROJECT = Path(__file__).parents[2]


@pytest.mark.long  # three processes, and seconds of training by the clock
@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_run_goes_on_for_some_seconds_and_comes_back_packed(small_recipe, finished, tmp_path):
    for name in ("src", "recipes"):
        (tmp_path / name).mkdir()
    (tmp_path / "src" / "flasepformer").symlink_to(PROJECT / "src" / "flasepformer")
    (tmp_path / "recipes" / "gpu.sh").write_bytes((PROJECT / "recipes" / "gpu.sh").read_bytes())
    packed = pack_run(finished(small_recipe, tmp_path / "run"), tmp_path / "before")
    longer = dataclasses.replace(small_recipe.optimization, n_steps=10**6, decay_steps=0)
    recipe = dataclasses.replace(small_recipe, optimization=longer, steps_per_epoch=10**6)
    save_recipe(recipe, tmp_path / "gpu.yaml")
    pack_speech(recipe, tmp_path / "runs" / "gpu-pack" / "speech", max_bytes=10**6)
    variables = {
        **os.environ, "RECIPE": "gpu.yaml", "FROM": "before",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "",
    }  # fmt: skip
    command = ["bash", str(tmp_path / "recipes" / "gpu.sh"), "train", "0.5", "after"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (
        json.loads((tmp_path / name / "progress.json").read_text()) for name in ("before", "after")
    )
    assert before["step"] == packed == 4
    assert after["step"] > 4
    assert after["n_heard"] > before["n_heard"]
