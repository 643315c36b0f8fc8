import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.models.conftest import tiny_config
from torch.testing import assert_close

from flasepformer.models import (
    CheckpointError,
    SepReformer,
    TFLocoformer,
    TFLocoformerConfig,
    convert_checkpoint,
    load_model,
    save_model,
)

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
MIXTURE = torch.randn(1, 900, generator=torch.Generator().manual_seed(0))


def tiny_tflocoformer(**changes):
    sizes = {
        "n_blocks": 2,
        "n_channels": 8,
        "n_heads": 2,
        "attention_channels": 8,
        "feed_forward_channels": 6,
    }
    torch.manual_seed(0)
    return TFLocoformer(TFLocoformerConfig(**{**sizes, **changes})).eval()


def write_modelscope(folder, name="fla_sepreformer_tiny"):
    settings = json.loads((GOLDEN / name / "config.json").read_text())
    model = {"type": "x", "separator_conf": settings["separator_conf"]}
    model |= {key: settings[key] for key in ("n_fft", "hop_length", "normalize_variance") if key in settings}
    folder.mkdir()
    (folder / "configuration.json").write_text(
        json.dumps({"framework": "pytorch", "model": model, "extra": 1})
    )
    torch.save(load_file(GOLDEN / name / "weights.safetensors"), folder / "pytorch_model.pt")
    return folder


def write_espnet(folder, weights="valid.loss.ave_5best.pth"):
    settings = json.loads((GOLDEN / "tflocoformer_tiny" / "config.json").read_text())
    folder.mkdir()
    content = {
        "encoder": "stft",
        "encoder_conf": {"n_fft": settings["n_fft"], "hop_length": settings["hop_length"]},
        "separator": "tflocoformer",
        "separator_conf": settings["separator_conf"],
        "decoder": "stft",
        "model_conf": {"normalize_variance": True},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    torch.save(load_file(GOLDEN / "tflocoformer_tiny" / "weights.safetensors"), folder / weights)
    return folder


def write_upstream(folder, depth=0):
    settings = json.loads((GOLDEN / "sepreformer_tiny" / "config.json").read_text())
    folder.mkdir()
    (folder / "configs.yaml").write_text(yaml.safe_dump({"config": {"model": settings["model_conf"]}}))
    weights = load_file(GOLDEN / "sepreformer_tiny" / "weights.safetensors")
    below = folder.joinpath(*["log", "scratch_weights"][:depth])
    below.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 180, "model_state_dict": weights}, below / "epoch.0180.pth")
    broken = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save({"epoch": 20, "model_state_dict": broken}, below / "epoch.0020.pth")
    return folder


