import numpy as np
import pytest
import soundfile
from tests.networks import tiny

from flasepformer.inference import Separator
from flasepformer.models import save_model

RATE = 8000


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A real model, far too small to separate anything, with two talkers at 8 kHz."""
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny(), folder, {"licence": "CC0-1.0"})
    return folder


@pytest.fixture(scope="session")
def separator():
    """The same model, ready to separate."""
    return Separator(tiny(), "cpu", memory="100M")


@pytest.fixture
def talks(tmp_path):
    """Recordings `0.wav` to `4.wav` of 0.1 to 0.5 s, all different."""
    folder = tmp_path / "talks"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(5):
        soundfile.write(
            folder / f"{index}.wav", 0.1 * generator.standard_normal(800 * (index + 1)), RATE, "PCM_16"
        )
    return folder
