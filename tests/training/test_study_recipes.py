"""The small study of the paper's ablation: its recipes differ in what they are about, and in nothing else."""

import dataclasses
from pathlib import Path

import pytest
import torch

from flasepformer.models import SepReformer, count_parameters
from flasepformer.training import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "study"
CHANGES = {
    "sepreformer": {"attention": "softmax", "max_distance": 48},
    "fla": {},
    "fla-no-gate": {"gated": False},
    "fla-no-conv": {"value_kernel_size": 0},
    "fla-no-gate-no-conv": {"gated": False, "value_kernel_size": 0},
    "linear": {"attention": "linear"},
}
"""What each variant has otherwise than FLA-SepReformer, in its network."""


def recipe_of(variant):
    return load_recipe(RECIPES / f"{variant}.yaml")


def test_the_variants_are_the_recipes_of_the_folder():
    assert set(CHANGES) == {path.stem for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("variant", CHANGES)
def test_a_variant_differs_from_fla_only_in_what_it_is_about(variant):
    recipe, reference = recipe_of(variant), recipe_of("fla")
    assert reference.model.attention == "focused_linear"
    assert reference.model.gated
    assert reference.model.value_kernel_size == 5
    assert reference.model.focusing_power == 3
    network = dataclasses.replace(reference.model, **CHANGES[variant])
    assert recipe == dataclasses.replace(reference, model=network, description=recipe.description)


def test_the_variants_are_of_equal_size():
    with torch.device("meta"):
        sizes = {name: count_parameters(SepReformer(recipe_of(name).model)) for name in CHANGES}
    for name, size in sizes.items():
        assert size == pytest.approx(sizes["fla"], rel=0.03 if "no-gate" in name else 0.002)


def test_every_distance_of_softmax_attention_occurs_in_training():
    recipe = recipe_of("sepreformer")
    model, n_samples = recipe.model, recipe.mixing.segment_seconds * recipe.model.sample_rate
    n_frames = (n_samples - model.filter_length) // model.hop_length // 2**model.n_stages
    assert model.max_distance < n_frames
