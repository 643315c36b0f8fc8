"""`flasepformer pack` and `unpack`: a run is packed, and another machine goes on."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tests.training.conftest import TFLOCOFORMER
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models.registry import FAMILIES
from flasepformer.training import Recipe, save_recipe
from flasepformer.training.optimizers import build_optimizers
from flasepformer.training.run_folder import RunFolder

CAMPAIGN = Path(__file__).parents[2] / "docs" / "campaign"


def flasepformer(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def run(tmp_path):
    """Return the folder of a run of a small network at step 4, with its recipe beside it."""
    recipe = Recipe(model=TFLOCOFORMER)
    model = FAMILIES[recipe.family][1](recipe.model)
    folder = RunFolder(tmp_path / "run")
    save_recipe(recipe, folder.recipe)
    weights = model.state_dict()
    folder.save_checkpoint(
        {
            "model": weights,
            "average": {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in weights.items()}},
            "optimizers": [o.state_dict() for o in build_optimizers(model, recipe.optimization)],
            "progress": {"step": 4, "n_heard": 8},
        }
    )
    return folder.path


@pytest.mark.slow
def test_a_run_is_handed_on_and_a_second_unpack_leaves_it_alone(run, tmp_path):
    state, recipe, new = tmp_path / "state", run / "recipe.yaml", tmp_path / "new"
    packed = flasepformer("pack", run, state)
    assert packed.exit_code == 0, packed.output
    assert packed.stdout.startswith(f"packed step 4 into {state}, 0.")
    assert flasepformer("unpack", state, new, "--recipe", recipe).exit_code == 0
    checkpoint = new / "checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == 4
    before = checkpoint.read_bytes()
    again = flasepformer("unpack", state, new, "--recipe", recipe)
    assert again.stdout == f"{new} goes on with its own checkpoint\n"
    assert checkpoint.read_bytes() == before


@pytest.mark.slow
def test_a_state_that_is_too_large_to_commit_is_said(run, tmp_path):
    result = flasepformer("pack", run, tmp_path / "state", "--limit", "0.001")
    assert result.exit_code == 1
    assert "more than 0.001 MB; do not commit it" in result.stderr


def test_a_state_of_another_network_and_a_run_without_one_end_with_3(run, tmp_path):
    assert flasepformer("pack", run, tmp_path / "state").exit_code == 0
    other = Recipe(model=dataclasses.replace(TFLOCOFORMER, n_blocks=2))
    save_recipe(other, tmp_path / "other.yaml")
    refused = flasepformer(
        "unpack", tmp_path / "state", tmp_path / "new", "--recipe", tmp_path / "other.yaml"
    )
    assert refused.exit_code == 3
    assert "another config than the recipe" in refused.stderr
    missing = flasepformer("pack", tmp_path / "nothing", tmp_path / "state")
    assert missing.exit_code == 3
    assert "nothing to resume" in missing.stderr


def test_the_committed_state_is_whole_and_small_enough():
    assert sum(path.stat().st_size for path in CAMPAIGN.iterdir()) <= 12_000_000
    progress = json.loads((CAMPAIGN / "progress.json").read_text())
    assert progress["step"] > 0
    assert progress["n_drawn"] >= progress["n_heard"] > 0
