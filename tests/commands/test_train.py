import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from typer.testing import CliRunner

import flasepformer
from flasepformer.cli import app
from flasepformer.installing import how_to_install
from flasepformer.models import load_model

RECIPE = """
model: {n_filters: 16, n_channels: 8, n_heads: 2, n_stages: 1, n_encoder_blocks: 1, n_decoder_blocks: 1}
data: {n_valid_mixtures: 2, valid_segment_seconds: 0.25}
mixing: {segment_seconds: 0.25}
optimization: {n_steps: 2, batch_size: 1, warmup_steps: 1, decay_steps: 0}
validate_every: 1
"""


def write_speech(root):
    for i, speaker in enumerate(("train/a", "train/b", "valid/c", "valid/d")):
        (root / speaker).mkdir(parents=True)
        voice = 0.1 * np.random.default_rng(i).standard_normal(8000)
        soundfile.write(root / speaker / "0.wav", voice, 8000)
    return root


@pytest.mark.slow
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
    environment = (tmp_path / "run" / "environment.txt").read_text()
    assert environment.startswith(f"flasepformer {flasepformer.__version__}, sources ")
    assert "\ncommand " in environment
    assert "hours_left 0.0" in result.stdout
    assert flasepformer.load_model(tmp_path / "run").config == load_model(tmp_path / "run" / "best").config
    over = CliRunner().invoke(app, [*arguments, "--overwrite", "--device", "cpu"])  # issue 16
    assert over.exit_code == 0, over.output
    assert CliRunner().invoke(app, [*arguments, "--overwrite", "--device", "cuda:9"]).exit_code == 3
    on = [*arguments[:-1], "optimization.n_steps=2", "--set", "seed=5", "--resume"]
    result = CliRunner().invoke(app, on)
    assert result.exit_code == 0, result.output
    assert "from step 1 on, seed is 5 and was 0; optimization.n_steps is 2 and was 1" in result.stderr
    assert "seed: 0" in (tmp_path / "run" / "recipe-until-step-00000001.yaml").read_text()


def test_train_names_a_wrong_setting_and_leaves_nothing(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--set", "optimization.nsteps=5"])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: setting optimization.nsteps=5: there is no key optimization.nsteps; "
        "did you mean optimization.n_steps?\n"
    )
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (
        2, "error: the recipe names no speech; set data.speech to a folder or a manifest\n"
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


FIXED = [
    "--set",
    "data.train_on=mixtures",
    "--set",
    "data.validate_on=mixtures",
    "--set",
    "data.train_split=tr",
]
FIXED += ["--set", "data.valid_split=tt", "--set", "data.n_valid_mixtures=0"]


@pytest.mark.long
def test_train_on_a_set_that_prepare_has_listed(tmp_path):
    rng = np.random.default_rng(0)
    names = {
        "tr": ("011a0101_1.1_40na010x_-1.1", "012a0101_1.1_40na010y_-1.1"),
        "tt": ("050a01_1_422c02_-1",),
    }
    for split, name in ((split, name) for split, items in names.items() for name in items):
        s1, s2 = np.round(3000 * rng.standard_normal((2, 2400))) / 2**15
        for track, waveform in (("s1", s1), ("s2", s2), ("mix", s1 + s2)):
            (tmp_path / "set/wav8k/min" / split / track).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "set/wav8k/min" / split / track / f"{name}.wav", waveform, 8000)
    prepared = CliRunner().invoke(app, ["prepare", "wsj0-2mix", str(tmp_path / "set"), "--partial"])
    assert prepared.exit_code == 0, prepared.output
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    arguments += ["--mixtures", str(tmp_path / "set/wsj0-2mix-8k-min-clean")]
    result = CliRunner().invoke(app, [*arguments, *FIXED])
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "run" / "best").config.n_filters == 16

    again = CliRunner().invoke(app, [*arguments, *FIXED, "--resume"])
    assert again.exit_code == 0
    assert again.stderr == (
        "nothing to do: the run is at step 2 and optimization.n_steps is 2; raise it to go on\n"
    )
    unused = CliRunner().invoke(app, arguments)
    assert unused.exit_code == 2
    assert "--mixtures is of no use" in unused.stderr
    assert "trains on speech and validates on speech" in unused.stderr


MADE_SPLITS = ["--set", "data.train_split=train/mix_clean", "--set", "data.valid_split=valid/mix_clean"]


def make_set(speech, root):
    """Let `flasepformer mixtures` make a set of the speech, a folder for each split."""
    for split in ("train", "valid"):
        words = ["mixtures", str(speech), "--kind", "set", "--split", split, "--count", "2", "--workers", "1"]
        result = CliRunner().invoke(app, [*words, "--out", str(root / split)])
        assert result.exit_code == 0, result.output
    return root


