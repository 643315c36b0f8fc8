"""The network that counts talkers learns from conversations that are made, and knows what was made."""

import numpy as np
import pytest
import torch
from tests.training.conftest import SEPREFORMER

from flasepformer.conversation.mels import N_MELS
from flasepformer.inference import Separator
from flasepformer.models import SepReformer
from flasepformer.training import counting


@pytest.fixture
def separator():
    torch.manual_seed(0)
    return Separator(SepReformer(SEPREFORMER), "cpu")


def test_a_source_speaks_from_its_loud_frames_to_35_db_below():
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    level_db = np.repeat([0.0, -30.0, -50.0, 0.0], 4000)  # half a second each
    found = counting.speaks(noise * np.float32(0.1) * np.float32(10) ** (level_db / 20).astype(np.float32))
    assert found[2:48].all()
    assert not found[54:72].any()
    assert found[78:].all()
    assert not counting.speaks(np.zeros(8000, np.float32)).any()


def test_recordings_are_monologues_and_conversations_with_their_sources(speech, tmp_path):
    made = list(counting.recordings(speech, "train", 6, None, seed=1))
    assert all(np.allclose(mixture, sources.sum(0), atol=1e-6) for mixture, sources in made)
    silent = [int((np.abs(sources).max(1) == 0).sum()) for _, sources in made]
    assert 0 < sum(silent) < len(made)
    again = list(counting.recordings(speech, "train", 6, None, seed=1))
    assert all((first[0] == second[0]).all() for first, second in zip(made, again, strict=True))


def test_an_example_has_a_count_for_every_frame(separator, speech):
    mixture, sources = next(counting.recordings(speech, "train", 1, None, seed=1))
    features, counted = counting.example(separator, mixture[:16_000], sources[:, :16_000])
    assert features.shape == (100, 3 * N_MELS)
    assert counted.tolist() == np.stack([counting.speaks(s[:16_000]) for s in sources]).sum(0).tolist()


@pytest.mark.slow
def test_a_moment_of_training_counts_what_a_single_band_says(monkeypatch):
    monkeypatch.setattr(counting, "BATCH", 4)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(4):
        counted = torch.randint(3, (20,), generator=generator).repeat_interleave(20)
        shown = torch.randn(400, 3 * N_MELS, generator=generator) * 0.1
        shown[:, :N_MELS] += counted[:, None] - 1.0
        examples.append((shown, counted))
    table = counting.confusion(counting.train_counting(examples, steps=40), examples)
    assert table.sum() == 1600
    assert np.trace(table) > 0.8 * table.sum()
