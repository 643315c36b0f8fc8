import csv
import json
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from tests.networks import tiny
from tests.processes import interrupt, start_command
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.data import MixtureFiles, MixtureFolder, open_mixtures, write_mixture_manifest
from flasepformer.evaluation import evaluate as score
from flasepformer.installing import how_to_install
from flasepformer.models import load_model, save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny(), path)
    return path


@pytest.fixture
def mixtures(tmp_path):
    """A folder with two mixtures of 0.5 s at 8 kHz."""
    rng = np.random.default_rng(0)
    for name in ("mix_clean", "s1", "s2"):
        (tmp_path / "tt" / name).mkdir(parents=True)
    for name in ("a", "b"):
        s1, s2 = 0.1 * rng.standard_normal((2, 4000))
        for folder, waveform in (("s1", s1), ("s2", s2), ("mix_clean", s1 + s2)):
            soundfile.write(tmp_path / "tt" / folder / f"{name}.wav", waveform, 8000, "FLOAT")
    return tmp_path / "tt"


def run(*options):
    return CliRunner().invoke(app, ["evaluate", "--device", "cpu", *map(str, options)])


def test_a_row_for_each_mixture_and_the_summary(checkpoint, mixtures, tmp_path):
    result = run("--mixtures", mixtures, "--model", checkpoint, "--out", tmp_path / "results")
    assert result.exit_code == 0, result.output
    with (tmp_path / "results/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "b"]
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    improvements = [float(row["SI-SNRi"]) for row in rows]
    assert summary["mean"]["si_snr_improvement"] == pytest.approx(sum(improvements) / 2, abs=1e-3)
    assert summary["mean"]["sdr"] == pytest.approx(sum(float(row["SDR"]) for row in rows) / 2, abs=1e-3)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["dB", "MEAN", "95", "%", "MEDIAN", "MIXTURE", "N/A"]
    assert [line[0] for line in lines[1:5]] == ["SI-SNR", "SI-SNRi", "SDR", "SDRi"]
    assert float(lines[2][1]) == pytest.approx(summary["mean"]["si_snr_improvement"], abs=0.01)
    low, high = summary["interval"]["si_snr_improvement"]
    assert (low, high) == pytest.approx((min(improvements), max(improvements)), abs=1e-3)  # of two
    assert lines[7][:2] == ["all", "2"]
    assert lines[-1] == [str(tmp_path / "results/scores.csv")]


def test_a_stream_is_scored_with_its_delay_taken_away_and_its_blocks_are_timed(
    checkpoint, mixtures, tmp_path
):
    words = (checkpoint, mixtures, "--out", tmp_path / "results", "--no-sdr")
    result = run(*words, "--stream", "--block", 0.05, "--delay", 0.2)
    assert result.exit_code == 0, result.output
    assert "stream: delay 200 ms; time per block p50" in result.stdout
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["separation"] == {"mode": "stream", "block_seconds": 0.05, "delay": 0.2}
    live = summary["live"]
    assert (live["n_blocks"], live["delay_seconds"]) == (2 * 10, 0.2)
    assert 0 < live["p50_seconds"] <= live["p99_seconds"] <= live["longest_seconds"]
    assert live["worst_real_time_factor"] >= live["longest_seconds"] / 0.05
    assert f"real-time factor of the worst block {live['worst_real_time_factor']:.2f}; " in result.stdout
    assert run(*words, "--overwrite", "--stream", "--mode", "whole").exit_code == 2
    assert run(*words, "--overwrite", "--block", 0.05).exit_code == 2


@pytest.mark.slow
def test_the_summary_says_what_was_evaluated_with_what(checkpoint, mixtures, tmp_path, monkeypatch):
    words = (checkpoint, mixtures, "--out", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["flasepformer", "evaluate", *map(str, words)])
    assert run(*words).exit_code == 0
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["model"]["name"] == str(checkpoint)
    assert len(summary["model"]["weights_sha256"]) == 64
    assert summary["set"]["split"] == "tt"
    assert summary["set"]["mixture"] == "mix_clean"
    assert summary["set"]["targets"] == ["s1", "s2"]
    assert summary["set"]["n_mixtures"] == 2
    assert summary["command"].startswith(f"flasepformer evaluate {checkpoint}")
    assert summary["versions"]["torch"] == torch.__version__
    assert "torchmetrics" in summary["versions"]


@pytest.mark.slow
def test_a_mode_is_that_of_separate_and_the_summary_says_which(checkpoint, tmp_path):
    """Three seconds in chunks of two, with one in common: other scores than those of the whole."""
    rng, sets = np.random.default_rng(0), tmp_path / "long"
    sources = 0.1 * rng.standard_normal((2, 24000))
    for name, waveform in (("mix", sources.sum(0)), ("s1", sources[0]), ("s2", sources[1])):
        (sets / name).mkdir(parents=True)
        soundfile.write(sets / name / "a.wav", waveform, 8000, "FLOAT")
    short = ("--chunk-seconds", 2, "--overlap-seconds", 1)
    scores = {}
    for options in ((), ("--mode", "whole"), ("--mode", "chunks", *short), ("--mode", "auto", *short)):
        out = tmp_path / "-".join(map(str, options)) / "results"
        result = run(checkpoint, sets, "--no-sdr", "--memory", "4G", "--out", out, *options)
        if not options:
            assert (result.exit_code, "need a --mode" in result.stderr) == (2, True)
            result = run(checkpoint, sets, "--no-sdr", "--out", out)
        assert result.exit_code == 0, result.output
        scores[options[1:2]] = json.loads((out / "summary.json").read_text())["mean"]["si_snr"]
    assert json.loads((out / "summary.json").read_text())["separation"] == {
        "mode": "whole", "memory": "4G",
    }  # fmt: skip
    assert "mode: whole" in result.stdout  # decided by the model, whatever memory is free: issue 16
    assert scores["whole",] == scores["auto",] != scores["chunks",]
    assert scores["whole",] == pytest.approx(scores[()], abs=1)
    for name, value, said in (("passes", 2, "2 passes"), ("also", "default-fast", "also default-fast")):
        out = tmp_path / name
        result = run(
            checkpoint, sets, "--no-sdr", "--mode", "whole", f"--{name}", value, "--limit", 1, "--out", out
        )
        assert f"mode: whole, {said}" in result.stdout, result.output
        found = json.loads((out / "summary.json").read_text())
        assert found["separation"][name] == value
        assert found["mean"]["si_snr"] != scores["whole",]
    assert "need a --mode" in run(checkpoint, sets, "--also", "default-fast", "--out", out / "other").stderr
    described = json.loads(run(checkpoint, sets, "--no-sdr", "--json", "--out", tmp_path / "json").stdout)
    assert described["separation"] == {"mode": "network"}


def test_a_warning_names_its_mixture(checkpoint, tmp_path):
    """Nobody speaks for longer than a chunk, so that nothing tells which track goes on afterwards."""
    voices, sources = 0.1 * np.random.default_rng(0).standard_normal((2, 4000)), np.zeros((2, 24000))
    sources[:, :4000], sources[:, -4000:] = voices, -voices  # no offset, which would be no silence
    for name, waveform in (("mix", sources.sum(0)), ("s1", sources[0]), ("s2", sources[1])):
        (tmp_path / "long" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "long" / name / "a.wav", waveform, 8000, "FLOAT")
    options = ("--mode", "chunks", "--chunk-seconds", 1, "--overlap-seconds", 0.1)
    result = run(checkpoint, tmp_path / "long", "--no-sdr", "--out", tmp_path / "results", *options)
    assert result.exit_code == 0
    assert "warning: a: two talkers may have changed tracks at " in result.stderr
    assert "mode: chunks of 1 s" in result.stdout


@pytest.mark.slow
def test_more_metrics_by_name(checkpoint, mixtures, tmp_path):
    options = ("--metrics", "sir, confusion", "--no-sdr", "--json")
    result = run(checkpoint, mixtures, "--out", tmp_path / "results", *options)
    assert {"sir", "mixture_sir", "confusion"} <= set(json.loads(result.stdout)["mean"])
    unknown = run(checkpoint, mixtures, "--out", tmp_path / "other", "--metrics", "wer")
    assert (unknown.exit_code, "no metric is called wer" in unknown.stderr) == (2, True)


def test_an_evaluation_that_was_cut_short_goes_on(checkpoint, mixtures, tmp_path):
    """A journal with the first row, as a kill leaves it: that row stays as it is."""
    options = (checkpoint, mixtures, "--no-sdr", "--out", tmp_path / "results")
    journal = tmp_path / "results/scores.partial.jsonl"
    model, mixture_set = load_model(checkpoint), MixtureFolder(mixtures)
    journal.parent.mkdir()
    score(model, mixture_set, metrics=(), limit=1, journal=journal)
    other = run(*options, "--metrics", "sir")
    assert (other.exit_code, "unfinished evaluation" in other.stderr) == (2, True)
    identity, row = map(json.loads, journal.read_text().splitlines())
    row["seconds"] = 77.0
    journal.write_text(json.dumps(identity) + "\n" + json.dumps(row) + "\n")
    assert run(*options).exit_code == 0
    assert not journal.exists()
    with (tmp_path / "results/scores.csv").open() as file:
        assert [float(line["seconds"]) for line in csv.DictReader(file)] == [77.0, 0.5]


def test_an_evaluation_that_was_cut_short_does_not_go_on_with_another_manifest(
    checkpoint, mixtures, tmp_path
):
    """Clean and noisy mixtures of a set have the same names, and so have reverberant and dry targets."""
    manifests = {}
    for mix_dir in ("mix_clean", "mix_both"):
        if mix_dir != "mix_clean":
            shutil.copytree(mixtures / "mix_clean", mixtures / mix_dir)
        files = [
            MixtureFiles(
                name=name,
                mixture=mixtures / mix_dir / f"{name}.wav",
                sources=(mixtures / "s1" / f"{name}.wav", mixtures / "s2" / f"{name}.wav"),
                speakers=("x", "y"),
                utterances=("1", "2"),
                n_samples=4000,
                sample_rate=8000,
            )
            for name in ("a", "b")
        ]
        manifests[mix_dir] = mixtures / f"{mix_dir}.csv"
        write_mixture_manifest(files, manifests[mix_dir])
    journal = tmp_path / "results/scores.partial.jsonl"
    journal.parent.mkdir()
    model = load_model(checkpoint)
    score(model, open_mixtures(manifests["mix_clean"], 8000), metrics=(), limit=1, journal=journal)
    options = (checkpoint, "--no-sdr", "--out", tmp_path / "results", "--mixtures")
    refused = run(*options, manifests["mix_both"])
    assert (refused.exit_code, "with other mixtures" in " ".join(refused.stderr.split())) == (2, True)
    assert run(*options, manifests["mix_clean"]).exit_code == 0


def test_one_argument_that_is_a_set_is_not_taken_for_the_model(mixtures, tmp_path):  # issue 16
    result = run(mixtures, "--limit", "1", "--no-sdr", "--out", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "results/summary.json").read_text())["model"]["name"] == "default"
    result = run(tmp_path / "nothing.csv")
    assert result.exit_code == 2
    assert "got none" in " ".join(result.stderr.split())


