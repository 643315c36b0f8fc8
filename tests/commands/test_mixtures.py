import json

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.data import read_mixture_list


@pytest.fixture
def speech(tmp_path):
    for i, speaker in enumerate("abc"):
        (tmp_path / "speech" / speaker).mkdir(parents=True)
        voice = 0.1 * np.random.default_rng(i).standard_normal(4000)
        soundfile.write(tmp_path / "speech" / speaker / "0.wav", voice, 8000)
    return tmp_path / "speech"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_drawn_list_can_be_evaluated(speech, tmp_path):
    out = tmp_path / "lists" / "test.csv"
    result = run("mixtures", speech, "--count", 4, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    specs = read_mixture_list(out)
    assert len(specs) == 4
    assert all(len(set(spec.speakers)) == 2 for spec in specs)
    scored = run(
        "evaluate",
        "--mixtures",
        out,
        "--model",
        "fla-sepreformer-t",
        "--limit",
        1,
        "--no-sdr",
        "--out",
        tmp_path,
        "--json",
    )
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)


def test_the_seed_decides_the_list(speech, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("mixtures", speech, "--count", 6, "--seed", seed, "--out", tmp_path / name).exit_code == 0
    a, b, c = ((tmp_path / name).read_text() for name in "abc")
    assert a == b != c


def test_a_list_is_not_replaced_unasked(speech, tmp_path):
    out = tmp_path / "list.csv"
    out.write_text("mine")
    assert run("mixtures", speech, "--out", out).exit_code == 2
    assert out.read_text() == "mine"
    assert run("mixtures", speech, "--out", out, "--overwrite").exit_code == 0


def test_too_few_talkers_are_explained(speech, tmp_path):
    result = run("mixtures", speech, "--talkers", 4, "--out", tmp_path / "list.csv")
    assert result.exit_code == 2
    assert "got 3" in result.stderr
