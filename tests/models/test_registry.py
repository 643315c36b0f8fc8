"""What holds for every model that has a name, on a miniature with its depths of stages and its attention."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from flasepformer.models import list_models, load_model, multiply_adds, registry, save_model
from flasepformer.models.registry import FAMILIES, build_model, registered_info, registered_names

# The rotary frequencies, one for every two channels of a head, are counted in the published figures of
# FLA-TFLocoformer; here they are constants.
PARAMETERS = {
    "fla-sepreformer-t": 3_680_544,
    "fla-sepreformer-b": 14_085_952,
    "fla-sepreformer-l": 55_098_240,
    "fla-tflocoformer-s": 5_067_056 - 12,
    "fla-tflocoformer-m": 15_071_252 - 16,
    "fla-tflocoformer-l": 22_603_220 - 16,
}
MILLIONS = {"sepreformer-t": 3.7, "sepreformer-b": 14.2, "tflocoformer-m": 15.0}
SMALL = {
    "sepreformer": {
        "n_filters": 16,
        "n_channels": 8,
        "n_heads": 2,
        "n_encoder_blocks": 1,
        "n_decoder_blocks": 1,
        "local_kernel_size": 5,
        "layer_scale": 0.1,
        "dropout": 0.0,
    },
    "tflocoformer": {
        "n_fft": 32,
        "hop_length": 16,
        "n_blocks": 2,
        "n_channels": 8,
        "n_heads": 2,
        "n_groups": 2,
        "attention_channels": 8,
        "feed_forward_channels": 6,
    },
}

every_model = pytest.mark.parametrize("name", registered_names())


def small_config(name):
    entry = registry._REGISTRY[name]
    return dataclasses.replace(entry.config(), **SMALL[entry.family])


def miniature(name):
    torch.manual_seed(0)
    return FAMILIES[registry._REGISTRY[name].family][1](small_config(name)).eval()


# Sizes that differ in what is made small only have the same miniature: the first name stands for them all.
every_miniature = pytest.mark.parametrize(
    "name", {small_config(n): n for n in registered_names()[::-1]}.values()
)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_of_the_paper_has_its_parameters(name):
    assert registered_info(name).n_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_an_original_has_the_published_millions_of_parameters(name):
    assert registered_info(name).n_parameters / 1e6 == pytest.approx(MILLIONS[name], abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fla-sepreformer-t", "tflocoformer-s", "fla-tflocoformer-m"])
def test_the_multiply_adds_on_record_are_those_that_are_counted(name):
    _count_again(name)


@pytest.mark.long
@every_model
def test_all_multiply_adds_on_record_are_those_that_are_counted(name):
    _count_again(name)


def _count_again(name):
    with torch.device("meta"):
        model = build_model(name)
    counted = multiply_adds(model, seconds=10) / 10 / 1e9
    assert counted == pytest.approx(registered_info(name).giga_multiply_adds, abs=0.006)


def test_every_size_of_the_paper_and_of_the_originals_has_a_name():
    assert set(registered_names()) == {
        *(f"fla-sepreformer-{size}" for size in "tbl"),
        *(f"sepreformer-{size}" for size in "tsbml"),
        *(f"{family}-{size}" for family in ("fla-tflocoformer", "tflocoformer") for size in "sml"),
    }
    assert [info.name for info in list_models() if not info.source] == [
        "default",
        "default-fast",
        "default-live",
        *registered_names(),
    ]


@pytest.mark.slow
@every_model
def test_full_size_separates(name):
    if name.endswith("-l"):
        pytest.skip("the medium sizes run the same code; see the slow test")
    _separate_a_little(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in registered_names() if name.endswith("-l")])
def test_full_size_separates_when_it_is_large(name):
    _separate_a_little(name)


def _separate_a_little(name):
    model = load_model(name)
    with torch.inference_mode():
        estimates = model(torch.randn(1, 700))
    assert estimates.shape == (1, 2, 700)
    assert estimates.isfinite().all()


@every_miniature
@pytest.mark.parametrize("n_samples", [1, 15, 16, 17, 333])
def test_any_length_comes_back(name, n_samples):
    with torch.inference_mode():
        estimates = miniature(name)(torch.randn(1, n_samples))
    assert estimates.shape == (1, 2, n_samples)
    assert estimates.isfinite().all()


@every_miniature
def test_a_batch_equals_its_mixtures_one_by_one(name):
    model = miniature(name)
    mixtures = torch.randn(3, 500) * torch.tensor([[1.0], [1e-3], [10.0]])
    with torch.inference_mode():
        together = model(mixtures)
        for mixture, estimates in zip(mixtures, together, strict=True):
            alone = model(mixture[None])[0]
            assert_close(estimates, alone, rtol=0, atol=1e-4 * alone.abs().max().item())


@every_miniature
def test_every_parameter_gets_a_gradient(name):
    model = miniature(name).train()
    estimates, auxiliaries = model.forward_with_auxiliary(torch.randn(2, 900))
    sum(estimate.square().sum() for estimate in [estimates, *auxiliaries]).backward()
    # A bias of the keys changes all scores of a query alike, so softmax gives it no gradient but rounding.
    reached = {
        key: p.grad is not None and (p.grad.any().item() or key.endswith("attention.key.bias"))
        for key, p in model.named_parameters()
    }
    assert [key for key, yes in reached.items() if not yes] == []


@every_miniature
def test_what_was_saved_is_loaded(name, tmp_path):
    model = miniature(name)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    mixture = torch.randn(1, 500)
    with torch.inference_mode():
        assert_close(loaded(mixture), model(mixture), rtol=0, atol=0)


@every_miniature
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", [0.0, 1e-8, 1.0, 1e6])
def test_extreme_levels_give_finite_estimates(name, precision, level):
    model = miniature(name)
    mixture = level * torch.rand(1, 500).mul(2).sub(1).sign()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        estimates = model(mixture)
    assert estimates.isfinite().all()
