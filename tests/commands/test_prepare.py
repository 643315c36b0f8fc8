import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from flasepformer.cli.prepare import prepare
from flasepformer.data import open_mixtures

app = typer.Typer()
app.command()(prepare)

NAMES = {"tr": "011a0101_1.1_40na010x_-1.1", "tt": "050a0501_1.4_422c0201_-1.4"}


@pytest.fixture
def wham(tmp_path):
    rng = np.random.default_rng(0)
    for split, name in NAMES.items():
        s1, s2, noise = 0.05 * rng.standard_normal((3, 800))
        for track, waveform in (("s1", s1), ("s2", s2), ("noise", noise), ("mix_both", s1 + s2 + noise)):
            folder = tmp_path / "wham/wav8k/min" / split / track
            folder.mkdir(parents=True)
            soundfile.write(folder / f"{name}.wav", waveform, 8000, "FLOAT")
    return tmp_path / "wham"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_partial_set_is_listed_split_by_split(wham):
    result = run("wham", wham, "--partial")
    assert result.exit_code == 0, result.output
    out = wham / "wham-8k-min-noisy"
    assert result.stdout.splitlines() == [str(out / "tr.csv"), str(out / "tt.csv")]
    assert "tt: 1 sound mixtures, 0.00 h" in result.stderr
    assert open_mixtures(out / "tt.csv", 8000).names == [NAMES["tt"]]


def test_a_set_that_lacks_mixtures_is_told_and_not_listed(wham):
    result = run("wham", wham)
    assert result.exit_code == 1
    assert "problem: missing split (1)" in result.stderr
    assert "tr/mix_both holds 1, published are 20,000" in result.stderr
    assert "nothing was written" in result.stderr
    assert not (wham / "wham-8k-min-noisy").exists()


def test_a_partial_set_leaves_out_what_is_damaged_and_says_so(wham, tmp_path):
    (wham / f"wav8k/min/tt/s1/{NAMES['tt']}.wav").write_bytes(b"")
    result = run("wham", wham, "--partial", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "problem: unreadable file (1)" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tr.csv"]


def test_many_findings_are_named_only_when_asked_for(wham):
    for k in range(8):
        (wham / f"wav8k/min/tt/s1/{k}.wav").write_bytes(b"")
    short = run("wham", wham, "--partial").stderr
    assert "problem: missing file (24)" in short
    assert "and 19 more; --verbose names all" in short
    assert run("wham", wham, "--partial", "--verbose").stderr.count("tt/noise/") == 8


def test_wrong_usage_and_a_folder_of_something_else(wham, tmp_path):
    assert run("wham", wham, "--sample-rate", 44100).exit_code == 2
    assert run("wham", wham, "--task", "dry").exit_code == 2
    assert run("timit", wham).exit_code == 2
    result = run("wsj0-2mix", tmp_path)
    assert result.exit_code == 1
    assert "is " + str(tmp_path) + " the folder of wsj0-2mix?" in result.stderr


def test_a_folder_that_cannot_be_written_is_an_error_of_the_environment(wham, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("wham", wham, "--partial", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 3
    assert "cannot write in" in result.stderr
    assert "Not a directory" in result.stderr
    assert "sound mixtures" not in result.stderr  # told before any work
