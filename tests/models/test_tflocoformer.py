from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from flasepformer.layers import Moments
from flasepformer.metrics import si_snr
from flasepformer.models import CheckpointError, TFLocoformer, TFLocoformerConfig
from flasepformer.models.layouts.tflocoformer import espnet_fields, modelscope_fields
from flasepformer.models.tflocoformer import ConvSwiGLU
from flasepformer.training.losses import si_snr_loss

ATTENTIONS = ["focused_linear", "linear", "softmax"]

SIZES = {
    "S": {"n_blocks": 4, "n_channels": 96, "attention_channels": 96, "feed_forward_channels": 128},
    "M": {},
    "L": {"n_blocks": 9},
}
# The paper counts the rotary frequencies too, which are constants here: 12 numbers in S, 16 in M and L.
PAPER_PARAMETERS = {"S": 5_067_056 - 12, "M": 15_071_252 - 16, "L": 22_603_220 - 16}


def tiny_config(**changes):
    sizes = {
        "n_fft": 32,
        "hop_length": 16,
        "n_blocks": 2,
        "n_channels": 8,
        "n_heads": 2,
        "n_groups": 2,
        "attention_channels": 12,
        "feed_forward_channels": 10,
        "feed_forward_kernel": 4,
    }
    return TFLocoformerConfig(**{**sizes, **changes})


def tiny_model(**changes):
    torch.manual_seed(0)
    return TFLocoformer(tiny_config(**changes)).eval()


@pytest.fixture(params=ATTENTIONS)
def model(request):
    return tiny_model(attention=request.param)


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_have_the_parameters_of_the_paper(size):
    with torch.device("meta"):
        model = TFLocoformer(TFLocoformerConfig(**SIZES[size]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PAPER_PARAMETERS[size]


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(1, 300),
    n_sources=st.integers(2, 3),
    hop_length=st.integers(5, 16),
    attention=st.sampled_from(ATTENTIONS),
)
def test_every_length_and_number_of_talkers_comes_back(n_samples, n_sources, hop_length, attention):
    model = tiny_model(n_blocks=1, n_sources=n_sources, hop_length=hop_length, attention=attention)
    with torch.inference_mode():
        estimates = model(torch.randn(1, n_samples))
    assert estimates.shape == (1, n_sources, n_samples)
    assert estimates.isfinite().all()
    assert (estimates != 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        *({"attention": attention} for attention in ATTENTIONS),
        {"gated": False},
        {"value_kernel_size": 0},
        {"repeat_input": False},
        {"normalize_variance": False},
    ],
)
def test_every_parameter_receives_a_gradient(changes):
    model = tiny_model(**changes).train()
    estimates, auxiliaries = model.forward_with_auxiliary(torch.randn(2, 500))
    estimates.square().sum().backward()
    assert auxiliaries == []
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_a_batch_equals_its_mixtures_one_by_one(model):
    mixtures = torch.randn(3, 400) * torch.tensor([[1.0], [0.01], [100.0]])
    with torch.inference_mode():
        one_by_one = torch.cat([model(mixture[None]) for mixture in mixtures])
        together = model(mixtures)
    level = one_by_one.square().mean(dim=(1, 2), keepdim=True).sqrt()
    assert_close(together / level, one_by_one / level, rtol=0, atol=1e-5)


def test_without_gradients_the_mixture_stays_as_it_is(model):
    mixture = torch.randn(1, 400)
    copy = mixture.clone()
    with torch.no_grad():
        model(mixture)
    assert torch.equal(mixture, copy)


def test_feed_forward_equals_its_definition():
    torch.manual_seed(0)
    layer = ConvSwiGLU(tiny_config(), "bins")
    x = torch.randn(3, 9, 8)
    expanded = layer.expand(F.pad(layer.norm(x).mT, (3, 3)))
    value, gate = expanded.chunk(2, dim=1)
    contracted = layer.contract(value * gate * torch.sigmoid(gate))[..., 3:-3]
    expected = x + contracted.mT
    assert_close(layer(x[None])[0], expected)
    layer.axis = "frames"
    assert_close(layer(x.transpose(0, 1)[None])[0].transpose(0, 1), expected)


def test_repeated_input_adds_the_input_of_the_attention_once_more():
    once, twice = (tiny_model(n_blocks=1, repeat_input=repeat).blocks[0].time for repeat in (False, True))
    for block in (once, twice):
        assert list(block) == ["feed_forward_1", "attention", "feed_forward_2"]
    x = torch.randn(2, 5, 3, 8)
    assert_close(twice["attention"](x), once["attention"](x) + x)


def test_plain_linear_attention_is_focusing_with_power_one():
    mixture = torch.randn(1, 300)
    with torch.no_grad():
        plain, focused = (
            tiny_model(**changes)(mixture)
            for changes in ({"attention": "linear"}, {"attention": "focused_linear", "focusing_power": 1})
        )
    assert torch.equal(plain, focused)


def test_the_deviation_is_the_unbiased_one_and_the_peak_where_nothing_varies():
    mixture = torch.tensor([[1.0, -1, 3, 5], [2, 2, 2, 2], [0, 0, 0, 0]])
    levels = tiny_model().level_of(Moments.of(mixture), mixture.abs().amax(-1).double())
    assert_close(levels, torch.tensor([2.581989, 2.0, 0.0]).double(), rtol=1e-6, atol=0)
    one = torch.tensor([[-3.0]])
    assert tiny_model().level_of(Moments.of(one), one.abs()[:, 0].double()).tolist() == [3]


@pytest.mark.slow
def test_the_estimates_follow_the_level(model):
    mixture = torch.randn(1, 400)
    with torch.inference_mode():
        for gain in (2.0**-40, 2.0**40):
            assert torch.equal(model(gain * mixture), gain * model(mixture))
        assert_close(model(0.3 * mixture), 0.3 * model(mixture), rtol=1e-4, atol=1e-5)