def replace_weights(path, change, table=None):
    content = torch.load(path, weights_only=True)
    change(content if table is None else content[table])
    torch.save(content, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fla_sepreformer_tiny", "fla_tflocoformer_tiny"])
def test_a_modelscope_checkpoint_goes_to_our_format_and_back_bit_by_bit(tmp_path, name):
    source = write_modelscope(tmp_path / "published", name)
    convert_checkpoint(source, tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "back", "modelscope")
    before, after = (
        torch.load(folder / "pytorch_model.pt", weights_only=True) for folder in (source, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    settings = [
        json.loads((folder / "configuration.json").read_text()) for folder in (source, tmp_path / "back")
    ]
    assert settings[0] == settings[1]


BLOCKS = {"n_encoder_blocks": 2, "n_decoder_blocks": 3}
"""ModelScope has no word for others."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        SepReformer(tiny_config(**BLOCKS, n_sources=3, gated=False, auxiliary_heads=False)),
        SepReformer(tiny_config(**BLOCKS, focusing_power=2, value_kernel_size=3, normalize_variance=True)),
        tiny_tflocoformer(n_fft=64, hop_length=32, gated=False),
    ],
    ids=["ungated", "power", "stft"],
)
def test_a_model_of_ours_goes_to_the_modelscope_layout_and_back_bit_by_bit(tmp_path, model):
    save_model(model, tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "published", "modelscope")
    convert_checkpoint(tmp_path / "published", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "back"))
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    loaded = load_model(tmp_path / "published").config
    for name in ("n_sources", "gated", "focusing_power", "value_kernel_size", "normalize_variance"):
        assert getattr(loaded, name) == getattr(model.config, name)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (SepReformer(tiny_config(masking=True)), "masking"),
        (SepReformer(tiny_config(n_encoder_blocks=1)), "n_encoder_blocks"),
        (SepReformer(tiny_config(attention="softmax")), "attention"),
        (tiny_tflocoformer(attention="softmax"), "attention"),
        (tiny_tflocoformer(repeat_input=False), "repeat_input"),
    ],
)
def test_a_model_that_the_public_release_cannot_rebuild_is_not_written(tmp_path, model, field):
    save_model(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=f"no word for .*{field}"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "published", "modelscope")
    assert not (tmp_path / "published").exists()


def test_a_folder_that_holds_something_is_not_written_into(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "ours")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="taken"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "taken")


def test_random_weights_are_not_converted(tmp_path):
    with pytest.raises(CheckpointError, match="random weights"):
        convert_checkpoint("fla-sepreformer-t", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "weights", "table"),
    [
        (write_modelscope, "pytorch_model.pt", None),
        (write_espnet, "valid.loss.ave_5best.pth", None),
        (write_upstream, "epoch.0180.pth", "model_state_dict"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan", "truncated"])
def test_a_published_file_that_does_not_fit_is_refused_by_its_own_names(
    tmp_path, write, weights, table, damage
):
    path = write(tmp_path / "published") / weights
    names = [key for key in torch.load(path, weights_only=True).get(table, {})] if table else None
    name = next(key for key in names or torch.load(path, weights_only=True) if key.endswith("conv1d.weight"))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        change = {
            "missing": lambda content: content.pop(name),
            "extra": lambda content: content.update(surplus=torch.zeros(1)),
            "shape": lambda content: content.update({name: content[name][1:]}),
            "nan": lambda content: content.update({name: content[name] * float("nan")}),
        }[damage]
        replace_weights(path, change, table)
    expected = {"extra": "surplus", "truncated": "damaged", "nan": "NaN"}.get(
        damage, name.replace(".", r"\.")
    )
    with pytest.raises(CheckpointError, match=expected):
        load_model(path.parent)


def test_other_rotary_frequencies_are_refused(tmp_path):
    path = write_espnet(tmp_path / "published") / "valid.loss.ave_5best.pth"
    name = "separator.blocks.1.freq_path.attn.rope.freqs"
    replace_weights(path, lambda content: content.update({name: content[name] * 2}))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.freq_path\.attn\.rope\.freqs"):
        load_model(path)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_last_epoch_is_taken_wherever_the_settings_lie_above_it(tmp_path, depth):
    folder = write_upstream(tmp_path / "published", depth)
    latest = next(folder.rglob("epoch.0180.pth"))
    with torch.inference_mode():
        assert_close(load_model(folder)(MIXTURE), load_model(latest)(MIXTURE), rtol=0, atol=0)
        assert load_model(latest)(MIXTURE).abs().max() > 0
        assert load_model(latest.with_name("epoch.0020.pth"))(MIXTURE).abs().max() == 0


@pytest.mark.slow
def test_weights_trained_on_several_devices_load(tmp_path):
    path = write_upstream(tmp_path / "published") / "epoch.0180.pth"
    expected = load_model(path)
    content = torch.load(path, weights_only=True)
    wrapped = {f"module.{key}": value for key, value in content["model_state_dict"].items()}
    torch.save({"model_state_dict": wrapped}, path)
    with torch.inference_mode():
        assert_close(load_model(path)(MIXTURE), expected(MIXTURE), rtol=0, atol=0)


def test_another_average_of_an_espnet_training_loads_by_its_path(tmp_path):
    folder = write_espnet(tmp_path / "published", weights="valid.loss.best.pth")
    assert load_model(folder / "valid.loss.best.pth").config.attention == "softmax"
    with pytest.raises(CheckpointError, match=r"valid\.loss\.ave_5best\.pth"):
        load_model(folder)


@pytest.mark.parametrize(
    ("write", "settings", "old", "new", "message"),
    [
        (write_espnet, "config.yaml", "separator: tflocoformer", "separator: tfgridnet", "'tfgridnet'"),
        (write_espnet, "config.yaml", "norm_type: rmsgroupnorm", "norm_type: layernorm", "norm_type"),
        (write_espnet, "config.yaml", "n_fft: 128\n", "", "n_fft"),
        (write_espnet, "config.yaml", "conv1d_kernel: 4", "conv1d_kernel: 1000000000", "feed_forward_kernel"),
        (write_upstream, "configs.yaml", "num_spks", "speakers", "num_spks"),
        (write_upstream, "configs.yaml", "config:", "konfig:", "config.model is missing"),
        (write_modelscope, "configuration.json", "FocusedLinear", "Cosine", "linear_attn_type"),
        (write_modelscope, "configuration.json", '"separator_conf"', '"conf"', "separator_conf is missing"),
    ],
)
def test_settings_of_another_network_are_refused(tmp_path, write, settings, old, new, message):
    path = write(tmp_path / "published") / settings
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        load_model(path.parent)


def test_a_damaged_memory_of_the_origin_is_refused(tmp_path):
    convert_checkpoint(write_modelscope(tmp_path / "published"), tmp_path / "ours")
    unread = tmp_path / "ours" / "unread.safetensors"
    unread.write_bytes(unread.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"unread\.safetensors"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "back", "modelscope")


@pytest.mark.slow
def test_a_converted_checkpoint_is_the_same_model(tmp_path):
    source = write_modelscope(tmp_path / "published")
    info = convert_checkpoint(source, tmp_path / "ours")
    shutil.move(source, tmp_path / "gone")
    with torch.inference_mode():
        assert_close(
            load_model(tmp_path / "ours")(MIXTURE), load_model(tmp_path / "gone")(MIXTURE), rtol=0, atol=0
        )
    assert info.licence == "see its publisher"


def test_the_table_that_nothing_reads_is_kept_apart(tmp_path):
    convert_checkpoint(write_modelscope(tmp_path / "published"), tmp_path / "ours")
    assert list(load_file(tmp_path / "ours" / "unread.safetensors")) == [
        "separator.separator.pos_emb.pe_k.weight"
    ]
    save_file({}, tmp_path / "ours" / "unread.safetensors")
    assert load_model(tmp_path / "ours").config.n_sources == 2
