import csv
import dataclasses
import shutil

import numpy as np
import pytest
import soundfile
import torch

from flasepformer.data import DynamicMixingConfig, MixtureFiles, write_mixture_manifest
from flasepformer.models import SepReformerConfig, TFLocoformerConfig
from flasepformer.training import DataConfig, OptimizationConfig, Recipe, train

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


@pytest.fixture(autouse=True)
def one_thread():
    """Compute in one thread: networks so small get slower with two, much so when others use the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SPEAKERS = {"train": ("anna", "ben"), "valid": ("cleo", "dan")}


def voice(number, k, n_samples):
    """Return the `k`-th utterance of a synthetic talker: a buzzing tone that comes and goes."""
    time_axis = np.arange(n_samples) / 8000
    pitch = 90 * (number + 1) + 7 * k
    tone = sum(np.sin(2 * np.pi * pitch * n * time_axis) / n for n in range(1, 8))
    return 0.1 * tone * np.sin(2 * np.pi * (1 + 0.3 * k) * time_axis) ** 2


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """Return a folder of four talkers, two to train on and two to validate on."""
    root = tmp_path_factory.mktemp("speech")
    for i, (split, speaker) in enumerate((s, name) for s, names in SPEAKERS.items() for name in names):
        (root / split / speaker).mkdir(parents=True)
        for k in range(3):
            soundfile.write(root / split / speaker / f"{k}.wav", voice(i, k, 16_000), 8000)
    return root


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory):
    """Return a folder of manifests as `flasepformer prepare` writes them: five fixed mixtures of the same
    talkers to train on and three to validate on, of 0.4 to 0.6 s."""
    root = tmp_path_factory.mktemp("mixtures")
    write_set(root, "tr", SPEAKERS["train"], 5)
    write_set(root, "cv", SPEAKERS["valid"], 3, first_number=2)
    return root


def write_set(root, split, speakers, n_mixtures, first_number=0):
    """Write mixtures and their manifest."""
    files = []
    for k in range(n_mixtures):
        n_samples = 3200 + 400 * k
        sources = [voice(first_number + s, k, n_samples) for s in range(len(speakers))]
        waveforms = {"mix": sum(sources), **{f"s{s}": source for s, source in enumerate(sources, start=1)}}
        for track, waveform in waveforms.items():
            (root / split / track).mkdir(parents=True, exist_ok=True)
            soundfile.write(root / split / track / f"{k}.wav", waveform, 8000, "FLOAT")
        tracks = [root / split / track / f"{k}.wav" for track in waveforms]
        said = tuple(f"{speaker}-{k}" for speaker in speakers)
        files.append(
            MixtureFiles(f"{split}-{k}", tracks[0], tuple(tracks[1:]), speakers, said, n_samples, 8000)
        )
    write_mixture_manifest(files, root / f"{split}.csv")
    return files


@pytest.fixture
def recipe(speech):
    return Recipe(
        seed=5,
        model=SEPREFORMER,
        fourier_filters=True,
        data=DataConfig(speech=str(speech), n_valid_mixtures=2, valid_segment_seconds=0.5),
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
        changed(recipe, n_steps=4, batch_size=1, warmup_steps=1, decay_steps=0),
        model=TFLOCOFORMER,
        fourier_filters=False,
        data=dataclasses.replace(recipe.data, n_valid_mixtures=1, valid_segment_seconds=0.25),
        mixing=DynamicMixingConfig(segment_seconds=0.25),
        steps_per_epoch=1,
        log_every=1,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return a function that makes the folder of a run that has ended; each recipe is trained once."""
    runs = {}

    def finish(recipe, run):
        key = repr(recipe)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("finished") / "run"
            train(recipe, runs[key])
        shutil.copytree(runs[key], run)
        return run

    return finish


@pytest.fixture
def fixed_recipe(small_recipe, mixtures):
    """Return a recipe that trains and validates on fixed mixtures, the latter whole."""
    return with_data(
        small_recipe, train_on="mixtures", validate_on="mixtures", mixtures=str(mixtures), train_split="tr",
        valid_split="cv", n_valid_mixtures=0, valid_segment_seconds=0.0,
    )  # fmt: skip


def with_data(recipe, **changes):
    """Return a recipe with other data."""
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **changes))


def changed(recipe, **changes):
    """Return a recipe with another optimization."""
    return dataclasses.replace(recipe, optimization=dataclasses.replace(recipe.optimization, **changes))


TIMES = ("minutes", "audio_seconds_per_second", "steps_per_second")


def curve(folder):
    """Return the rows of a run's curve, without the time they took."""
    with (folder / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
