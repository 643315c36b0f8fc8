import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.conftest import tiny_config
from torch.testing import assert_close

from flasepformer.metrics import si_snr
from flasepformer.models import SepReformer, SepReformerConfig
from flasepformer.models.registry import build_model, registered_info, registered_names
from flasepformer.training.losses import si_snr_loss

PAPER_PARAMETERS = {
    "fla-sepreformer-t": 3_680_544,
    "fla-sepreformer-b": 14_085_952,
    "fla-sepreformer-l": 55_098_240,
}


@pytest.mark.parametrize("name", registered_names())
def test_registered_model_has_the_parameters_of_the_paper(name):
    assert registered_info(name).n_parameters == PAPER_PARAMETERS[name]


@pytest.mark.parametrize("name", registered_names())
def test_registered_config_in_miniature_trains_every_parameter(name):
    with torch.device("meta"):
        config = build_model(name).config
    torch.manual_seed(0)
    small = {"n_filters": 16, "n_channels": 8, "n_heads": 2, "local_kernel_size": 5, "layer_scale": 0.1}
    model = SepReformer(SepReformerConfig(**{**vars(config), **small}))
    estimates, auxiliaries = model.forward_with_auxiliary(torch.randn(2, 900))
    assert len(auxiliaries) == config.n_stages
    sum(estimate.square().sum() for estimate in [estimates, *auxiliaries]).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


@settings(max_examples=25, deadline=None)
@given(n_samples=st.integers(1, 700), n_sources=st.integers(2, 4), pad_end=st.booleans())
def test_every_length_and_number_of_talkers_comes_back(n_samples, n_sources, pad_end):
    model = SepReformer(tiny_config(n_sources=n_sources, pad_end=pad_end)).eval()
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


def test_a_batch_equals_its_mixtures_one_by_one(tiny_model):
    mixtures = torch.randn(3, 800)
    with torch.inference_mode():
        assert_close(
            tiny_model(mixtures), torch.cat([tiny_model(m[None]) for m in mixtures]), rtol=1e-4, atol=1e-5
        )


def test_normalized_variance_makes_the_estimates_follow_the_level():
    model = SepReformer(tiny_config(normalize_variance=True)).eval()
    mixture = torch.randn(1, 800)
    with torch.inference_mode():
        assert_close(model(1024 * mixture), 1024 * model(mixture))
        assert model(torch.zeros(1, 800)).abs().max() == 0


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


def test_a_miniature_overfits_one_mixture():
    torch.manual_seed(0)
    sizes = {"n_filters": 64, "filter_length": 32, "hop_length": 16, "n_channels": 32, "layer_scale": 0.1}
    model = SepReformer(tiny_config(**sizes, masking=True, n_encoder_blocks=1, n_decoder_blocks=1))
    model.initialize_fourier()
    time = torch.arange(4000) / 8000
    sources = torch.stack(
        [torch.sin(2 * torch.pi * f * time) * (1 + torch.sin(g * time)) for f, g in ((310, 9), (1270, 23))]
    )
    mixture = sources.sum(0, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = si_snr_loss(model(mixture), sources[None])
        loss.backward()
        optimizer.step()
    assert si_snr(mixture, sources[:1]).item() < 1
    assert -loss.item() > 10


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
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SepReformerConfig(**changes)
