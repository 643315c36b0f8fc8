import dataclasses
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from flasepformer.models import CheckpointError, ModelInfo, load_model, model_info, save_model

MIXTURE = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "model", {"description": "tiny", "licence": "CC0-1.0"})
    return tmp_path / "model"


def change_config(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["config"].update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("file", ["", "model.safetensors", "config.json"])
def test_what_was_saved_is_loaded(tiny_model, folder, file):
    model = load_model(folder / file)
    with torch.inference_mode():
        assert_close(model(MIXTURE), tiny_model(MIXTURE), rtol=0, atol=0)
    assert model.config == tiny_model.config
    assert not model.training


def test_the_folder_of_a_run_means_its_best_weights(tiny_model, folder, tmp_path):  # issue 16
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "best")
    with torch.inference_mode():
        assert_close(load_model(tmp_path / "run")(MIXTURE), tiny_model(MIXTURE), rtol=0, atol=0)
    assert model_info(tmp_path / "run").name == str(tmp_path / "run" / "best")


def test_what_is_known_of_the_weights_is_kept(tiny_model, folder):
    assert model_info(folder) == ModelInfo(
        name=str(folder),
        family="sepreformer",
        sample_rate=8000,
        n_sources=2,
        n_parameters=sum(
            p.numel() for n, p in tiny_model.named_parameters() if not n.startswith("auxiliary")
        ),
        giga_multiply_adds=None,
        trained=True,
        description="tiny",
        licence="CC0-1.0",
    )


def test_half_precision_weights_take_half_the_space_and_load_as_float32(tiny_model, folder, tmp_path):
    save_model(tiny_model, tmp_path / "half", dtype=torch.float16)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.8 * sizes[1]  # names and integers weigh much in a tiny model
    model = load_model(tmp_path / "half")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert_close(model(MIXTURE), tiny_model(MIXTURE), rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_weights_in_eight_bits_take_a_quarter_of_the_space_and_load_as_float32(tmp_path):
    model = load_model("default")
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "eight", dtype=torch.int8)
    full, eight = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "eight"))
    assert 0.25 * full < eight < 0.28 * full
    loaded = load_model(tmp_path / "eight")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in model.named_parameters():
        error = (loaded.get_parameter(name) - value).detach()
        largest = value.detach().abs().amax()
        assert error.abs().amax() <= largest / (2 * 127) * 1.01 if value.ndim > 1 else largest * 1e-3


def test_scales_that_do_not_belong_to_rows_are_refused(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "eight", dtype=torch.int8)
    path = tmp_path / "eight" / "model.safetensors"
    weights = load_file(path)
    name = "encoder.weight.row_scales"
    save_file(weights | {name: weights[name][:-1]}, path)
    with pytest.raises(CheckpointError, match=r"encoder\.weight do not belong together"):
        load_model(tmp_path / "eight")
    save_file({key: value for key, value in weights.items() if key != "encoder.weight"}, path)
    with pytest.raises(CheckpointError, match=r"scales without rows: encoder\.weight"):
        load_model(tmp_path / "eight")


def test_a_loaded_model_can_be_trained(folder):
    model = load_model(folder)
    model.train()(MIXTURE).square().mean().backward()
    assert model.encoder.weight.grad.abs().sum() > 0


def test_a_missing_model_names_those_there_are():
    with pytest.raises(CheckpointError, match="fla-sepreformer-b"):
        load_model("fla-sepreformer-xxl")


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan"])
def test_weights_that_do_not_fit_are_refused_by_name(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["decoder.weight"]
    elif change == "extra":
        weights["surplus.weight"] = torch.zeros(1)
    elif change == "shape":
        weights["decoder.weight"] = torch.zeros(3)
    else:
        weights["decoder.weight"][0] = float("nan")
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="surplus" if change == "extra" else r"decoder\.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_channels": 16}, "does not fit its config"),
        ({"n_channels": 10**12}, "n_channels must be a whole number from 1 to 2048"),
        ({"n_stages": 10, "n_channels": 2048}, "does not fit its config"),  # large, and never allocated
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"family": "unheard-of", "config": {}}', "{"])
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder)


def test_weights_without_their_config_are_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder / "model.safetensors")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    proof = tmp_path / "executed"
    (tmp_path / "configuration.json").write_text('{"model": {"separator_conf": {}}}')
    with (tmp_path / "pytorch_model.pt").open("wb") as file:
        pickle.dump({"weight": Bomb(proof)}, file)
    with pytest.raises(CheckpointError, match="not opened"):
        load_model(tmp_path)
    assert not proof.exists()


def test_a_killed_save_leaves_the_old_checkpoint(tiny_model, folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(tiny_model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_config_is_frozen(tiny_model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_model.config.n_sources = 3
