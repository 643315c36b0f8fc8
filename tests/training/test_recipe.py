from pathlib import Path

import pytest

from flasepformer.models import SepReformerConfig, TFLocoformerConfig
from flasepformer.training import Recipe, load_recipe, save_recipe

PROJECT = Path(__file__).parents[2]
RECIPES = sorted((PROJECT / "recipes").glob("*.yaml"))
OLDER = sorted((PROJECT / "docs").glob("*/recipe-*.yaml"))
"""Of runs before there were families and epochs."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_survives_saving(path, tmp_path):
    recipe = load_recipe(path)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_there_are_recipes():
    assert RECIPES


def test_a_missing_key_takes_its_default_and_an_override_wins(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 7\noptimization:\n  n_steps: 10\n")
    recipe = load_recipe(path, ["optimization.n_steps=20", "model.n_channels=64"])
    assert (recipe.seed, recipe.optimization.n_steps, recipe.model.n_channels) == (7, 20, 64)
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
        ("data:\n  max_corrupt_share: 0.5\n", "max_corrupt_share"),
        ("validate_every: 0\n", "epoch"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("setting", ["seed", "sed=7", "help=", "config=other.yaml", "model=5"])
def test_a_setting_that_is_none_is_refused_by_name(tmp_path, setting):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 7\n")
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        load_recipe(path, [setting])


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


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_the_recipe_of_an_older_run_still_loads(path):
    recipe = load_recipe(path)
    assert (recipe.family, recipe.model.n_filters) == ("sepreformer", 512)
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
