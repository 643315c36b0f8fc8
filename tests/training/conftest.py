import csv
import dataclasses

import numpy as np
import pytest
import soundfile

from flasepformer.data import DynamicMixingConfig
from flasepformer.models import SepReformerConfig, TFLocoformerConfig
from flasepformer.training import OptimizationConfig, Recipe, SpeechConfig

SEPREFORMER = SepReformerConfig(
    n_filters=64, filter_length=32, hop_length=16, n_channels=16, n_heads=2, n_stages=2, n_encoder_blocks=1,
    n_decoder_blocks=1, local_kernel_size=5, layer_scale=0.1, masking=True, dropout=0.1, max_distance=64,
)  # fmt: skip
TFLOCOFORMER = TFLocoformerConfig(
    n_blocks=1, n_channels=16, n_heads=2, n_groups=2, attention_channels=16, feed_forward_channels=16,
    feed_forward_kernel=4,
)  # fmt: skip
MINIATURES = {
    "fla-sepreformer": SEPREFORMER,
    "sepreformer": dataclasses.replace(SEPREFORMER, attention="softmax"),
    "fla-tflocoformer": TFLOCOFORMER,
    "tflocoformer": dataclasses.replace(TFLOCOFORMER, attention="softmax", repeat_input=False),
}
"""The smallest network of each of the four kinds that still learns."""


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """Return a folder of four synthetic talkers, two to train on and two to validate on: buzzing tones that
    come and go."""
    root = tmp_path_factory.mktemp("speech")
    time_axis = np.arange(16_000) / 8000
    for i, speaker in enumerate(("train/anna", "train/ben", "valid/cleo", "valid/dan")):
        (root / speaker).mkdir(parents=True)
        for k in range(3):
            pitch = 90 * (i + 1) + 7 * k
            voice = sum(np.sin(2 * np.pi * pitch * n * time_axis) / n for n in range(1, 8))
            voice *= np.sin(2 * np.pi * (1 + 0.3 * k) * time_axis) ** 2
            soundfile.write(root / speaker / f"{k}.wav", 0.1 * voice, 8000)
    return root


@pytest.fixture
def recipe(speech):
    return Recipe(
        seed=5,
        model=SEPREFORMER,
        fourier_filters=True,
        data=SpeechConfig(speech=str(speech), n_valid_mixtures=2, valid_segment_seconds=0.5),
        mixing=DynamicMixingConfig(segment_seconds=0.5),
        optimization=OptimizationConfig(
            n_steps=6, batch_size=2, learning_rate=3e-3, warmup_steps=2, decay_steps=2, average_decay=0.5
        ),
        validate_every=3,
        log_every=2,
        checkpoint_minutes=10.0,
    )


@pytest.fixture
def small_recipe(recipe):
    """Return a recipe that is over in a moment, of a network without dropout and batch normalisation."""
    return dataclasses.replace(
        changed(recipe, n_steps=4, batch_size=1),
        model=TFLOCOFORMER,
        fourier_filters=False,
        data=dataclasses.replace(recipe.data, n_valid_mixtures=1, valid_segment_seconds=0.25),
        mixing=DynamicMixingConfig(segment_seconds=0.25),
        steps_per_epoch=1,
        log_every=1,
    )


def changed(recipe, **changes):
    """Return a recipe with another optimization."""
    return dataclasses.replace(recipe, optimization=dataclasses.replace(recipe.optimization, **changes))


def curve(folder):
    """Return the rows of a run's curve, without the time they took."""
    with (folder / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "minutes"} for row in rows]
