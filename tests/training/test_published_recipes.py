"""The recipes of the published sizes against facts that stand here a second time."""

from pathlib import Path

import pytest

from flasepformer.models.registry import registered_names
from flasepformer.training import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

# name: family, attention, channels, stages or pairs of blocks, hop in samples, dropout, learning rate
SIZES = {
    "fla-sepreformer-t": ("sepreformer", "focused_linear", 64, 4, 4, 0.05, 1e-3),
    "fla-sepreformer-b": ("sepreformer", "focused_linear", 128, 4, 4, 0.05, 1e-3),
    "fla-sepreformer-l": ("sepreformer", "focused_linear", 256, 4, 4, 0.1, 2e-4),
    "sepreformer-t": ("sepreformer", "softmax", 64, 4, 4, 0.05, 1e-3),
    "sepreformer-s": ("sepreformer", "softmax", 64, 5, 2, 0.05, 1e-3),
    "sepreformer-b": ("sepreformer", "softmax", 128, 4, 4, 0.05, 1e-3),
    "sepreformer-m": ("sepreformer", "softmax", 128, 5, 2, 0.05, 1e-3),
    "sepreformer-l": ("sepreformer", "softmax", 256, 4, 4, 0.1, 2e-4),
    "fla-tflocoformer-s": ("tflocoformer", "focused_linear", 96, 4, 64, 0.0, 1e-3),
    "fla-tflocoformer-m": ("tflocoformer", "focused_linear", 128, 6, 64, 0.0, 1e-3),
    "fla-tflocoformer-l": ("tflocoformer", "focused_linear", 128, 9, 64, 0.0, 1e-3),
    "tflocoformer-s": ("tflocoformer", "softmax", 96, 4, 64, 0.0, 1e-3),
    "tflocoformer-m": ("tflocoformer", "softmax", 128, 6, 64, 0.0, 1e-3),
    "tflocoformer-l": ("tflocoformer", "softmax", 128, 9, 64, 0.0, 1e-3),
}

# of the original of each family
SETTINGS = {
    "sepreformer": {
        "batch_size": 2, "weight_decay": 0.01, "clip_norm": 5.0, "warmup_steps": 10_000,
        "plateau_factor": 0.8, "plateau_patience": 2, "plateau_start_epoch": 50, "auxiliary_weight": 0.4,
        "auxiliary_decay_factor": 0.8, "auxiliary_decay_start_epoch": 100, "auxiliary_decay_epochs": 5,
        "average_best": 1, "early_stop_epochs": 0,
    },
    "tflocoformer": {
        "batch_size": 4, "weight_decay": 0.01, "clip_norm": 5.0, "warmup_steps": 4000, "plateau_factor": 0.5,
        "plateau_patience": 3, "plateau_start_epoch": 0, "average_best": 5, "early_stop_epochs": 10,
    },
}  # fmt: skip
EPOCHS = {"sepreformer": 200, "tflocoformer": 150}
MIXTURES_PER_EPOCH = 20_000


def test_every_published_size_has_a_recipe():
    assert set(SIZES) == set(registered_names())
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_trains_its_size_with_the_settings_of_the_original(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    model, optimization = recipe.model, recipe.optimization
    depth = model.n_stages if recipe.family == "sepreformer" else model.n_blocks
    found = (recipe.family, model.attention, model.n_channels, depth, model.hop_length, model.dropout)
    assert (*found, optimization.learning_rate) == SIZES[name]
    settings = SETTINGS[recipe.family]
    assert {key: getattr(optimization, key) for key in settings} == settings
    assert recipe.steps_per_epoch * optimization.batch_size == MIXTURES_PER_EPOCH
    assert optimization.n_steps == EPOCHS[recipe.family] * recipe.steps_per_epoch
    assert recipe.mixing.segment_seconds == 4.0
    # nothing but the original's schedule, and its own weights
    assert (optimization.decay_steps, optimization.average_decay, optimization.optimizer) == (0, 0.0, "adamw")


@pytest.mark.parametrize("size", ["m", "l"])
def test_softmax_tflocoformer_has_the_feed_forward_networks_of_its_original(size):
    model = load_recipe(RECIPES / f"tflocoformer-{size}.yaml").model
    assert (model.feed_forward_channels, model.feed_forward_kernel) == (384, 4)
