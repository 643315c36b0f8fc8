import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flasepformer.models import (
    SepReformer,
    SepReformerConfig,
    TFLocoformerConfig,
    save_model,
)
from flasepformer.training import (
    DataConfig,
    OptimizationConfig,
    Recipe,
    TrainingError,
    load_recipe,
    save_recipe,
)
from flasepformer.training.loop import _initial_model

PROJECT = Path(__file__).parents[2]
RECIPES = sorted((PROJECT / "recipes").rglob("*.yaml"))
OLDER = sorted((PROJECT / "docs").rglob("recipe*.yaml"))
"""Of runs by earlier versions."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_valid_and_survives_saving(path, tmp_path):
    recipe = load_recipe(path)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_there_are_recipes():
    assert RECIPES
    assert OLDER


def test_a_missing_key_takes_its_default_and_an_override_wins(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 7\noptimization:\n  n_steps: 30000\n")
    recipe = load_recipe(path, ["optimization.n_steps=40000", "model.n_channels=64"])
    assert (recipe.seed, recipe.optimization.n_steps, recipe.model.n_channels) == (7, 40_000, 64)
    assert recipe.optimization.learning_rate == Recipe().optimization.learning_rate


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sed: 7\n", "sed"),
        ("model:\n  n_chanels: 64\n", "n_chanels"),
        ("model:\n  n_channels: many\n", "n_channels"),
        ("model:\n  n_channels: 65\n", "multiple of n_heads"),
        ("optimization:\n  auxiliary_weight: 2\n", "auxiliary_weight"),
        ("mixing:\n  n_sources: 3\n", "must agree"),
        ("model: 5\n", "model must hold"),
        ("- seed\n", "keys and values"),
        ("a: b: c\n", "not YAML"),
        ("family: convtasnet\n", "sepreformer, tflocoformer, got 'convtasnet'"),
        ("family: tflocoformer\nmodel:\n  n_stages: 2\n", "n_stages"),
        ("family: tflocoformer\nmodel:\n  n_blocks: two\n", "n_blocks"),
        ("family: tflocoformer\nfourier_filters: true\n", "fourier_filters"),
        ("model_name: fla-sepreformer-x\n", "fla-sepreformer-x"),
        ("model_name: fla-sepreformer-t\nmodel:\n  n_blocks: 2\n", "n_blocks"),
        ("model_name: fla-sepreformer-t\nfamily: tflocoformer\n", "is of the family sepreformer"),
        ("optimization:\n  plateau_factor: 0\n", "plateau_factor"),
        ("optimization:\n  accumulate_steps: 0\n", "accumulate_steps"),
        ("data:\n  max_corrupt_share: 1\n", "max_corrupt_share must be at least 0 and below 1"),
        ("data:\n  train_on: music\n", "train_on"),
        ("data:\n  n_valid_mixtures: 0\n", "n_valid_mixtures must be at least 1 where .* from speech"),
        ("data: {validate_on: mixtures, n_valid_mixtures: -1}\n", "n_valid_mixtures must be at least 0, got"),
        ("data:\n  valid_segment_seconds: 0\n", "valid_segment_seconds must be positive where"),
        (
            "data: {validate_on: mixtures, valid_segment_seconds: -1}\n",
            "valid_segment_seconds must be at least",
        ),
        ("data: {validate_on: mixtures, valid_clean: true}\n", "valid_clean"),
        (
            "data: {train_on: mixtures, validate_on: mixtures}\nmixing: {rooms: any, speed_range: [1, 1]}",
            "mixing.speed_range, mixing.rooms: of no effect",
        ),
        ("n_logged_mixtures: -1\n", "n_logged_mixtures"),
        ("optimization: 5\n", "optimization must hold"),
        ("seed: null\n", r"seed must be a whole number, got nothing \(null\)"),
        ("seed: 1.5\n", r"seed must be a whole number, got 1\.5"),
        ("optimization: {n_steps: true}\n", "optimization.n_steps must be a whole number, got True"),
        (
            "mixing: {speed_range: [1]}\n",
            r"mixing.speed_range must be two numbers, such as \[0.5, 2\], got \[1\]",
        ),
        (
            "mixing: {noise: [1]}\n",
            r"mixing.noise must be a list, such as \[one, another\], or null, got \[1\]",
        ),
        ("data: {train_on: music}\n", "data.train_on must be one of speech, mixtures, got 'music'"),
        ("data: {valid_clean: maybe}\n", "data.valid_clean must be true or false, got 'maybe'"),
        (
            "model: {attention: soft}\n",
            "model.attention must be one of focused_linear, linear, softmax, got 'soft'",
        ),
        ("validate_every: 0\n", "epoch"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_null_and_empty_lists_mean_none(tmp_path):  # issue 16
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {PROJECT / 'recipes' / 'default-fast.yaml'}\ninitial_checkpoint: null\nlicence:\ndata:\n"
        "mixing: {noise: [], rooms: null}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.initial_checkpoint, recipe.licence, recipe.data) == ("", "", load_recipe(path).data)
    assert (recipe.mixing.noise, recipe.mixing.rooms) == ((), "")
    default = PROJECT / "recipes" / "default-fast.yaml"
    recipe = load_recipe(default, ["mixing.noise=null", "mixing.rooms=null", "initial_checkpoint="])
    assert (recipe.mixing.noise, recipe.mixing.rooms, recipe.initial_checkpoint) == ((), "", "")
    assert load_recipe(default, ["mixing.noise=one"]).mixing.noise == ("one",)
    assert load_recipe(default, ["optimization.learning_rate=1e-4"]).optimization.learning_rate == 1e-4


def test_a_training_too_short_for_its_peak_is_refused_with_what_would_fit():
    default = PROJECT / "recipes" / "default-fast.yaml"
    with pytest.raises(
        ValueError,
        match=r"warmup_steps 100 and decay_steps 3500 are together more than n_steps 2000, .* raise n_steps "
        r"to 3600, or lower them, for instance to 55 and 1944$",
    ):
        load_recipe(default, ["optimization.n_steps=2000"])
    for settings in (["n_steps=3600"], ["n_steps=2000", "warmup_steps=55", "decay_steps=1944"]):
        for order in (settings, settings[::-1]):
            load_recipe(default, [f"optimization.{setting}" for setting in order])
    for path in (default, PROJECT / "recipes" / "fla-sepreformer-b.yaml"):
        load_recipe(path, ["optimization.n_steps=20000"])  # the example in --help


@pytest.mark.parametrize(
    "setting", ["seed", "sed=7", "help=", "config=other.yaml", "model=5", "base=other.yaml", "=7", "model.=7"]
)
def test_a_setting_that_is_none_is_refused_by_name(tmp_path, setting):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 7\n")
    with pytest.raises(ValueError, match=re.escape(setting)):
        load_recipe(path, [setting])


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("optimization: {nsteps: 5}\n", [], "{path}: there is no key optimization.nsteps; did you mean opt"),
        ("", ["optimization.nsteps=5"], "setting optimization.nsteps=5: there is no key optimization"),
        ("", ["data.speach=x"], "setting data.speach=x: there is no key data.speach; did you mean data.spe"),
        ("", ["zzz=x"], "setting zzz=x: there is no key zzz"),
        ("", ["seed=8", "optimization.n_steps=many"], "setting optimization.n_steps=many: "),
        ("seed: one\n", ["optimization.n_steps=8"], "{path}: "),
        ("seed: 1\n", ["seed=one", "optimization.n_steps=8"], "setting seed=one: "),
    ],
)  # fmt: skip
def test_the_file_or_the_setting_that_is_wrong_is_blamed(tmp_path, content, settings, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="^" + re.escape(message.format(path=path))) as error:
        load_recipe(path, settings)
    assert "\n" not in str(error.value)


def test_a_recipe_may_say_what_it_changes_of_another(tmp_path):
    (tmp_path / "size.yaml").write_text(
        "model_name: fla-sepreformer-b\n"
        "optimization: {batch_size: 2, n_steps: 9, warmup_steps: 5, decay_steps: 4}\n"
    )
    (tmp_path / "set").mkdir()
    (tmp_path / "set/long.yaml").write_text(
        "base: ../size.yaml\noptimization: {n_steps: 20}\nmodel: {n_heads: 4}\n"
    )
    (tmp_path / "set/seed.yaml").write_text("base: long.yaml\nseed: 3\n")
    recipe = load_recipe(tmp_path / "set/seed.yaml", ["optimization.accumulate_steps=2"])
    assert (recipe.seed, recipe.model.n_channels, recipe.model.n_heads) == (3, 128, 4)
    steps = recipe.optimization
    assert (steps.batch_size, steps.n_steps, steps.accumulate_steps) == (2, 20, 2)
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe

    (tmp_path / "size.yaml").write_text("base: set/seed.yaml\n")
    with pytest.raises(ValueError, match="is based on itself"):
        load_recipe(tmp_path / "set/seed.yaml")
    (tmp_path / "size.yaml").write_text("sed: 7\n")
    with pytest.raises(ValueError, match=r"size\.yaml: there is no key sed; did you mean seed"):
        load_recipe(tmp_path / "set/seed.yaml")
    (tmp_path / "size.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"size\.yaml"):
        load_recipe(tmp_path / "set/seed.yaml")


def test_the_family_decides_the_fields_of_the_model(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("family: tflocoformer\nmodel:\n  n_blocks: 2\n")
    recipe = load_recipe(path)
    assert recipe.model == TFLocoformerConfig(n_blocks=2)
    path.write_text("seed: 7\n")
    assert load_recipe(path).model == SepReformerConfig()
    assert load_recipe(path, ["family=tflocoformer"]).model == TFLocoformerConfig()


def test_a_model_name_fills_in_what_the_recipe_does_not_say(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name: fla-sepreformer-l\nmodel:\n  gated: false\n")
    expected = SepReformerConfig(n_channels=256, dropout=0.1, gated=False, n_heads=4)
    recipe = load_recipe(path, ["model.n_heads=4"])
    assert recipe.model == expected
    save_recipe(recipe, path)
    assert load_recipe(path).model == expected
    assert load_recipe(path, ["model_name=fla-sepreformer-t"]).model == expected  # all fields are written out


def test_what_a_recipe_says_of_its_weights_goes_with_its_data(tmp_path):  # issue 16
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "description: trained on theirs\nlicence: MIT\ntrained_on: theirs\ndata:\n  speech: a/theirs\n"
    )
    assert load_recipe(path).card == {"description": "trained on theirs", "licence": "MIT", "data": "theirs"}
    same = load_recipe(path, ["data.speech=/elsewhere/theirs"])
    assert same.card == load_recipe(path).card
    own = load_recipe(path, ["data.speech=/home/ann/interviews"])
    assert own.card == {"description": "", "licence": "", "data": "interviews"}
    said = ["description=two talkers", "licence=CC0", "trained_on=12 hours of interviews"]
    own = load_recipe(path, ["data.speech=/home/ann/interviews/list.csv", *said[:2]])
    assert own.card == {"description": "two talkers", "licence": "CC0", "data": "interviews/list.csv"}
    assert load_recipe(path, said).card["data"] == "12 hours of interviews"


@pytest.mark.parametrize("path", OLDER, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_recipe_of_an_older_run_still_loads(path):
    recipe = load_recipe(path)
    assert (recipe.family, recipe.model.n_filters) == ("sepreformer", 2 * recipe.model.filter_length)
    assert recipe.epoch_steps == recipe.validate_every


def test_another_file_than_a_recipe_is_named_and_not_repeated(tmp_path):
    path = tmp_path / "talk.wav"
    path.write_bytes(b"RIFF\x80")
    with pytest.raises(ValueError, match=r"talk\.wav is not YAML"):
        load_recipe(path)
    path.write_text("a line of prose\n" * 1000)
    with pytest.raises(ValueError, match=r"keys and values, got str$"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"long_every": -1}, "long_every must not be negative"),
        ({"long_every": 3, "long_seconds": (30.0, 15.0)}, "long_seconds must run from low to high"),
        ({"long_every": 3, "long_batch_size": 9}, "long_batch_size must be at most batch_size, 4"),
        ({"loss_limit_db": -1.0}, "loss_limit_db must not be negative"),
    ],
)
def test_long_steps_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        OptimizationConfig(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"held_out_share": 1.0, "held_out_corpora": ("cv",)},
            "held_out_share must be at least 0 and below 1",
        ),
        ({"held_out_share": 0.1}, "held_out_share and held_out_corpora need each other"),
        ({"n_valid_conversations": -1}, "n_valid_conversations must not be negative"),
        ({"n_valid_conversations": 2, "train_on": "mixtures"}, "for training on speech alone"),
    ],
)
def test_a_validation_that_cannot_be_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**setting)


def test_a_network_that_forgets_otherwise_may_begin_from_one_that_does_not(tmp_path):
    recipe = PROJECT / "recipes/live.yaml"
    stored = SepReformer(replace(load_recipe(recipe).model, n_channels=8, n_filters=8))
    save_model(stored, tmp_path)
    settings = [f"initial_checkpoint={tmp_path}", "model.n_channels=8", "model.n_filters=8"]
    begun = _initial_model(load_recipe(recipe, [*settings, "model.forget_seconds=20"]), resumed=False)
    assert (stored.config.forget_seconds, begun.config.forget_seconds) == (60.0, 20.0)
    weights = stored.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in begun.state_dict().items())
    with pytest.raises(TrainingError, match="has another config than the recipe"):
        _initial_model(load_recipe(recipe, [*settings, "model.look_ahead=4"]), resumed=False)