MIXTURES = {
    "silence": torch.zeros(2, 400),
    "a constant": torch.full((2, 400), 0.37),
    "one sample": torch.tensor([[0.3], [-2.0]]),
    "full scale": torch.randn(2, 400).sign(),
    "very quiet": 1e-8 * torch.randn(2, 400),
    "very loud": 1e6 * torch.randn(2, 400),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("normalize_variance", [True, False])
def test_autocast_gives_finite_numbers(name, dtype, normalize_variance):
    for attention in ("focused_linear", "softmax"):
        model = tiny_model(attention=attention, normalize_variance=normalize_variance)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            estimates = model(MIXTURES[name])
        assert estimates.isfinite().all()
        if name == "silence" and normalize_variance:
            assert estimates.abs().max() == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_is_close_to_single_precision(model, dtype, tolerance):
    mixture = torch.randn(1, 400)
    with torch.no_grad():
        exact = model(mixture)
        with torch.autocast("cpu", dtype):
            cast = model(mixture)
        stored = model.to(dtype)(mixture.to(dtype)).float()
    assert (cast - exact).norm() < tolerance * exact.norm()
    assert (stored - exact).norm() < tolerance * exact.norm()


def test_dropout_acts_in_training_only():
    mixture = torch.randn(1, 300)
    for attention in ATTENTIONS:
        model = tiny_model(attention=attention, dropout=0.2)
        with torch.no_grad():
            assert torch.equal(model(mixture), model(mixture))
            model.train()
            assert not torch.equal(model(mixture), model(mixture))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["focused_linear", "softmax"])
def test_a_miniature_overfits_one_mixture(attention):
    model = tiny_model(attention=attention, n_fft=64, hop_length=32, n_blocks=1).train()
    time = torch.arange(1600) / 8000
    sources = torch.stack(
        [torch.sin(2 * torch.pi * f * time) * (1 + torch.sin(g * time)) for f, g in ((310, 9), (1270, 23))]
    )
    mixture = sources.sum(0, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = si_snr_loss(model(mixture), sources[None])
        loss.backward()
        optimizer.step()
    assert si_snr(mixture.expand(2, -1), sources).mean().item() == pytest.approx(0, abs=0.1)
    assert -loss.item() > 15


@pytest.mark.parametrize("shape", [(8000,), (1, 1, 8000), (1, 0)])
def test_a_wrong_shape_is_explained(model, shape):
    with pytest.raises(ValueError, match=r"\(batch, time\)"):
        model(torch.zeros(shape))


def test_whole_numbers_are_explained(model):
    with pytest.raises(ValueError, match="floating point"):
        model(torch.zeros(1, 400, dtype=torch.int16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_sources": 1}, "n_sources must be a whole number from 2"),
        ({"n_blocks": 10**9}, "n_blocks must be a whole number from 1 to 32"),
        ({"feed_forward_channels": 10**9}, "feed_forward_channels must be a whole number from 1 to 2048"),
        ({"n_channels": "128"}, "n_channels must be a whole number"),
        ({"n_blocks": True}, "n_blocks must be a whole number"),
        ({"n_fft": 129}, "n_fft must be a multiple of 2"),
        ({"n_channels": 126}, "n_channels must be a multiple of n_heads"),
        ({"n_channels": 132, "n_groups": 8}, "n_channels must be a multiple of n_groups"),
        ({"attention_channels": 132}, "attention_channels must be a multiple of 2 n_heads"),
        ({"hop_length": 65}, "hop_length must not exceed half of n_fft"),
        ({"value_kernel_size": 4}, "odd or 0"),
        ({"attention": "sharp"}, "attention must be one of focused_linear, linear, softmax"),
        ({"attention": ["softmax"]}, "attention must be one of"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        (
            {"causal": True},
            "a causal network has linear attention over time and takes the mixture at the level",
        ),
        ({"repeat_input": 1}, "repeat_input must be true or false"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TFLocoformerConfig(**changes)


PUBLISHED = {
    "num_spk": 2,
    "n_layers": 4,
    "emb_dim": 96,
    "norm_type": "rmsgroupnorm",
    "num_groups": 4,
    "n_heads": 4,
    "ffn_type": ["swiglu_conv1d"] * 2,
    "ffn_hidden_dim": [128, 128],
    "conv1d_kernel": 8,
    "conv1d_shift": 1,
}


def test_espnet_settings_leave_the_width_of_the_attention_to_its_default():
    config = TFLocoformerConfig(**espnet_fields(PUBLISHED, Path("config.yaml")))
    sizes = config.n_blocks, config.n_channels, config.attention_channels, config.feed_forward_channels
    assert sizes == (4, 96, 128, 128)
    assert (config.attention, config.repeat_input) == ("softmax", False)


def test_published_settings_that_the_network_cannot_follow_are_refused():
    modelscope = PUBLISHED | {
        "ffn_type": ["swiglu_conv1d_layerchange"] * 2,
        "attention_dim": 96,
        "layers_type": ["f", "t"] * 2,
        "attn_types": ["LocoformerMHSA", "LocoformerLinearAttnMHSA"],
    }
    path = Path("configuration.json")
    assert modelscope_fields(modelscope, path)["n_blocks"] == 2
    for change in (
        {"n_layers": 10**15},
        {"layers_type": ["t", "f"] * 2},
        {"use_rope": False},
        {"attention_dim": 128},
        {"ffn_hidden_dim": [128, 64]},
    ):
        (name,) = change
        with pytest.raises(CheckpointError, match=name):
            modelscope_fields(modelscope | change, path)