@pytest.mark.long
def test_train_on_a_set_that_mixtures_has_made(tmp_path):
    made = make_set(write_speech(tmp_path / "speech"), tmp_path / "set")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = [
        "train",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--mixtures",
        str(made),
    ]
    arguments += FIXED[:4]
    lost = CliRunner().invoke(app, arguments)
    assert (lost.exit_code, lost.stderr) == (
        3, f"error: no manifest train.csv in {made}; it has train/mix_clean, valid/mix_clean: give two of "
        "them as data.train_split and data.valid_split\n"
    )  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, *MADE_SPLITS])
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "run" / "best").config.n_filters == 16


@pytest.mark.slow
def test_train_ends_in_the_same_way_whether_speech_or_mixtures_are_corrupt(tmp_path):
    speech = write_speech(tmp_path / "speech")
    made = make_set(speech, tmp_path / "set")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (speech / "train/a/0.wav").write_text("<html>not found</html>")
    next(made.glob("train/s1/*.wav")).write_text("<html>not found</html>")
    for given in (["--speech", str(speech)], ["--mixtures", str(made), *FIXED[:4], *MADE_SPLITS]):
        arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / given[0]), *given]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 3, result.output
        assert "1 of 2 " in result.stderr
        assert "data.max_corrupt_share" in result.stderr


def test_train_says_whether_an_interrupted_run_had_begun(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr("flasepformer.training.train", interrupted)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (130, "interrupted; it had not begun\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    result = CliRunner().invoke(app, arguments)
    expected = f"interrupted; continue with --resume --out {tmp_path / 'run'}\n"
    assert (result.exit_code, result.stderr) == (130, expected)


def test_train_takes_another_family_from_the_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE[RECIPE.index("data:") :])
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--speech", str(write_speech(tmp_path / "speech"))]
    arguments += ["--out", str(tmp_path / "run"), "--set", "family=tflocoformer", "--set", "model.n_blocks=1"]
    arguments += ["--set", "model.n_channels=8", "--set", "model.feed_forward_channels=8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "run" / "best")
    assert (type(model).__name__, model.config.n_blocks, model.config.n_channels) == ("TFLocoformer", 1, 8)


OWN_SPEECH = Path(__file__).parents[2] / "recipes" / "own-speech.yaml"
SHORT = [
    "optimization.n_steps=1", "optimization.warmup_steps=0", "optimization.decay_steps=0",
    "optimization.batch_size=1", "mixing.segment_seconds=0.5", "data.valid_segment_seconds=0.5",
    "data.n_valid_mixtures=1", "model.n_channels=16", "model.n_filters=64",
]  # fmt: skip


def test_a_recipe_trains_from_scratch_on_nothing_but_a_folder_of_speech(tmp_path):  # issue 16
    speech = write_speech(tmp_path / "speech")
    words = ["train", str(OWN_SPEECH), "--speech", str(speech)]
    settings = [word for setting in SHORT for word in ("--set", setting)]
    result = CliRunner().invoke(app, [*words, *settings, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (saved["initial_checkpoint"], saved["mixing"]["noise"], saved["mixing"]["rooms"]) == ("", [], "")
    card = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["info"]
    assert (card["description"], card["licence"], card["data"]) == ("", "", "speech")  # theirs, and not ours
    (tmp_path / "my noise, old").mkdir()
    soundfile.write(tmp_path / "my noise, old" / "0.wav", np.full(8000, 0.1), 8000)
    noisy = [*words, *settings, "--noise", str(tmp_path / "my noise, old"), "--out", str(tmp_path / "noisy")]
    result = CliRunner().invoke(app, noisy)
    assert result.exit_code == 0, result.output
    saved = yaml.safe_load((tmp_path / "noisy" / "recipe.yaml").read_text())
    assert saved["mixing"]["noise"] == [str(tmp_path / "my noise, old")]


def test_a_folder_without_splits_is_explained(tmp_path):  # issue 16
    speech = write_speech(tmp_path / "speech") / "train"
    words = ["train", str(OWN_SPEECH), "--speech", str(speech), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3
    assert f"no folder train in {speech}; expected is one for each split" in result.stderr


def test_train_names_the_extra_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: training needs")
    assert how_to_install("train") in result.stderr
    assert not (tmp_path / "run").exists()


def test_train_says_in_words_what_is_in_the_way(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--speech", str(write_speech(tmp_path / "speech"))]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "recipe.yaml")])
    assert (result.exit_code, result.stderr) == (3, f"error: {tmp_path / 'recipe.yaml'}: File exists\n")
    nowhere = CliRunner().invoke(app, [*arguments, "--speech", str(tmp_path / "nowhere")])
    assert (nowhere.exit_code, "does not exist" in nowhere.stderr) == (2, True)
