import pytest
import torch
from tests.models.conftest import tiny_config
from tests.models.test_tflocoformer import tiny_config as tiny_tf_config
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models import SepReformer, TFLocoformer, load_model, save_model


@pytest.fixture
def folder(tmp_path):
    blocks = {"n_encoder_blocks": 2, "n_decoder_blocks": 3}  # ModelScope has no word for others
    save_model(SepReformer(tiny_config(**blocks)), tmp_path / "ours")
    return tmp_path / "ours"


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_convert_writes_the_other_layout_and_says_what_it_is(folder, tmp_path):
    result = run(folder, tmp_path / "published", "--to", "modelscope")
    assert result.exit_code == 0
    assert "sepreformer, 2 talkers at 8000 Hz" in result.stdout
    assert {path.name for path in (tmp_path / "published").iterdir()} == {
        "configuration.json",
        "pytorch_model.pt",
    }
    assert load_model(tmp_path / "published").config.n_channels == 8


@pytest.mark.slow
def test_halved_weights_take_half_the_room_and_keep_eleven_bits(folder, tmp_path):
    assert run(folder, tmp_path / "half", "--half").exit_code == 0
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]  # the names of the tensors stay
    whole, half = (load_model(place).state_dict() for place in (folder, tmp_path / "half"))
    torch.testing.assert_close(half, whole, rtol=2**-11, atol=2**-25)


@pytest.mark.slow
def test_weights_in_eight_bits_keep_a_hundredth_of_the_largest_of_each_row(folder, tmp_path):
    assert run(folder, tmp_path / "eight", "--eight-bits").exit_code == 0
    whole, eight = (load_model(place).encoder.weight.detach() for place in (folder, tmp_path / "eight"))
    assert 0 < ((eight - whole).abs().amax(-1) / whole.abs().amax(-1)).max() < 0.01


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-model", "new"], 3, "no model and no file is called"),
        (["ours", "new", "--to", "onnx"], 2, "flasepformer, modelscope"),
        (["ours", "ours"], 2, "exists already"),
        (["ours", "new", "--to", "modelscope", "--half"], 2, "leave out --to"),
        (["ours", "new", "--eight-bits", "--half"], 2, "choose --half or --eight-bits"),
        (["ours/config.yaml", "new"], 3, "no model and no file"),
    ],
)
def test_convert_explains_what_is_wrong(folder, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["convert", "default", str(tmp_path / "file/ours")])
    assert (result.exit_code, result.stderr) == (3, f"error: {tmp_path / 'file/ours'}: Not a directory\n")


def test_a_model_is_made_causal_once_with_its_weights(folder, tmp_path):
    assert run(folder, tmp_path / "live", "--causal", 1, "--look-ahead", 2).exit_code == 0
    model, before = load_model(tmp_path / "live"), load_model(folder)
    assert (model.config.causal, model.config.n_stages, model.config.look_ahead) == (True, 1, 2)
    torch.testing.assert_close(model.encoder.weight, before.encoder.weight)
    again = run(folder, tmp_path / "live", "--causal", 1)
    assert again.exit_code == 2
    assert "is there already" in " ".join(again.stderr.replace("│", " ").split())


def test_what_cannot_be_made_causal_is_said(folder, tmp_path):
    save_model(TFLocoformer(tiny_tf_config()), tmp_path / "tf")
    for source, stages, message in ((tmp_path / "tf", 1, "is no SepReformer"), (folder, 9, "stages")):
        result = run(source, tmp_path / "live", "--causal", stages)
        assert result.exit_code == 3
        assert message in result.stderr
    assert run(folder, tmp_path / "live", "--causal", 1, "--half").exit_code == 2
    assert run(folder, tmp_path / "live", "--look-ahead", 1).exit_code == 2
    assert not (tmp_path / "live").exists()
