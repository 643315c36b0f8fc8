import json
import os
import pty
import select
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from tests.models.published_files import CATALOGUE, SEVEN, entry, layout_of, place, publish, tiny_network
from tests.models.weights_server import Answer, WeightsServer
from tests.processes import interrupt, start_command
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models import fetching

APACHE, LISTED = "tflocoformer-m-libri2mix", "fla-sepreformer-b-libri2mix"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Both hosts on this machine with small files of the seven names, and the list that says so."""
    path = tmp_path_factory.mktemp("list") / "models.yaml"
    entries = {}
    with WeightsServer() as hosts:
        for name in SEVEN:
            model = tiny_network(name)
            settings, weights = publish(model, layout_of(name), tmp_path_factory.mktemp("published"))
            entries[name] = entry(name, settings, weights, model)
            place(hosts, entries[name], settings, weights)
        path.write_text(yaml.safe_dump({"models": entries}))
        yield hosts, path


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    """The hosts, and a computer that has nothing yet but a recording, `talk.wav`."""
    hosts, path = published
    hosts.heal()
    variables = {"FLASEPFORMER_MODELS": str(path), "FLASEPFORMER_HOME": str(tmp_path / "home")}
    hosts.variables = hosts.environment | variables
    for key, value in hosts.variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("FLASEPFORMER_ACCEPT_LICENCE", raising=False)
    monkeypatch.setattr(fetching, "RETRY_SECONDS", 0.0)
    noise = 0.1 * np.random.default_rng(0).standard_normal(4000)
    soundfile.write(tmp_path / "talk.wav", noise, 8000)
    monkeypatch.chdir(tmp_path)
    return hosts


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


ALIASES = {"best": "tflocoformer-m-libri2mix", "fast": "sepreformer-b-wsj0-2mix"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEVEN, *ALIASES])
def test_one_command_goes_from_nothing_to_tracks_and_needs_no_network_again(server, name, monkeypatch):
    words = ("separate", "talk.wav", "--model", name, "--accept-licence", "--device", "cpu")
    result = run(*words, "--out", "out")
    assert result.exit_code == 0, result.output
    entry = CATALOGUE["models"][ALIASES.get(name, name)]
    for text in (entry["licence"], entry["data"], entry["citation"], entry["source"]["repository"]):
        assert text in result.stderr
    report = json.loads(Path("out/talk_separation.json").read_text())
    for key in ("licence", "data", "citation"):
        assert report["model"][key] == entry[key]
    tracks = [soundfile.read(f"out/talk_speaker{talker}.wav")[0] for talker in (1, 2)]
    assert [len(track) for track in tracks] == [4000, 4000]
    server.heal()
    for variable in ("FLASEPFORMER_GITHUB_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    again = run(*words[:-3], "--device", "cpu", "--out", "again")
    assert again.exit_code == 0
    assert "licence" not in again.stderr
    assert server.requests == []


def test_without_a_yes_nothing_is_fetched_and_the_way_to_say_it_is_told(server):
    result = run("separate", "talk.wav", "--model", LISTED, "--device", "cpu")  # row 74
    assert result.exit_code == 3
    *shown, error = result.stderr.splitlines()
    assert "  licence: CC BY-NC 4.0 (no commercial use)" in shown
    assert error.startswith(f"error: the weights of {LISTED} are under CC BY-NC 4.0")
    assert "--accept-licence, FLASEPFORMER_ACCEPT_LICENCE=1" in error
    assert server.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 3), ("\x04", 3), (signal.SIGINT, 130)])
def test_on_a_terminal_it_is_asked_once(server, tmp_path, said, code):
    parent, child = pty.openpty()
    printed = tmp_path / "printed"
    printed.touch()
    terminal = os.ttyname(child)
    environment = {key: os.environ[key] for key in server.variables} | {"TERM": "dumb"}
    process = start_command(
        "download", LISTED, stdin=terminal, stderr=terminal, stdout=printed, environment=environment
    )
    shown = b""
    while b"Do you accept this licence?" not in shown:
        assert select.select([parent], [], [], 60)[0]
        shown += os.read(parent, 1000)
    if isinstance(said, str):  # Ctrl-D ends the input
        os.write(parent, said.encode())
        process.join(120)
    else:
        interrupt(process)
    os.close(child)
    os.close(parent)
    assert process.exitcode == code
    assert (f"models/{LISTED}" in printed.read_text()) == (code == 0)
    if code == 0:
        assert run("download", LISTED).stdout == printed.read_text()  # no question any more


@pytest.mark.slow
def test_download_says_where_the_models_lie_and_copies_them_for_another_computer(server, tmp_path):
    (tmp_path / "stick").mkdir()
    result = run("download", "--all", "--accept-licence", "--to", tmp_path / "stick", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    folders = result.stdout.split()
    assert folders == [str(tmp_path / "stick" / name) for name in SEVEN]
    shutil.rmtree(tmp_path / "home")
    server.heal()
    result = run("separate", "talk.wav", "--model", folders[0], "--device", "cpu")
    assert result.exit_code == 0
    assert server.requests == []


def test_of_several_downloads_those_that_can_be_had_are_had(server, tmp_path):
    server.add_fault("media /dmlguq456.*pth", lambda answer: Answer(404))
    result = run("download", "--all")
    assert result.exit_code == 3
    assert len(result.stdout.split()) == 4
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split()[1] for line in errors] == ["sepreformer-b-wsj0-2mix", "the", "the"]
    assert "has no such file (404)" in errors[0]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no-such-model"], 2, "no published model is called"),
        ([], 2, "give the names of models, or --all"),
        ([APACHE, "--all"], 2, "give the names of models, or --all"),
        (["sepreformer-l-wham"], 3, "its authors have not published the weights"),
    ],
)
def test_wrong_words_are_explained(server, words, code, message):
    result = run("download", *words)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert server.requests == []


@pytest.mark.slow
def test_models_says_what_to_take_for_what_and_what_is_here(server):
    before = run("models").stdout.splitlines()
    row = next(line for line in before if line.startswith(APACHE))
    assert "best on clean speech" in row
    assert row.split()[-4:] == ["no", "1.30", "488", "MB"]
    assert "22.1 libri2mix Apache-2.0 yes 0 MB" in " ".join(row.split())
    assert any(line.startswith(f"best = {APACHE}: ") for line in before)
    assert any(line.startswith("fast = ") for line in before)
    assert sum("have not published the weights" in line for line in before) == 2
    run("download", APACHE)
    row = next(line for line in run("models").stdout.splitlines() if line.startswith(APACHE))
    assert row.split()[-4] == "yes"
    listed = {info["name"]: info for info in json.loads(run("models", "--json").stdout)}
    assert listed[APACHE]["is_here"] is True
    assert listed[LISTED]["is_here"] is False
    assert listed[APACHE]["scores"][0]["si_snri"] == 22.1


@pytest.fixture
def libri2mix(tmp_path):
    """Two mixtures in the folders of Libri2Mix's test split."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "Libri2Mix/wav8k/min/test"
    for name in ("mix_clean", "s1", "s2"):
        (folder / name).mkdir(parents=True)
    for name in ("1-2-3_4-5-6", "7-8-9_10-11-12"):
        s1, s2 = 0.1 * rng.standard_normal((2, 4000))
        for track, waveform in (("s1", s1), ("s2", s2), ("mix_clean", s1 + s2)):
            soundfile.write(folder / track / f"{name}.wav", waveform, 8000, "FLOAT")
    return folder


