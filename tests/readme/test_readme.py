"""What the README shows works as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flasepformer.audio import write_audio
from flasepformer.cli import app
from flasepformer.models import list_models, published_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    speech = 0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    write_audio(Path("talk.wav"), speech, 8000)
    names = {"waveform": speech, "sample_rate": 8000, "mixture": torch.from_numpy(speech)[None, :800]}
    exec(block.replace("talk.m4a", "talk.wav"), names)
    assert names["tracks"].shape == (2, 4000)
    assert [path.name for path in names["paths"]] == ["talk_speaker1.wav", "talk_speaker2.wav"]
    assert names["estimates"].shape == (1, 2, 800)


def test_commands_and_options_that_are_shown_exist():
    shown = re.findall(r"flasepformer +(\w+)((?: +[^\n]*)?)", README)
    assert {command for command, _ in shown} >= {"separate", "models", "train", "evaluate"}
    for command, rest in shown:
        help_text = CliRunner().invoke(app, [command, "--help"]).stdout
        assert help_text, command
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert option in help_text, f"{command} {option}"


def test_table_of_models_gives_their_parameters():
    table = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \|", README, re.MULTILINE))
    assert {name: int(n.replace(",", "")) for name, n in table.items()} == {
        info.name: info.n_parameters for info in list_models() if not info.source
    }


def test_table_of_models_gives_their_multiply_adds():
    table = dict(re.findall(r"^\| `([\w-]+)` \| [\d,]+ \| ([\d.]+) G \|", README, re.MULTILINE))
    assert {name: float(n) for name, n in table.items()} == {
        info.name: info.giga_multiply_adds for info in list_models() if not info.source
    }


def test_table_of_published_weights_says_what_their_entries_say():
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|\d]+) \| ([\d.]+) \| (.+) \|$", README, re.MULTILINE)
    models = published_models().models
    assert [row[0] for row in rows] == list(models)
    for name, use, score, rest in rows:
        model = models[name]
        licence, size, factor, memory, _ = rest.split(" | ")
        assert use == model.use
        assert float(score) == model.scores[0].si_snri
        assert licence == f"{model.licence}; {'yes' if model.commercial_use else 'no'}"
        assert size == model.download_size
        assert (factor, memory) == (
            f"{model.measured.real_time_factor:.2f}",
            f"{model.measured.megabytes:.0f} MB",
        )
    for alias, (name, _) in published_models().aliases.items():
        assert re.search(rf"`{alias}` (stands )?for `{name}`", README)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", README))))
def test_make_targets_that_are_shown_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_linked_files_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
