"""`flasepformer separate` with the options for conversations."""

import json

import numpy as np
import pytest
import soundfile
from tests.networks import tiny
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models import save_model

RATE = 8000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A real model, far too small to separate anything, with two talkers at 8 kHz."""
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny(), folder, {"licence": "CC0-1.0"})
    return folder


@pytest.fixture
def run(model):
    def invoke(*arguments):
        words = ["separate", "--model", str(model), "--device", "cpu", *map(str, arguments)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return invoke


@pytest.fixture
def talk(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE)
    noise[:RATE] = noise[2 * RATE :] = 0
    soundfile.write(tmp_path / "talk.wav", noise, RATE, subtype="FLOAT")
    return tmp_path / "talk.wav"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_segments_come_as_four_files_and_a_picture_beside_the_tracks(run, talk, tmp_path):
    pytest.importorskip("matplotlib")
    assert (
        run(
            talk,
            "--segments",
            "--residual",
            "--speakers",
            2,
            "--activity",
            "levels",
            "--out",
            tmp_path / "out",
        )[0]
        == 0
    )
    assert names(tmp_path / "out") == [
        "talk.json",
        "talk.png",
        "talk.rttm",
        "talk.txt",
        "talk.vtt",
        "talk_residual.wav",
        "talk_separation.json",
        "talk_speaker1.wav",
        "talk_speaker2.wav",
    ]
    content = json.loads((tmp_path / "out" / "talk.json").read_text())
    starts = [segment["start"] for segment in content["segments"]]
    ends = [segment["end"] for segment in content["segments"]]
    assert (min(starts), max(ends)) == pytest.approx((1.0, 2.0), abs=0.021)
    tracks = [
        soundfile.read(tmp_path / "out" / f"talk_{label}.wav")[0]
        for label in ("speaker1", "speaker2", "residual")
    ]
    np.testing.assert_allclose(sum(tracks), soundfile.read(talk)[0], atol=1e-6)


def test_the_files_are_named_for_a_program_also_where_all_was_done_before(run, talk, tmp_path):  # issue 16
    words = (talk, "--segments", "--speakers", 2, "--activity", "levels", "--json", "--out", tmp_path / "out")
    for status in ("done", "skipped"):
        code, out, _ = run(*words)
        (result,) = json.loads(out)["results"]
        assert (code, result["status"]) == (0, status)
        assert str(tmp_path / "out" / "talk.rttm") in result["files"]


def test_nobody_gives_files_that_are_empty_and_valid(run, tmp_path):
    soundfile.write(tmp_path / "nobody.wav", np.zeros(2 * RATE), RATE)
    code, _, told = run(tmp_path / "nobody.wav", "--segments", "--out", tmp_path / "out")
    assert code == 0
    assert "nobody speaks" in told
    assert (tmp_path / "out" / "nobody.rttm").read_text() == ""
    assert (tmp_path / "out" / "nobody.vtt").read_text() == "WEBVTT\n"
    assert json.loads((tmp_path / "out" / "nobody.json").read_text())["segments"] == []
    for number in (1, 2):
        assert not soundfile.read(tmp_path / "out" / f"nobody_speaker{number}.wav")[0].any()


@pytest.mark.slow
def test_the_same_command_does_nothing_twice_and_other_options_are_another_separation(run, talk, tmp_path):
    out = tmp_path / "out"
    assert run(talk, "--segments", "--speakers", 2, "--out", out)[0] == 0
    code, listed, told = run(talk, "--segments", "--speakers", 2, "--out", out)
    assert (code, "skipped" in told, len(listed.split())) == (0, True, 2)
    code, _, told = run(talk, "--out", out)
    assert code == 1
    assert "talk_separation.json" in told
    (out / "talk.rttm").unlink()
    assert run(talk, "--segments", "--speakers", 2, "--out", out)[0] == 1


@pytest.mark.slow
def test_what_an_earlier_run_left_goes_when_its_place_is_taken(run, talk, tmp_path):
    out = tmp_path / "out"
    assert run(talk, "--residual", "--speakers", "2", "--out", out)[0] == 0
    assert run(talk, "--residual", "--speakers", "1", "--overwrite", "--out", out)[0] == 0
    report = json.loads((out / "talk_separation.json").read_text())
    assert report["tracks"] == ["talk_speaker1.wav", "talk_residual.wav"]


@pytest.mark.slow
def test_three_tracks_if_there_are_three_people_and_no_more_than_ten(run, talk, tmp_path):
    code, listed, _ = run(talk, "--speakers", 3, "--out", tmp_path / "out")
    assert code == 0
    assert [line.rpartition("_")[2] for line in listed.split()] == [f"speaker{n}.wav" for n in (1, 2, 3)]
    assert run(talk, "--speakers", 2, "--overwrite", "--out", tmp_path / "out")[0] == 0
    assert names(tmp_path / "out") == ["talk_separation.json", "talk_speaker1.wav", "talk_speaker2.wav"]
    for speakers in ("11", "0", "some"):
        code, _, told = run(talk, "--speakers", speakers, "--out", tmp_path / "none")
        assert code == 2
        assert "from 1 to 10" in " ".join(told.replace("│", " ").split())
    assert run(talk, "--speakers", 3, "--activity", "levels", "--out", tmp_path / "none")[0] == 2


def test_an_interview_keeps_each_channel_and_loses_the_crosstalk(run, tmp_path):
    rng = np.random.default_rng(0)
    talks = np.repeat([[1, 0, 1, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0, 1, 0]], RATE, axis=1)
    voices = (
        0.1
        * talks
        * np.repeat(0.2 + rng.random((2, 40)), RATE // 5, axis=1)
        * rng.standard_normal(talks.shape)
    )
    channels = (voices + 0.1 * voices[::-1]).astype(np.float32)
    soundfile.write(tmp_path / "interview.wav", channels.T, RATE, subtype="FLOAT")
    code, _, told = run(tmp_path / "interview.wav", "--segments", "--out", tmp_path / "out")
    assert code == 0
    assert "each channel carries a talker" in told
    inner = np.arange(RATE) > RATE // 2  # of each second
    for number, (channel, talk) in enumerate(zip(channels, talks, strict=True), 1):
        track = soundfile.read(tmp_path / "out" / f"interview_speaker{number}.wav", dtype="float32")[0]
        alone = np.tile(inner, 8) & (talk == 1)
        alone[-RATE // 4 :] = False
        quiet = np.tile(inner, 8) & (talk == 0)
        np.testing.assert_allclose(track[alone], channel[alone], atol=1e-7)
        assert np.abs(track[quiet & (np.arange(len(track)) % RATE < 0.85 * RATE)]).max() == 0
