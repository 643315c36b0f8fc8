import json

import numpy as np
import pytest
import soundfile
from tests.networks import tiny

from flasepformer.models import save_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny(), path)
    return path


@pytest.fixture
def mark():
    """Return a function that gives the first row of a journal a score that no model gives."""

    def marked(journal):
        lines = journal.read_text().splitlines(keepends=True)
        row = json.loads(lines[1])
        row["scores"]["si_snr"] = [77.0, 77.0]
        lines[1] = json.dumps(row) + "\n"
        journal.write_text("".join(lines))

    return marked


@pytest.fixture
def mixtures(tmp_path):
    """A folder with four mixtures of noise, of 0.25 s at 8 kHz."""
    rng = np.random.default_rng(0)
    for name in ("mix_clean", "s1", "s2"):
        (tmp_path / "tt" / name).mkdir(parents=True)
    for name in "abcd":
        s1, s2 = 0.1 * rng.standard_normal((2, 2000))
        for folder, waveform in (("s1", s1), ("s2", s2), ("mix_clean", s1 + s2)):
            soundfile.write(tmp_path / "tt" / folder / f"{name}.wav", waveform, 8000, "FLOAT")
    return tmp_path / "tt"
