import numpy as np
import pytest
import torch

from flasepformer.inference import Separator
from flasepformer.models import SepReformer, SepReformerConfig, save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A real model, far too small to separate anything, with two talkers at 8 kHz."""
    torch.manual_seed(0)
    config = SepReformerConfig(
        n_filters=16, n_channels=8, n_heads=2, n_stages=2, local_kernel_size=5, layer_scale=0.5
    )
    folder = tmp_path_factory.mktemp("model")
    save_model(SepReformer(config), folder, {"licence": "CC0-1.0", "description": "tiny"})
    return folder


@pytest.fixture(scope="session")
def separator(model_folder):
    return Separator.from_pretrained(model_folder, "cpu")


@pytest.fixture(scope="session")
def voices():
    """Return a maker of something as uneven as speech: (n_samples,), float32, peak about 0.3."""

    def make(n_samples, seed=0):
        rng = np.random.default_rng(seed)
        carrier = rng.standard_normal(n_samples)
        syllables = np.repeat(rng.random(n_samples // 800 + 1), 800)[:n_samples]
        return (0.1 * carrier * syllables).astype(np.float32)

    return make
