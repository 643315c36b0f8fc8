import csv
import json
import sys

import pytest
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.evaluation import EvaluationRow, write_scores


def table(path, improvements):
    """Scores of one-second mixtures "m0", "m1", ... of two talkers with the same score."""
    rows = [
        EvaluationRow(
            name=f"m{k}",
            seconds=1.0,
            compute_seconds=0.1,
            scores={
                "si_snr": (value, value),
                "si_snr_improvement": (value, value),
                "mixture_si_snr": (0.0, 0.0),
            },
        )
        for k, value in enumerate(improvements)
    ]
    write_scores(path, rows)
    return path


def run(*options):
    return CliRunner().invoke(app, ["compare", *map(str, options)])


@pytest.fixture
def tables(tmp_path):
    """Twelve mixtures: the second is 1 dB better in nine of them, 2 dB worse in three."""
    first = table(tmp_path / "first.csv", [10.0] * 12)
    return first, table(tmp_path / "second.csv", [11.0] * 9 + [8.0] * 3)


def test_the_paired_difference_its_interval_and_the_share_that_got_better(tables):
    content = json.loads(run(*tables, "--json").stdout)
    difference = content["si_snr_improvement"]
    assert difference["mean"] == pytest.approx((9 * 1 - 3 * 2) / 12)
    low, high = difference["interval"]
    assert (low, high) == pytest.approx((-0.5, 1.0), abs=0.26)  # a standard error of 0.375 dB, cut at +1
    assert low < difference["mean"] < high
    assert difference["share_better"] == 0.75
    assert list(difference["largest"])[:4] == ["m9", "m10", "m11", "m0"]
    assert len(difference["largest"]) == 10
    assert "mixture_si_snr" not in content


def test_the_table_is_for_people(tables):
    lines = [line.split() for line in run(*tables).stdout.splitlines()]
    assert lines[2][:3] == ["SI-SNRi", "12", "+0.25"]
    assert lines[2][-1] == "75.0%"
    assert lines[5] == ["m9", "-2.00"]
    assert lines[-1] == ["first:", "first;", "second:", "second"]


def test_two_modes_of_one_model_are_told_apart(tables, tmp_path):
    folders = []
    for path, separation in zip(
        tables, ({"mode": "whole"}, {"mode": "chunks", "chunk_seconds": 30.0}), strict=True
    ):
        folders.append(tmp_path / path.stem)
        folders[-1].mkdir()
        (folders[-1] / "scores.csv").write_bytes(path.read_bytes())
        facts = {"model": {"name": "default"}, "separation": separation}
        (folders[-1] / "summary.json").write_text(json.dumps(facts))
    result = run(*folders, "--out", tmp_path / "out")
    assert "first: default, whole; second: default, chunks of 30 s" in result.stdout
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert content["separation"]["first"] == {"mode": "whole"}
    assert content["separation"]["second"] == {"mode": "chunks", "chunk_seconds": 30.0}


def test_a_folder_takes_the_comparison_with_its_picture(tables, tmp_path):
    out = tmp_path / "out"
    assert run(*tables, "--out", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.json",
        "differences.csv",
        "scatter.png",
    ]
    with (out / "differences.csv").open() as file:
        assert [float(row["SI-SNRi"]) for row in csv.DictReader(file)] == [1.0] * 9 + [-2.0] * 3
    assert (out / "scatter.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "comparison.json").read_text())
    assert (content["first"], content["second"]) == ("first", "second")
    assert run(*tables, "--out", out).exit_code == 2
    assert run(*tables, "--out", out, "--overwrite").exit_code == 0


def test_different_sets_are_refused_in_a_sentence(tables, tmp_path):
    fewer = table(tmp_path / "fewer.csv", [10.0] * 7)
    result = run(tables[0], fewer)
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "different sets" in message
    assert "12 and 7 mixtures" in message
    longer = tmp_path / "longer.csv"
    longer.write_text(tables[1].read_text().replace("m3,1.000", "m3,2.500"))
    result = run(tables[0], longer)
    assert (result.exit_code, "2.500 s" in result.stderr) == (2, True)


def test_mixtures_that_have_no_score_in_one_are_left_out(tables, tmp_path):
    second = tmp_path / "gaps.csv"
    lines = tables[1].read_text().splitlines()
    lines[1] = "m0,n/a,n/a" + ",n/a" * (lines[0].count(",") - 3) + ",broken"
    second.write_text("\n".join(lines) + "\n")
    difference = json.loads(run(tables[0], second, "--json").stdout)["si_snr_improvement"]
    assert difference["n_mixtures"] == 11
    assert difference["mean"] == pytest.approx((8 * 1 - 3 * 2) / 11)


def test_what_is_no_table_and_no_place_to_write(tables, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("path,speaker\na.wav,a\n")
    assert run(tables[0], tmp_path / "list.csv").exit_code == 2
    assert run(tables[0], tmp_path / "nowhere.csv").exit_code == 2
    (tmp_path / "file").write_text("in the way")
    result = run(*tables, "--out", tmp_path / "file")
    assert (result.exit_code, "it is a file" in result.stderr) == (3, True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(*tables, "--out", tmp_path / "new/out")
    assert not (tmp_path / "new").exists()
    assert (result.exit_code, 'pip install "flasepformer[demo]"' in result.stderr) == (3, True)