def test_a_metric_without_a_value_costs_no_other_and_is_explained_once(checkpoint, tmp_path):
    """Half a second at 44.1 kHz, where there is no PESQ; one mixture is too short for ESTOI, too."""
    pytest.importorskip("pesq")
    rng, sets = np.random.default_rng(0), tmp_path / "set"
    for name, n_samples in (("a", 22050), ("b", 22050), ("c", 10)):
        sources = 0.1 * rng.standard_normal((2, n_samples))
        for folder, waveform in (("mix", sources.sum(0)), ("s1", sources[0]), ("s2", sources[1])):
            (sets / folder).mkdir(parents=True, exist_ok=True)
            soundfile.write(sets / folder / f"{name}.wav", waveform, 44100, "FLOAT")
    result = run(checkpoint, sets, "--no-sdr", "--metrics", "pesq,estoi", "--out", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if "note" in line] == [
        "note: PESQ is defined at 8000 and 16000 Hz, got 44100 Hz; n/a in 3 of 3 mixtures",
        "note: ESTOI is defined for recordings of 0.4 s and more; n/a in 1 of 3 mixtures",
    ]
    with (tmp_path / "results/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["PESQ_1"] for row in rows] == ["n/a"] * 3
    assert [row["ESTOI_1"] == "n/a" for row in rows] == [False, False, True]
    assert "n/a" not in [row["SI-SNR"] for row in rows]
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["not_applicable"]["pesq"] == summary["not_applicable"]["mixture_pesq"] == 6
    assert summary["not_applicable"]["estoi"] == 2
    assert summary["mean"]["pesq"] is None
    assert "si_snr" not in summary["not_applicable"]
    assert summary["mean"]["estoi"] == pytest.approx(
        np.mean([float(row["ESTOI"]) for row in rows[:2]]), abs=1e-3
    )
    (line,) = (line.split() for line in result.stdout.splitlines() if line.startswith("PESQ"))
    assert line == ["PESQ", "(MOS)", "n/a", "6"]


def test_random_weights_are_a_warning_as_in_separate(mixtures, tmp_path):
    result = run("sepreformer-t", mixtures, "--no-sdr", "--limit", 1, "--out", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0].startswith("warning: sepreformer-t has random weights")
    assert "UserWarning" not in result.stderr


def test_a_row_of_a_manifest_that_is_cut_off_exits_with_2(checkpoint, tmp_path):
    manifest = tmp_path / "cut.csv"
    write_mixture_manifest([MixtureFiles("a", *[tmp_path / "m.wav", (tmp_path / "s.wav",) * 2],
                                         ("x", "y"), ("1", "2"), 100, 8000)], manifest)  # fmt: skip
    manifest.write_text(manifest.read_text().splitlines()[0] + "\nfoo\n")
    result = run(checkpoint, manifest, "--out", tmp_path / "results")
    assert (result.exit_code, "cut.csv, line 2: " in result.stderr.replace("\n", " ")) == (2, True)


def test_json_limit_and_no_sdr(checkpoint, mixtures, tmp_path):
    options = ("--limit", 1, "--no-sdr", "--json")
    result = run("--mixtures", mixtures, "--model", checkpoint, "--out", tmp_path / "results", *options)
    content = json.loads(result.stdout)
    assert content["n_mixtures"] == 1
    assert set(content["mean"]) == {"si_snr", "si_snr_improvement", "mixture_si_snr"}


def test_one_bad_mixture_exits_with_1_and_the_other_is_scored(checkpoint, mixtures, tmp_path):
    (mixtures / "mix_clean/a.wav").write_bytes(b"")
    result = run("--mixtures", mixtures, "--model", checkpoint, "--out", tmp_path / "results", "--no-sdr")
    assert result.exit_code == 1
    assert "error: a: " in result.stderr
    assert "empty file" in result.stderr
    bad, good = (tmp_path / "results/scores.csv").read_text().splitlines()[1:]
    assert bad.startswith("a,n/a,n/a,n/a,")
    assert "empty file" in bad
    assert good.startswith("b,0.500,")


def test_results_of_nothing_but_failures_are_shown_and_can_be_reported(checkpoint, mixtures, tmp_path):
    for file in (mixtures / "mix_clean").iterdir():
        file.write_bytes(b"")
    result = run(checkpoint, mixtures, "--out", tmp_path / "results", "--no-sdr")
    assert (result.exit_code, "nan" in result.stdout) == (1, False)
    page = tmp_path / "page.html"
    words = ["report", str(tmp_path / "results"), "--out", str(page), "--examples", "0"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert ("empty file" in page.read_text(), "nan" in page.read_text()) == (True, False)


def test_wrong_usage_exits_with_2(checkpoint, mixtures, tmp_path):
    options = ("--model", checkpoint, "--no-sdr", "--out", tmp_path / "results")
    (tmp_path / "list.csv").write_text("path,speaker\na.wav,a\n")
    assert run("--mixtures", tmp_path / "nowhere", *options).exit_code == 2
    assert run(*options).exit_code == 2
    assert run("default", mixtures, *options).exit_code == 2  # two models
    assert run("--mixtures", tmp_path / "list.csv", *options).exit_code == 2
    assert run("--mixtures", mixtures / "s1", *options).exit_code == 2  # a folder without mixtures
    assert run("--mixtures", mixtures, *options, "--memory", "4G").exit_code == 2  # without a mode
    in_a_mode = ("--mixtures", mixtures, *options, "--mode", "auto")
    assert run(*in_a_mode, "--memory", "much").exit_code == 2
    assert run(*in_a_mode, "--overlap-seconds", 16).exit_code == 2  # more than half a chunk
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_what_is_refused_leaves_the_place_for_results_as_it_was(checkpoint, mixtures, tmp_path):
    new, old = tmp_path / "new" / "deep" / "results", tmp_path / "old"
    old.mkdir()
    for out in (new, old):
        options = ("--mixtures", mixtures, "--out", out)
        assert run(*options, "--model", "no-such-model").exit_code == 3
        assert run(*options, "--model", checkpoint, "--metrics", "wer").exit_code == 2
    assert not (tmp_path / "new").exists()
    assert list(old.iterdir()) == []
    assert run("--model", checkpoint, "--mixtures", mixtures, "--no-sdr", "--out", new).exit_code == 0


def test_results_that_exist_are_kept_unless_told_otherwise(checkpoint, mixtures, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/scores.csv").write_text("of another model")
    options = ("--mixtures", mixtures, "--model", checkpoint, "--out", tmp_path / "results", "--no-sdr")
    assert run(*options).exit_code == 2
    assert (tmp_path / "results/scores.csv").read_text() == "of another model"
    assert run(*options, "--overwrite").exit_code == 0
    assert (tmp_path / "results/scores.csv").read_text().startswith("name,")


def test_no_model_and_no_place_for_results_exit_with_3(checkpoint, mixtures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = ("--mixtures", mixtures, "--no-sdr")
    no_model = run(*options, "--model", "no-such-model", "--out", tmp_path / "results")
    assert (no_model.exit_code, "no-such-model" in no_model.stderr) == (3, True)
    no_place = run(*options, "--model", checkpoint, "--out", tmp_path / "file")
    assert (no_place.exit_code, "it is a file" in no_place.stderr) == (3, True)


def test_without_torchmetrics_the_extra_is_named_before_any_work(checkpoint, mixtures, tmp_path, monkeypatch):
    for name in {"torchmetrics", *(name for name in sys.modules if name.startswith("torchmetrics."))}:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    result = run("--mixtures", mixtures, "--model", checkpoint, "--out", tmp_path / "results")
    assert result.exit_code == 3
    assert how_to_install("evaluation") in result.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_an_interrupt_exits_with_130_and_leaves_nothing_half(checkpoint, tmp_path):
    listing, told = tmp_path / "list.csv", tmp_path / "told"
    os.mkfifo(listing)
    told.touch()
    options = ("--model", checkpoint, "--out", tmp_path / "results", "--no-sdr")
    process = start_command("evaluate", "--mixtures", listing, *options, stderr=told)
    with listing.open("w"):  # opens as soon as the command reads the list, which then waits for a line
        interrupt(process)
    assert process.exitcode == 130
    assert "interrupted; the same command goes on where it was" in told.read_text()
    assert not (tmp_path / "results").exists()
