import json
import re

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.data import open_mixtures, read_mixture_list


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


def test_a_set_of_audio_files_goes_on_and_opens(speech, tmp_path):
    out = tmp_path / "set"
    arguments = (
        "mixtures",
        speech,
        "--kind",
        "set",
        "--count",
        3,
        "--mode",
        "max",
        "--noise",
        speech,
        "--out",
        out,
    )
    for _ in range(2):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [str(out / "mix_both.csv"), str(out / "mix_clean.csv")]
    made = open_mixtures(out / "mix_both.csv", 8000)
    assert len(made) == 3
    assert made[0].mixture.shape == (4000,)
    other = run(*arguments, "--seed", 1)
    assert other.exit_code == 2
    assert "holds a set with other" in " ".join(other.stderr.replace("│", " ").split())


def test_conversations_of_several_lengths(speech, tmp_path):
    options = ("--minutes", 0.1, "--minutes", 0.2, "--count", 1, "--talkers", 3, "--out", tmp_path / "set")
    result = run("mixtures", speech, "--kind", "conversations", "--overlap", 0.2, *options)
    assert result.exit_code == 0, result.output
    made = open_mixtures(result.stdout.strip(), 8000)
    assert [item.sources.shape for item in made] == [(3, 48000), (3, 96000)]


def test_a_recording_that_fails_is_named_and_costs_exit_1(speech, tmp_path):
    soundfile.write(speech / "a/0.wav", np.zeros(4000), 8000)
    result = run("mixtures", speech, "--kind", "set", "--count", 3, "--out", tmp_path / "set")
    assert result.exit_code == 1
    assert result.stderr.count("a/0.wav is silent") == 2  # of three pairs
    assert len(open_mixtures(tmp_path / "set/mix_clean.csv", 8000)) == 1


def test_noise_and_rooms_want_audio_files(speech):
    for option in (("--noise", speech), ("--reverberant",)):
        result = run("mixtures", speech, *option)
        assert result.exit_code == 2
        assert "--kind set" in result.stderr


def test_a_folder_that_cannot_be_written_is_an_error_of_the_environment(speech, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("mixtures", speech, "--kind", "set", "--count", 1, "--out", tmp_path / "file/set")
    assert result.exit_code == 3
    assert "cannot be written: Not a directory" in result.stderr


def test_speech_that_is_not_there_is_wrong_usage(speech, tmp_path):
    for source, options in ((speech, ("--split", "nope")), (speech / "a/0.wav", ())):
        result = run("mixtures", source, *options, "--out", tmp_path / "list.csv")
        assert (result.exit_code, str(source) in "".join(result.stderr.split())) == (2, True)


@pytest.fixture
def splits(speech, tmp_path):
    """The layout of the README: splits with a folder per talker in each, noise and rooms beside them."""
    for split in ("train", "valid"):
        for speaker in "abc":
            folder = tmp_path / "root" / split / f"{split}-{speaker}"
            folder.mkdir(parents=True)
            (folder / "0.wav").write_bytes((speech / speaker / "0.wav").read_bytes())
    for other in ("rir", "noise"):
        (tmp_path / "root" / other).mkdir()
        (tmp_path / "root" / other / "0.wav").write_bytes((speech / "a" / "0.wav").read_bytes())
    return tmp_path / "root"


def test_a_folder_of_splits_is_no_folder_of_talkers(splits, tmp_path):  # issue 16
    out = tmp_path / "list.csv"
    result = run("mixtures", splits, "--out", out)
    assert result.exit_code == 2
    message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
    assert "the folders train, valid in" in message
    assert "--split train" in message
    assert not out.exists()
    assert run("mixtures", splits, "--split", "valid", "--count", 6, "--out", out).exit_code == 0
    assert {name for spec in read_mixture_list(out) for name in spec.speakers} == {
        f"valid-{speaker}" for speaker in "abc"
    }


def test_noise_and_rooms_beside_the_talkers_talk_in_no_mixture(splits, speech, tmp_path):  # issue 16
    for other in ("rir", "noise"):
        (splits / other).rename(speech / other)
    result = run("mixtures", speech, "--count", 12, "--out", tmp_path / "list.csv")
    assert result.exit_code == 0
    assert "noise, rir" in result.stderr
    specs = read_mixture_list(tmp_path / "list.csv")
    assert {name for spec in specs for name in spec.speakers} == set("abc")


def test_folders_in_the_folders_of_talkers_are_said_to_be_theirs(speech, tmp_path):  # issue 16
    for speaker in "abc":
        (speech / speaker / "chapter").mkdir()
        (speech / speaker / "0.wav").rename(speech / speaker / "chapter" / "0.wav")
    result = run("mixtures", speech, "--count", 2, "--out", tmp_path / "list.csv")
    assert result.exit_code == 0
    assert "3 folders" in result.stderr
    assert "such as a, are taken for one talker each" in result.stderr
