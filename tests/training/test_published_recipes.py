"""The recipes of the published results against facts that stand here a second time."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
from tests.data.test_published_sets import MAKERS
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.data import PUBLISHED_SETS, DynamicMixing, FixedMixtures, check_published_set
from flasepformer.models.registry import registered_names
from flasepformer.training import load_recipe
from flasepformer.training.examples import open_examples

RECIPES = Path(__file__).parents[2] / "recipes"

# name: family, attention, channels, stages or pairs of blocks, hop in samples, dropout, learning rate
SIZES = {
    "fla-sepreformer-t": ("sepreformer", "focused_linear", 64, 4, 4, 0.05, 1e-3),
    "fla-sepreformer-b": ("sepreformer", "focused_linear", 128, 4, 4, 0.05, 1e-3),
    "fla-sepreformer-l": ("sepreformer", "focused_linear", 256, 4, 4, 0.1, 2e-4),
    "sepreformer-t": ("sepreformer", "softmax", 64, 4, 4, 0.05, 1e-3),
    "sepreformer-s": ("sepreformer", "softmax", 64, 5, 2, 0.05, 1e-3),
    "sepreformer-b": ("sepreformer", "softmax", 128, 4, 4, 0.05, 1e-3),
    "sepreformer-m": ("sepreformer", "softmax", 128, 5, 2, 0.05, 1e-3),
    "sepreformer-l": ("sepreformer", "softmax", 256, 4, 4, 0.1, 2e-4),
    "fla-tflocoformer-s": ("tflocoformer", "focused_linear", 96, 4, 64, 0.0, 1e-3),
    "fla-tflocoformer-m": ("tflocoformer", "focused_linear", 128, 6, 64, 0.0, 1e-3),
    "fla-tflocoformer-l": ("tflocoformer", "focused_linear", 128, 9, 64, 0.0, 1e-3),
    "tflocoformer-s": ("tflocoformer", "softmax", 96, 4, 64, 0.0, 1e-3),
    "tflocoformer-m": ("tflocoformer", "softmax", 128, 6, 64, 0.0, 1e-3),
    "tflocoformer-l": ("tflocoformer", "softmax", 128, 9, 64, 0.0, 1e-3),
}

# of the original of each family
SETTINGS = {
    "sepreformer": {
        "batch_size": 2, "weight_decay": 0.01, "clip_norm": 5.0, "warmup_steps": 10_000,
        "plateau_factor": 0.8, "plateau_patience": 2, "plateau_start_epoch": 50, "auxiliary_weight": 0.4,
        "auxiliary_decay_factor": 0.8, "auxiliary_decay_start_epoch": 100, "auxiliary_decay_epochs": 5,
        "average_best": 1, "early_stop_epochs": 0,
    },
    "tflocoformer": {
        "batch_size": 4, "weight_decay": 0.01, "clip_norm": 5.0, "warmup_steps": 4000, "plateau_factor": 0.5,
        "plateau_patience": 3, "plateau_start_epoch": 0, "average_best": 5, "early_stop_epochs": 10,
    },
}  # fmt: skip
EPOCHS = {"sepreformer": 200, "tflocoformer": 150}
MIXTURES_PER_EPOCH = {"tr": 20_000, "train-100": 13_900, "train-360": 50_800}

# folder of further recipes: set, and the sizes that are trained on it
SETS = {
    "wham": ("wham", ["sepreformer-t", "sepreformer-b", "sepreformer-l"]),
    "whamr": ("whamr", ["sepreformer-l", "tflocoformer-m"]),
    "libri2mix": ("libri2mix", ["sepreformer-t", "sepreformer-b", "tflocoformer-m"]),
}
ROWS = {name: "wsj0-2mix" for name in SIZES} | {"wsj0-2mix-dynamic/fla-tflocoformer-l": "wsj0-2mix"}
ROWS |= {
    f"{folder}/{prefix}{size}": published
    for folder, (published, sizes) in SETS.items()
    for size in sizes
    for prefix in ("", "fla-")
}
DYNAMIC = {name for name in ROWS if name.endswith("sepreformer-l")} | {"wsj0-2mix-dynamic/fla-tflocoformer-l"}


@functools.cache
def recipe_of(name, *overrides):
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def test_every_published_row_has_a_recipe():
    assert set(SIZES) == set(registered_names())
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= set(SIZES)
    for folder in {Path(name).parent for name in ROWS} - {Path()}:
        found = {f"{folder}/{path.stem}" for path in (RECIPES / folder).glob("*.yaml")}
        assert found == {name for name in ROWS if Path(name).parent == folder}


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_trains_its_size_with_the_settings_of_the_original(name):
    recipe = recipe_of(name)
    model, optimization = recipe.model, recipe.optimization
    depth = model.n_stages if recipe.family == "sepreformer" else model.n_blocks
    found = (recipe.family, model.attention, model.n_channels, depth, model.hop_length, model.dropout)
    assert (*found, optimization.learning_rate) == SIZES[Path(name).name]
    per_epoch = MIXTURES_PER_EPOCH[recipe.data.train_split]
    settings = dict(SETTINGS[recipe.family])
    if recipe.family == "sepreformer":
        settings["warmup_steps"] = per_epoch // 2  # the first epoch
    assert {key: getattr(optimization, key) for key in settings} == settings
    assert recipe.steps_per_epoch * optimization.batch_size == per_epoch
    assert optimization.n_steps == EPOCHS[recipe.family] * recipe.steps_per_epoch
    assert recipe.mixing.segment_seconds == 4.0
    # nothing but the original's schedule, and its own weights
    assert (optimization.decay_steps, optimization.average_decay, optimization.optimizer) == (0, 0.0, "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_names_the_manifests_of_its_set_and_how_to_come_by_them(name):
    data, published = recipe_of(name).data, PUBLISHED_SETS[ROWS[name]]
    task = next(iter(published.tasks))
    content = (RECIPES / f"{name}.yaml").read_text()
    (line,) = re.findall(r"^#     flasepformer prepare (\S+) (\S+)    # writes (\S+)$", content, re.MULTILINE)
    assert line == (ROWS[name], line[1], f"{line[1]}/{ROWS[name]}-8k-min-{task}")
    assert f"#     flasepformer train recipes/{name}.yaml --out runs/{name}\n" in content
    test_split = list(published.n_mixtures)[-1]
    assert (
        f"#     flasepformer evaluate runs/{name}/best {line[2]}/{test_split}.csv --out results/" in content
    )

    assert data.train_on == ("speech" if name in DYNAMIC else "mixtures")
    assert (data.validate_on, data.mixtures, data.speech) == (
        "mixtures", line[2], line[2] if name in DYNAMIC else ""
    )  # fmt: skip
    splits = {data.train_split, data.valid_split}
    assert splits <= set(published.n_mixtures) - {test_split}
    assert published.n_mixtures[data.train_split] == MIXTURES_PER_EPOCH[data.train_split]
    assert data.allow_shared_speakers == (splits <= published.shared_speakers)
    assert (data.n_valid_mixtures, data.valid_segment_seconds) == (0, 0.0)
    mixing = recipe_of(name).mixing
    has_noise, rooms = published.tasks[task].noise != "", "simulated" if ROWS[name] == "whamr" else ""
    expected = (has_noise, rooms) if name in DYNAMIC else (False, "")  # fixed mixtures have theirs
    assert (bool(mixing.noise), mixing.rooms) == expected
    assert all(folder == f"{line[1]}/wav8k/min/{data.train_split}/noise" for folder in mixing.noise)


OPENED = (
    "fla-sepreformer-t", "sepreformer-l", "wham/fla-sepreformer-b", "wham/sepreformer-l",
    "whamr/sepreformer-l", "whamr/tflocoformer-m", "libri2mix/sepreformer-t",
)  # fmt: skip
"""One of every set and every way to train on it."""


@pytest.mark.parametrize("name", OPENED)
def test_a_recipe_opens_what_prepare_wrote_of_its_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(name)
    if recipe.mixing.rooms:
        fewer = dataclasses.replace(recipe.mixing, n_simulated_rooms=1)
        recipe = dataclasses.replace(recipe, mixing=fewer)
    folder = Path(recipe.data.mixtures)
    MAKERS[ROWS[name]](folder.parent.parent if ROWS[name] == "libri2mix" else folder.parent)
    report = check_published_set(ROWS[name], folder.parent, partial=True, n_threads=1)
    assert report.problems == ()
    report.write(folder)
    train_on, validate_on = open_examples(recipe, tmp_path / "cache")
    assert [type(train_on), type(validate_on)] == [
        DynamicMixing if name in DYNAMIC else FixedMixtures, FixedMixtures
    ]  # fmt: skip
    mixture, sources = train_on.example(0)
    assert (mixture.shape, sources.shape) == ((32_000,), (2, 32_000))
    is_sum = ROWS[name] in ("wsj0-2mix", "libri2mix")  # neither noise nor a room
    assert (float((mixture - sources.sum(0)).abs().max()) < 1e-4) == is_sum
    assert validate_on.example(0)[1].shape == (2, 1600)


@pytest.mark.long
def test_a_recipe_trains_from_the_command_line_as_its_comment_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MAKERS["wsj0-2mix"](tmp_path / "data/wsj0-mix")
    content = (RECIPES / "tflocoformer-s.yaml").read_text()
    prepare, train = (
        line.split("#")[1].split()[1:]
        for line in re.findall(r"^#     (?:.*prepare|.*train).*", content, re.M)
    )
    assert CliRunner().invoke(app, [*prepare, "--partial"]).exit_code == 0
    small = ["n_steps=1", "batch_size=1", "warmup_steps=1"]
    settings = [f"optimization.{item}" for item in small] + ["data.n_workers=0", "mixing.segment_seconds=0.1"]
    small = ["n_blocks=1", "n_channels=8", "n_groups=2", "attention_channels=8", "feed_forward_channels=8"]
    settings += [f"model.{item}" for item in small]
    train[1] = str(RECIPES.parent / train[1])
    result = CliRunner().invoke(app, [*train, *(part for item in settings for part in ("--set", item))])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith("runs/tflocoformer-s/best")
    assert "2 speakers are in both 'tr' and 'cv', as the recipe allows" in result.stderr


@pytest.mark.parametrize("size", ["m", "l"])
def test_softmax_tflocoformer_has_the_feed_forward_networks_of_its_original(size):
    model = recipe_of(f"tflocoformer-{size}").model
    assert (model.feed_forward_channels, model.feed_forward_kernel, model.n_fft) == (384, 4, 128)


@pytest.mark.parametrize("prefix", ["", "fla-"])
def test_tflocoformer_has_longer_frames_for_whamr(prefix):
    model = recipe_of(f"whamr/{prefix}tflocoformer-m").model
    assert (model.feed_forward_channels, model.feed_forward_kernel, model.n_fft) == (192, 8, 256)


@pytest.mark.parametrize("name", [name for name in ROWS if "/" in name])
def test_a_further_recipe_changes_the_data_and_what_the_set_needs(name):
    recipe, base = recipe_of(name), recipe_of(Path(name).name)
    changed = {
        field.name
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != getattr(base, field.name)
    }
    assert changed - {"description", "data"} <= {"mixing", "model", "steps_per_epoch", "optimization"}
    assert "data" in changed
    assert ("model" in changed) == (name in ("whamr/tflocoformer-m", "whamr/fla-tflocoformer-m"))
