import csv
import json
import sys

import pytest
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.evaluation import EvaluationRow, write_scores
from flasepformer.installing import how_to_install


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


def store(folder, scores, **facts):
    """Make a folder of results as `evaluate` does, of a table and what is noted of the set."""
    folder.mkdir()
    (folder / "scores.csv").write_bytes(scores.read_bytes())
    (folder / "summary.json").write_text(json.dumps({"model": {"name": "default"}, "set": facts}))
    return folder


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"mixture": "mix_both_reverb"}, "mixtures: mix_clean in one and mix_both_reverb in the other"),
        ({"targets": ["s1", "s2"]}, "targets: s1_anechoic, s2_anechoic in one and s1, s2 in the other"),
        ({"sample_rate": 16000}, "sample rate in Hz: 8000 in one and 16000 in the other"),
    ],
)
def test_what_the_summaries_say_of_the_sets_must_agree(facts, words, tables, tmp_path):
    first = {"mixture": "mix_clean", "targets": ["s1_anechoic", "s2_anechoic"], "sample_rate": 8000}
    one, other = (
        store(tmp_path / "one", tables[0], **first),
        store(tmp_path / "two", tables[1], **first | facts),
    )
    page = tmp_path / "page.html"
    report = ["report", str(one), str(other), "--out", str(page), "--examples", "0"]
    for result in (run(one, other, "--out", tmp_path / "out"), CliRunner().invoke(app, report)):
        assert (result.exit_code, words in " ".join(result.stderr.split())) == (2, True), result.stderr
    assert not page.exists()
    assert not (tmp_path / "out").exists()
    assert run(one, tables[1]).exit_code == 0  # a table alone says nothing of it
    assert run(one, store(tmp_path / "same", tables[1], **first)).exit_code == 0


def test_mixtures_of_another_si_snr_are_other_mixtures(tables, tmp_path):
    """A table alone: with noise, or against other targets, the mixtures themselves have other scores."""
    lines = tables[1].read_text().splitlines()
    column = lines[0].split(",").index("mixture SI-SNR_2")
    for value, code in (("0.008", 0), ("n/a", 0), ("-1.500", 2)):
        cells = lines[4].split(",")
        cells[column] = value
        other = tmp_path / "noisy.csv"
        other.write_text("\n".join([*lines[:4], ",".join(cells), *lines[5:]]) + "\n")
        result = run(tables[0], other)
        assert result.exit_code == code, (value, result.output)
    message = " ".join(result.stderr.split())
    assert "talker 2 of 'm3' has an SI-SNR of 0.000 dB in one and -1.500 dB in the other" in message


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
    assert (result.exit_code, how_to_install("evaluation") in result.stderr) == (3, True)
