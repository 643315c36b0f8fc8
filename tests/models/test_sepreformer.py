import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.conftest import tiny_config
from torch.nn import functional as F
from torch.testing import assert_close

from flasepformer.layers import RelativePositions
from flasepformer.metrics import si_snr
from flasepformer.models import SepReformer, SepReformerConfig
from flasepformer.models.registry import build_model, registered_info, registered_names
from flasepformer.models.sepreformer import PooledResidualAttention
from flasepformer.training.losses import si_snr_loss

ATTENTIONS = ("focused_linear", "linear", "softmax")

PAPER_PARAMETERS = {
    "fla-sepreformer-t": 3_680_544,
    "fla-sepreformer-b": 14_085_952,
    "fla-sepreformer-l": 55_098_240,
    # the network and its table of positions
    "sepreformer-t": 3_679_488 + 4000 * 8,
    "sepreformer-s": 4_495_616 + 4000 * 8,
    "sepreformer-b": 14_083_840 + 4000 * 16,
    "sepreformer-m": 17_243_904 + 4000 * 16,
    "sepreformer-l": 55_094_016 + 4000 * 32,
}
NAMES = [name for name in registered_names() if "sepreformer" in name]


@pytest.mark.parametrize("name", NAMES)
def test_registered_model_has_the_parameters_of_the_paper(name):
    assert registered_info(name).n_parameters == PAPER_PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_registered_config_in_miniature_trains_every_parameter(name):
    with torch.device("meta"):
        config = build_model(name).config
    torch.manual_seed(0)
    small = {"n_filters": 16, "n_channels": 8, "n_heads": 2, "local_kernel_size": 5, "layer_scale": 0.1}
    model = SepReformer(SepReformerConfig(**{**vars(config), **small}))
    estimates, auxiliaries = model.forward_with_auxiliary(torch.randn(2, 900))
    assert len(auxiliaries) == config.n_stages
    sum(estimate.square().sum() for estimate in [estimates, *auxiliaries]).backward()
    assert all(p.grad is not None for p in model.parameters())
    idle = [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    # The bias of a key moves all scores of a query alike: softmax cancels it, but for rounding.
    assert [name for name in idle if not name.endswith(".key.bias")] == []


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    n_samples=st.integers(1, 700),
    n_sources=st.integers(2, 4),
    pad_end=st.booleans(),
    attention=st.sampled_from(ATTENTIONS),
)
def test_every_length_and_number_of_talkers_comes_back(n_samples, n_sources, pad_end, attention):
    model = SepReformer(tiny_config(n_sources=n_sources, pad_end=pad_end, attention=attention)).eval()
    with torch.inference_mode():
        estimates = model(torch.randn(1, n_samples))
    assert estimates.shape == (1, n_sources, n_samples)
    assert estimates.isfinite().all()


def test_the_last_samples_are_estimated_too(tiny_model):
    with torch.inference_mode():
        assert (tiny_model(torch.randn(1, 403))[..., -3:] != 0).all()


def test_a_published_model_leaves_the_last_samples_zero():
    model = SepReformer(tiny_config(pad_end=False)).eval()
    with torch.inference_mode():
        assert (model(torch.randn(1, 403))[..., -3:] == 0).all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_batch_equals_its_mixtures_one_by_one(attention):
    torch.manual_seed(0)
    model = SepReformer(tiny_config(attention=attention)).eval()
    mixtures = torch.randn(3, 800)
    with torch.inference_mode():
        assert_close(model(mixtures), torch.cat([model(m[None]) for m in mixtures]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "change", "parts"),
    [
        ("focused_linear", {"attention": "linear"}, ()),
        ("focused_linear", {"focusing_power": 4}, ()),
        ("focused_linear", {"value_kernel_size": 0}, (".value_conv.",)),
        ("focused_linear", {"gated": False}, (".attention.gate.",)),
        ("linear", {"value_kernel_size": 0}, (".value_conv.",)),
        ("linear", {"gated": False}, (".attention.gate.",)),
        ("softmax", {"gated": False}, (".attention.gate.",)),
    ],
)
def test_an_ablation_loses_its_part_and_nothing_else(base, change, parts):
    torch.manual_seed(0)
    config = tiny_config(attention=base, layer_scale=0.1)
    whole, ablated = (SepReformer(c).eval() for c in (config, dataclasses.replace(config, **change)))
    kept = {
        name: value for name, value in whole.state_dict().items() if not any(part in name for part in parts)
    }
    assert bool(parts) == (len(kept) < len(whole.state_dict()))
    ablated.load_state_dict(kept)
    mixture = torch.randn(1, 800)
    with torch.inference_mode():
        estimates = ablated(mixture)
        assert estimates.isfinite().all()
        assert (estimates - whole(mixture)).abs().max() > 1e-3 * estimates.std()


def test_linear_attention_is_the_focused_one_of_power_one():
    torch.manual_seed(0)
    linear, focused = (
        SepReformer(tiny_config(**change)).eval()
        for change in ({"attention": "linear"}, {"focusing_power": 1})
    )
    focused.load_state_dict(linear.state_dict())
    mixture = torch.randn(1, 800)
    with torch.inference_mode():
        assert_close(linear(mixture), focused(mixture), rtol=0, atol=0)