@pytest.mark.parametrize("prepared", [False, True])
def test_evaluate_prints_the_published_score_beside_ours(server, libri2mix, tmp_path, prepared):
    mixtures = libri2mix
    if prepared:
        listed = run("prepare", "libri2mix", tmp_path / "Libri2Mix", "--partial", "--out", tmp_path / "out")
        assert listed.exit_code == 0, listed.output
        mixtures = tmp_path / "out/test.csv"
    result = run("evaluate", APACHE, mixtures, "--device", "cpu", "--out", "results")
    assert result.exit_code == 0, result.output
    assert "note: the published score is the mean over 3,000 mixtures, this over 2" in result.stderr
    summary = json.loads(Path("results/summary.json").read_text())
    ours = summary["mean"]["si_snr_improvement"]
    scores = summary["published"]["scores"]["SI-SNRi"]
    assert scores == {
        "here": ours,
        "published": 22.1,
        "difference": pytest.approx(ours - 22.1),
    }
    lines = [line.split() for line in result.stdout.splitlines()]
    at = next(i for i, line in enumerate(lines) if line[:1] == ["libri2mix"])
    assert lines[at] == ["libri2mix", "clean,", "test", "HERE", "PUBLISHED", "DIFFERENCE"]
    assert lines[at + 1] == ["SI-SNRi", "(dB)", f"{ours:.2f}", "22.1", f"{ours - 22.1:+.2f}"]
    assert lines[at + 2][:2] == ["SDRi", "(dB)"]
    assert lines[at + 2][3] == "22.2"


@pytest.mark.parametrize("name", ["tflocoformer-m-wsj0-2mix", "tflocoformer-m-whamr"])
def test_evaluate_says_nothing_of_a_score_that_was_published_for_another_set(server, libri2mix, name):
    result = run("evaluate", name, libri2mix, "--device", "cpu", "--no-sdr", "--out", "results")
    assert result.exit_code == 0
    assert "PUBLISHED" not in result.stdout
    assert json.loads(Path("results/summary.json").read_text())["published"] is None


@pytest.mark.slow
def test_convert_takes_a_published_name(server, tmp_path):
    result = run("convert", LISTED, tmp_path / "theirs", "--to", "modelscope", "--accept-licence")
    assert result.exit_code == 0
    assert (tmp_path / "theirs/pytorch_model.pt").is_file()
    assert run("convert", "sepreformer-l-whamr", tmp_path / "none").exit_code == 3
