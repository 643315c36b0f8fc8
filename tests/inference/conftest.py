import numpy as np
import pytest
from tests.networks import tiny

from flasepformer.inference import Separator
from flasepformer.models import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A real model, far too small to separate anything, with two talkers at 8 kHz."""
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny(layer_scale=0.5), folder, {"licence": "CC0-1.0", "description": "tiny"})
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