def test_softmax_attention_pools_gates_and_repeats_as_published():
    torch.manual_seed(0)
    positions = RelativePositions(2000, 4)
    block = PooledResidualAttention(tiny_config(attention="softmax", layer_scale=0.1), 4, positions)
    x = torch.randn(2, 40, 8)
    pooled = F.adaptive_avg_pool1d(x.mT, 10).mT
    attended = 0.1 * block.attention(block.norm(pooled), positions(10))
    expected = x + block.gate(x).sigmoid() * F.interpolate(attended.mT, 40, mode="nearest").mT
    assert_close(block(x), expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("level", [0, 1e-8, 1e6])
def test_numbers_and_gradients_are_finite_at_every_level(attention, level):
    torch.manual_seed(0)
    model = SepReformer(tiny_config(attention=attention, layer_scale=0.1))
    for bfloat16 in (False, True):
        for n_samples in (1, 300):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                estimates, auxiliaries = model.forward_with_auxiliary(level * torch.randn(2, n_samples))
                assert all(y.isfinite().all() for y in (estimates, *auxiliaries))
                sum(y.square().mean() for y in (estimates, *auxiliaries)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_autocast_follows_float32(attention, dtype, tolerance):
    torch.manual_seed(0)
    model = SepReformer(tiny_config(attention=attention, layer_scale=0.1)).eval()
    mixture = torch.randn(1, 1600)
    with torch.inference_mode():
        expected = model(mixture)
        with torch.autocast("cpu", dtype):
            estimates = model(mixture)
    assert (estimates - expected).square().mean().sqrt() < tolerance * expected.square().mean().sqrt()


def test_normalized_variance_makes_the_estimates_follow_the_level():
    model = SepReformer(tiny_config(normalize_variance=True)).eval()
    mixture = torch.randn(1, 800)
    with torch.inference_mode():
        assert_close(model(1024 * mixture), 1024 * model(mixture))
        assert model(torch.zeros(1, 800)).abs().max() == 0


@pytest.mark.parametrize("mixture", [torch.ones(1, 1), torch.full((1, 5), 0.3), torch.full((1, 800), -1e6)])
def test_normalized_variance_of_a_constant_is_finite(mixture):
    model = SepReformer(tiny_config(normalize_variance=True)).eval()
    with torch.inference_mode():
        assert model(mixture).isfinite().all()


def test_masking_of_silence_is_silent():
    model = SepReformer(tiny_config(masking=True)).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 800)).abs().max() == 0


def test_the_fourier_basis_gives_back_what_it_is_given():
    model = SepReformer(
        tiny_config(n_filters=64, filter_length=32, hop_length=16, masking=True, layer_scale=1e-5)
    ).eval()
    model.initialize_fourier()
    torch.nn.init.zeros_(model.output[2].weight)  # leaves the masks at an equal share for both talkers
    mixture = torch.randn(1, 801)
    with torch.inference_mode():
        estimates = model(mixture)
    inner = slice(32, -32)
    assert_close(estimates[:, 0, inner], mixture[:, inner] / 2, rtol=1e-4, atol=1e-5)
    assert_close(estimates[:, 1], estimates[:, 0])


def test_too_many_filters_for_a_fourier_basis_are_refused():
    with pytest.raises(ValueError, match="at most 32 filters"):
        SepReformer(tiny_config(n_filters=34)).initialize_fourier()


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention", ["focused_linear", "softmax", pytest.param("linear", marks=pytest.mark.long)]
)
def test_a_miniature_overfits_one_mixture(attention):
    torch.manual_seed(0)
    sizes = {"n_filters": 64, "filter_length": 32, "hop_length": 16, "n_channels": 32, "layer_scale": 0.1}
    blocks = {"n_encoder_blocks": 1, "n_decoder_blocks": 1}
    model = SepReformer(tiny_config(**sizes, **blocks, masking=True, attention=attention))
    model.initialize_fourier()
    time = torch.arange(4000) / 8000
    sources = torch.stack(
        [torch.sin(2 * torch.pi * f * time) * (1 + torch.sin(g * time)) for f, g in ((310, 9), (1270, 23))]
    )
    mixture = sources.sum(0, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss = si_snr_loss(model(mixture), sources[None])
        loss.backward()
        optimizer.step()
    assert si_snr(mixture, sources[:1]).item() < 1
    assert -loss.item() > 20


@pytest.mark.parametrize("shape", [(8000,), (1, 1, 8000), (1, 0)])
def test_a_wrong_shape_is_explained(tiny_model, shape):
    with pytest.raises(ValueError, match=r"\(batch, time\)"):
        tiny_model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_sources": 1}, "n_sources must be a whole number from 2"),
        ({"n_channels": 10**9}, "n_channels must be a whole number from 1 to 2048"),
        ({"n_channels": "64"}, "n_channels must be a whole number"),
        ({"n_channels": 65}, "multiple of n_heads"),
        ({"local_kernel_size": 64}, "odd"),
        ({"hop_length": 32}, "must not exceed filter_length"),
        ({"dropout": 1.0}, "dropout"),
        ({"layer_scale": 0.0}, "layer_scale"),
        ({"gated": 1}, "gated must be true or false"),
        ({"attention": "quadratic"}, "attention must be one of focused_linear, linear, softmax"),
        ({"attention": ["softmax"]}, "attention must be one of"),
        ({"value_kernel_size": 4}, "odd"),
        ({"local_kernel_size": 0}, "local_kernel_size must be a whole number from 1"),
        ({"causal": 1}, "causal must be true or false"),
        ({"causal": True, "attention": "softmax"}, "a causal network has linear attention"),
        ({"causal": True, "normalize_variance": True}, "takes the mixture at the level it has"),
        ({"max_distance": 0}, "max_distance must be a whole number from 1"),
        ({"max_distance": 10**9}, "max_distance must be a whole number from 1 to 65536"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SepReformerConfig(**changes)
