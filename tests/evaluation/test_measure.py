"""`flasepformer measure`, on seconds of synthetic speech."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from tests.networks import tiny
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.data import MixtureList, TurnTaking, make_mixture_list, read_utterances, render
from flasepformer.evaluation import CONDITIONS, MeasuredSpeech, load_result, measure, read_scores
from flasepformer.evaluation.conditions import NoisyMixtures, load_noise
from flasepformer.inference import Separator
from flasepformer.models import save_model


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Return a manifest of four talkers of the test split, two women and two men: tones that come and go."""
    root = tmp_path_factory.mktemp("speech")
    columns = ("path", "split", "speaker", "duration_s", "sex", "corpus", "licence")
    with (root / "MANIFEST.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, (speaker, sex) in enumerate({"anna": "F", "ben": "M", "cleo": "F", "dan": "M"}.items()):
            moments = np.arange(6000) / 8000
            voice = sum(np.sin(2 * np.pi * (100 + 37 * number) * n * moments) / n for n in range(1, 9))
            soundfile.write(root / f"{speaker}.wav", 0.1 * voice * np.sin(9 * moments) ** 2, 8000)
            writer.writerow([f"{speaker}.wav", "test", speaker, 0.75, sex, "tones", "CC0"])
    rng = np.random.default_rng(0)
    for folder in ("rain", "street"):
        (root / folder).mkdir()
        soundfile.write(root / folder / "a.wav", 0.01 * rng.standard_normal(20_000), 8000)
    return root


@pytest.fixture
def models(tmp_path):
    """Return a folder of two checkpoints of a small network."""
    save_model(tiny(0), tmp_path / "models/new")
    save_model(tiny(1), tmp_path / "models/old")
    return tmp_path / "models"


@pytest.fixture
def run(speech, models, tmp_path, monkeypatch):
    """Return a function that measures the two models, and gives the rows of the table."""
    monkeypatch.setattr("flasepformer.evaluation.statistics.N_RESAMPLES", 10)  # intervals take most of it

    def measured(*options, model="new", exit_code=0):
        arguments = [
            "measure", str(models / model), "--baseline", str(models / "old"),
            "--speech", str(speech / "MANIFEST.csv"), "--noise", str(speech / "rain"),
            "--noise", str(speech / "street"), "--out", str(tmp_path / "out"),
            "--count", "3", "--others", "2", *options,
        ]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == exit_code, result.output
        if exit_code:
            return " ".join(result.stderr.replace("│", " ").split())
        with (tmp_path / "out" / "measured.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file)), result

    return measured


@pytest.mark.slow
def test_noise_has_the_level_it_is_said_to_have(speech):
    specs = make_mixture_list(read_utterances(speech / "MANIFEST.csv", "test"), 3, 0)
    clean = MixtureList(specs, 8000)
    noise = load_noise([speech / "rain", speech / "street"], 8000)
    noisy = NoisyMixtures(clean, noise, (5.0, 5.0), 0)
    for k in range(3):
        item, (mixture, sources) = noisy[k], render(specs[k], 8000)
        torch.testing.assert_close(item.sources, sources)
        added = item.mixture - mixture
        assert 10 * torch.log10(mixture.square().mean() / added.square().mean()) == pytest.approx(5, abs=1e-3)
        torch.testing.assert_close(noisy[k].mixture, item.mixture)
    assert not torch.equal(noisy[0].mixture - clean[0].mixture, noisy[1].mixture - clean[1].mixture)


@pytest.mark.slow
def test_every_condition_has_both_models_and_the_table_their_means(run, tmp_path):
    rows, printed = run("--conditions", "clean, noise, rooms, single")
    out = tmp_path / "out"
    assert {(row["condition"], row["model"]) for row in rows} == {
        (condition, model) for condition in CONDITIONS[:4] for model in ("new", "old")
    }
    assert [row["n_mixtures"] for row in rows if row["group"] == "all"] == ["3"] * 2 + ["2"] * 4 + ["4"] * 2
    by_hand = read_scores(out / "clean" / "new" / "scores.csv")
    whole = next(row for row in rows if row["condition"] == "clean" and row["group"] == "all")
    same = next(row for row in rows if row["condition"] == "clean" and row["group"] == "same sex")
    values = [row.mean("si_snr_improvement") for row in by_hand]
    assert float(whole["si_snr_improvement"]) == pytest.approx(np.mean(values), abs=1e-3)
    alike = [
        value for value, row in zip(values, by_hand, strict=True) if row.groups["sexes"] in ("F-F", "M-M")
    ]
    assert int(same["n_mixtures"]) == len(alike) == 2
    assert float(same["si_snr_improvement"]) == pytest.approx(np.mean(alike), abs=1e-3)
    leaks = [row.scores["leakage"][0] for row in read_scores(out / "single" / "old" / "scores.csv")]
    alone = next(row for row in rows if row["condition"] == "single" and row["model"] == "old")
    assert float(alone["leak_50_percent"]) == pytest.approx(np.median(leaks), abs=1e-3)
    clean, noise = (load_result(out / name / "new").rows for name in ("clean", "noise"))
    assert [row.name for row in noise] == [row.name for row in clean[:2]]
    assert all(
        first.mean("mixture_si_snr") > second.mean("mixture_si_snr")
        for first, second in zip(clean, noise, strict=False)
    )
    text = (out / "measured.md").read_text()
    assert text in printed.stdout
    assert f"| clean, all | 3 | {float(whole['mixture_si_snr']):.2f} |" in text
    content = json.loads((out / "measured.json").read_text())
    assert content["sets"]["noise"]["noise"] == ["rain", "street"]
    assert str(tmp_path) not in json.dumps(content) + "".join(
        p.read_text() for p in out.rglob("summary.json")
    )


@pytest.mark.slow
def test_conversations_go_through_the_model_as_recordings_do(speech, models, tmp_path):
    separators = {"new": Separator.from_pretrained(str(models / "new"), "cpu")}
    said = MeasuredSpeech(speech / "MANIFEST.csv", conversation_seconds=6.0)
    paths = measure(
        separators, said, tmp_path / "out", conditions=["conversations"], counts=dict(conversations=1)
    )
    stored = load_result(tmp_path / "out/conversations/new")
    assert stored.facts["separation"] == {"mode": "whole"}
    known = {"seconds": 6.0, "overlap": 0.3, "seed": 0, "n_mixtures": 1}
    assert {key: stored.facts["set"][key] for key in known} == known
    (scored,) = stored.rows
    assert scored.seconds == 6.0
    (share,) = scored.scores["confusion"]
    line = f"| new | 1 | {scored.mean('si_snr_improvement'):.2f} | {share:.1%} |"
    assert line in paths[0].read_text()
    with paths[1].open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["model"], float(row["confusion"])) == ("new", pytest.approx(share, abs=1e-4))


@pytest.mark.slow
def test_turns_on_the_wrong_track_are_counted_in_all_conversations(run, tmp_path, monkeypatch):
    short = partial(TurnTaking, seconds=12.0)
    monkeypatch.setattr("flasepformer.evaluation.conditions.TurnTaking", short)
    rows, printed = run("--conditions", "turns", "--turns", "2")
    shares = [row.scores["turns"][0] for row in read_scores(tmp_path / "out/turns/old/scores.csv")]
    (old,) = (row for row in rows if row["model"] == "old")
    assert len(shares) == 2
    assert float(old["wrong_turns"]) == pytest.approx(np.mean(shares), abs=1e-4)
    assert float(old["share_without_wrong_turns"]) == pytest.approx(np.mean(np.equal(shares, 0)), abs=1e-4)
    assert f"| old | 2 | {np.mean(shares):.1%} |" in printed.stdout


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again_unless_the_weights_are_others(run, models, tmp_path):
    run("--conditions", "clean")
    first = (tmp_path / "out/clean/new/scores.csv").stat().st_mtime_ns
    _, printed = run("--conditions", "clean,single")
    assert "clean, new: measured already" in printed.stderr
    assert (tmp_path / "out/clean/new/scores.csv").stat().st_mtime_ns == first
    assert "other weights or another set" in run("--conditions", "clean", "--count", "2", exit_code=2)
    save_model(tiny(2), models / "new")
    assert "other weights or another set" in run("--conditions", "clean", exit_code=2)
    rows, _ = run("--conditions", "clean", "--count", "2", "--overwrite")
    assert [row["n_mixtures"] for row in rows if row["condition"] == "clean" and row["group"] == "all"] == [
        "2"
    ] * 2
    assert [row["condition"] for row in rows][-2:] == ["single", "single"]


def test_what_cannot_be_measured_is_a_wrong_usage(run):
    assert "give --label" in run(model="old", exit_code=2)
    assert "there are no conditions ['drunk']" in run("--conditions", "clean,drunk", exit_code=2)
