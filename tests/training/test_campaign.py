"""The campaign's own program: a run is packed, and another machine goes on."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from flasepformer.training import save_recipe, train

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def campaign():
    spec = importlib.util.spec_from_file_location("campaign", PROJECT / "recipes" / "campaign.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pack_and_unpack_hand_a_run_on_and_a_second_unpack_leaves_it_alone(
    campaign, small_recipe, tmp_path, capsys
):
    train(small_recipe, tmp_path / "run")
    save_recipe(small_recipe, tmp_path / "recipe.yaml")
    state = ["--state", str(tmp_path / "state"), "--recipe", str(tmp_path / "recipe.yaml")]
    campaign.main(["pack", "--run", str(tmp_path / "run"), *state])
    campaign.main(["unpack", "--run", str(tmp_path / "new"), *state])
    checkpoint = tmp_path / "new" / "checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == 4
    before = checkpoint.read_bytes()
    campaign.main(["unpack", "--run", str(tmp_path / "new"), *state])
    assert checkpoint.read_bytes() == before
    assert capsys.readouterr().out.splitlines()[-1].endswith("goes on with its own checkpoint")


def test_a_state_that_is_too_large_to_commit_is_refused(campaign, small_recipe, tmp_path, monkeypatch):
    train(small_recipe, tmp_path / "run")
    monkeypatch.setattr(campaign, "LARGEST_BYTES", 1000)
    with pytest.raises(SystemExit, match="do not commit it"):
        campaign.main(["pack", "--run", str(tmp_path / "run"), "--state", str(tmp_path / "state")])


def test_the_committed_state_is_whole_and_small_enough():
    folder = PROJECT / "docs" / "campaign"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["step"] > 0
    assert progress["n_drawn"] >= progress["n_heard"] > 0
