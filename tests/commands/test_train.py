import subprocess
import sys

import numpy as np
import soundfile
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models import load_model

RECIPE = """
model: {n_filters: 16, n_channels: 8, n_heads: 2, n_stages: 1, n_encoder_blocks: 1, n_decoder_blocks: 1}
data: {n_valid_mixtures: 2}
mixing: {segment_seconds: 0.25}
optimization: {n_steps: 2, batch_size: 1, warmup_steps: 1, decay_steps: 1}
validate_every: 1
"""


def write_speech(root):
    for i, speaker in enumerate(("train/a", "train/b", "valid/c", "valid/d")):
        (root / speaker).mkdir(parents=True)
        voice = 0.1 * np.random.default_rng(i).standard_normal(8000)
        soundfile.write(root / speaker / "0.wav", voice, 8000)
    return root


def test_train_prints_where_the_best_weights_are_and_does_not_repeat_itself(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--speech", str(write_speech(tmp_path / "speech"))]
    arguments += ["--out", str(tmp_path / "run"), "--set", "optimization.n_steps=1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(str(tmp_path / "run" / "best"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 3
    assert "holds a run already" in again.stderr


def test_train_explains_a_wrong_setting(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    result = CliRunner().invoke(
        app, ["train", str(tmp_path / "recipe.yaml"), "--set", "optimization.n_stepps=1"]
    )
    assert result.exit_code == 2
    assert "n_stepps" in result.stderr


def test_train_takes_another_family_from_the_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE[RECIPE.index("data:") :])
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--speech", str(write_speech(tmp_path / "speech"))]
    arguments += ["--out", str(tmp_path / "run"), "--set", "family=tflocoformer", "--set", "model.n_blocks=1"]
    arguments += ["--set", "model.n_channels=8", "--set", "model.feed_forward_channels=8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "run" / "best")
    assert (type(model).__name__, model.config.n_blocks, model.config.n_channels) == ("TFLocoformer", 1, 8)


def test_train_names_the_extra_that_is_missing(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for module in ("jsonargparse", "accelerate"):
        script = f"import sys; sys.modules[{module!r}] = None; from flasepformer.cli import main; main()"
        command = [sys.executable, "-c", script, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert done.stderr.startswith("error: training needs")
        assert 'pip install "flasepformer[train]"' in done.stderr


def test_train_says_in_words_what_is_in_the_way(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--speech", str(write_speech(tmp_path / "speech"))]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "recipe.yaml")])
    assert (result.exit_code, result.stderr) == (3, f"error: {tmp_path / 'recipe.yaml'}: File exists\n")
    nowhere = CliRunner().invoke(app, [*arguments, "--speech", str(tmp_path / "nowhere")])
    assert (nowhere.exit_code, "does not exist" in nowhere.stderr) == (2, True)
