from pathlib import Path

import pytest

from flasepformer.training import Recipe, load_recipe, save_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


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
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_recipe(tmp_path / "absent.yaml")
