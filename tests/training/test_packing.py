import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import SEPREFORMER, changed, curve

from flasepformer.models import SepReformer
from flasepformer.training import TrainingError, pack_run, train, unpack_run


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def packed(recipe, finished, tmp_path):
    """Return the folder of a run of six steps, and that of its packed state."""
    finished(recipe, tmp_path / "run")
    assert pack_run(tmp_path / "run", tmp_path / "packed") == 6
    return tmp_path / "run", tmp_path / "packed"


@pytest.mark.slow
def test_a_packed_run_goes_on_from_its_average_to_known_precision(packed, recipe, tmp_path):
    run, folder = packed
    before = load(run / "checkpoint.pt")
    assert unpack_run(folder, tmp_path / "new", recipe) == 6
    after = load(tmp_path / "new" / "checkpoint.pt")
    for name in before["model"]:
        average, packed_average = (state["average"][f"module.{name}"] for state in (before, after))
        assert torch.equal(after["model"][name], packed_average)
        if average.ndim > 1:
            error = (packed_average - average).abs().flatten(1).amax(1)
            assert (error <= average.abs().flatten(1).amax(1) / 126 * 1.001).all()  # half a level of 63
        else:
            torch.testing.assert_close(packed_average.double(), average.double(), rtol=2**-10, atol=2**-24)
    assert after["progress"]["n_drawn"] == before["progress"]["n_drawn"] == 12


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_with_the_next_step_and_mixture(packed, recipe, tmp_path):
    run, folder = packed
    longer = changed(recipe, n_steps=9)
    unpack_run(folder, tmp_path / "new", longer)
    train(longer, tmp_path / "new", resume=True)
    progress = load(tmp_path / "new" / "checkpoint.pt")["progress"]
    assert (progress["step"], progress["n_drawn"]) == (9, 18)
    assert curve(tmp_path / "new")[: len(curve(run))] == curve(run)
    assert [int(row["step"]) for row in curve(tmp_path / "new")][-2:] == [8, 9]
    assert (tmp_path / "new" / "best").is_dir()


@pytest.mark.slow
def test_a_packed_state_takes_less_than_a_byte_for_a_weight(packed):
    _, folder = packed
    stored = load_file(folder / "average.safetensors")
    n_rows = sum(value.numel() for value in SepReformer(SEPREFORMER).state_dict().values() if value.ndim > 1)
    assert stored["rows"].numel() < 0.9 * n_rows
    assert json.loads((folder / "progress.json").read_text())["step"] == 6


def test_a_folder_that_holds_no_state_is_refused(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"is no packed state: average\.safetensors is missing"):
        unpack_run(tmp_path / "empty", tmp_path / "new", recipe)


def test_a_run_that_is_there_is_not_overwritten(packed, recipe):
    run, folder = packed
    with pytest.raises(TrainingError, match="holds a run already"):
        unpack_run(folder, run, recipe)


def test_the_state_of_another_network_is_refused(packed, recipe, tmp_path):
    other = dataclasses.replace(recipe, model=dataclasses.replace(SEPREFORMER, n_channels=32))
    with pytest.raises(TrainingError, match="another config than the recipe"):
        unpack_run(packed[1], tmp_path / "new", other)


def test_there_must_be_something_to_pack(tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        pack_run(tmp_path / "absent", tmp_path / "packed")
