import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import constants
from tests.models.conftest import tiny_config
from tests.models.hub_server import PAGE, TOKEN, HubServer, Repository, Response, refusal
from torch.testing import assert_close
from typer.testing import CliRunner

from flasepformer import Separator
from flasepformer.cli import app
from flasepformer.models import CheckpointError, SepReformer, load_model, save_model
from flasepformer.models.hub import HubError, download_model, is_hub_name, parse_hub_name, push_to_hub

NAME = "owner/tiny"
URL_TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
MIXTURE = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
INFO = {
    "description": "Tiny, and of no use",
    "licence": "CC BY-SA 4.0",
    "step": 7,
    "si_snri_db": {"test": 0.5},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, which `huggingface_hub` takes for the real one, and an empty cache."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with HubServer() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + URL_TEMPLATE,
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_ETAG_TIMEOUT": 5,
        }
        for name, value in settings.items():  # huggingface_hub has read its environment on import
            monkeypatch.setattr(constants, name, value)
        yield server


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SepReformer(tiny_config()).eval()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The two files of a model in our format."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(model, folder, INFO)
    return contents(folder)


@pytest.fixture
def commit(hub, files):
    """Publish the model without our help."""
    hub.repositories[NAME] = Repository()
    return hub.repositories[NAME].commit("first", files)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def status(code):
    return lambda answer: refusal(code, "", "out of order")


def web_page(answer):
    return Response(200, {"Content-Type": "text/html"}, PAGE)


def other_bytes(answer):
    response = answer()
    return dataclasses.replace(response, body=response.body[:-1] + bytes([response.body[-1] ^ 1]))


def shorter(answer):
    response = answer()
    return dataclasses.replace(response, body=response.body[:-100])


def broken_off(answer):
    response = answer()
    return dataclasses.replace(response, n_sent=len(response.body) // 2)


def stalled(answer):
    return Response(stalls=True)


def test_a_pushed_model_comes_back_bit_by_bit(hub, model):
    assert push_to_hub(model, NAME, info=INFO, token=TOKEN) == f"{hub.url}/{NAME}"
    assert hub.repositories[NAME].messages == ["Upload a model of flasepformer"]
    folder = download_model(NAME)
    assert sorted(contents(folder)) == ["config.json", "model.safetensors"]
    loaded = load_model(folder)
    with torch.inference_mode():
        assert_close(loaded(MIXTURE), model(MIXTURE), rtol=0, atol=0)
    assert loaded.config == model.config
    assert json.loads((folder / "config.json").read_text())["info"] == INFO


@pytest.mark.parametrize("name", [f"hf://{NAME}", NAME, f"hf://{NAME}@main"])
def test_a_separator_is_had_by_the_name_on_the_hub(hub, commit, model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    separator = Separator.from_pretrained(name, "cpu")
    with torch.inference_mode():
        assert_close(separator.model(MIXTURE), model(MIXTURE), rtol=0, atol=0)
        assert_close(load_model(name)(MIXTURE), model(MIXTURE), rtol=0, atol=0)
    assert separator.description["name"] == name
    assert separator.description["licence"] == "CC BY-SA 4.0"


def separate(path, model):
    arguments = ["separate", str(path), "--model", model, "--device", "cpu", "--out", f"{path.parent}/out"]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_command_separates_with_a_model_of_the_hub_and_exits_with_3_without_it(hub, commit, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(4000)
    soundfile.write(tmp_path / "talk.wav", noise, 8000)  # rows 55, 56
    hub.add_fault("hub GET /api", status(503))
    result = separate(tmp_path / "talk.wav", f"hf://{NAME}")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {NAME} is not in the cache and cannot be downloaded: {hub.url} ")
    assert result.stderr.count("\n") == 1
    hub.heal()
    result = separate(tmp_path / "talk.wav", f"hf://{NAME}")
    assert result.exit_code == 0
    assert (tmp_path / "out" / "talk_speaker2.wav").is_file()


def test_a_second_push_is_one_more_commit_and_leaves_other_files_alone(hub, commit, files, model):
    hub.repositories[NAME].commit("notes", {"notes.txt": b"mine"})
    push_to_hub(model, NAME, info={**INFO, "step": 8}, token=TOKEN, commit_message="again")
    published = hub.repositories[NAME]
    assert published.messages == ["first", "notes", "again"]
    newest = published.commits[published.references["main"]]
    assert newest["notes.txt"] == b"mine"
    assert json.loads(newest["config.json"])["info"]["step"] == 8
    assert newest["model.safetensors"] == files["model.safetensors"]


def test_the_card_says_what_is_known_and_no_more(hub, model):
    push_to_hub(model, NAME, info=INFO, token=TOKEN)
    published = hub.repositories[NAME]
    card = published.commits[published.references["main"]]["README.md"].decode()
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "cc-by-sa-4.0",
        "library_name": "flasepformer",
        "pipeline_tag": "audio-to-audio",
        "tags": ["speech-separation", "audio-to-audio"],
    }
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", body, re.MULTILINE))
    n_parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("auxiliary_"))
    assert rows == {
        "family": "sepreformer",
        "talkers": "2",
        "sample rate": "8000 Hz",
        "parameters": f"{n_parameters:,}",
        "licence": "CC BY-SA 4.0",
        "step": "7",
        "si_snri_db": '{"test": 0.5}',
    }
    assert "\nTiny, and of no use\n" in body
    assert f'Separator.from_pretrained("{NAME}")' in body
    assert f"--model hf://{NAME}" in body


@pytest.mark.parametrize(
    ("licence", "metadata"),
    [
        ("", {}),
        ("Ours: ask us", {"license": "other", "license_name": "ours-ask-us"}),
    ],
)
def test_the_card_names_the_licence_as_the_hub_does(hub, model, licence, metadata):
    push_to_hub(model, NAME, info={"licence": licence}, token=TOKEN)
    published = hub.repositories[NAME]
    card = published.commits[published.references["main"]]["README.md"].decode()
    found = yaml.safe_load(card.split("---\n", 2)[1])
    assert {key: value for key, value in found.items() if key.startswith("license")} == metadata
    assert f"| licence | {licence or 'not stated'} |" in card


def test_a_private_model_needs_the_token(hub, model, monkeypatch):
    push_to_hub(model, NAME, private=True, token=TOKEN)
    with pytest.raises(HubError, match=r"knows no such model, or it is private: .*hf auth login"):
        download_model(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (download_model(NAME) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("line", "fault", "token", "message"),
    [
        ("hub POST", None, None, "knows no such model, or it is private"),
        ("hub POST /api/repos/create", status(403), TOKEN, "does not permit it: .* with a token that may"),
        ("storage PUT", status(403), TOKEN, "does not permit it"),
        ("hub POST .*commit", status(503), TOKEN, "answers with status 503; try again later"),
        ("hub POST /api/repos/create", web_page, TOKEN, "is not the Hub; a proxy or a login page"),
    ],
)
def test_a_push_that_fails_publishes_nothing(hub, model, line, fault, token, message):
    if fault:
        hub.add_fault(line, fault)
    with pytest.raises(HubError, match=f"^{NAME} cannot be published: .*{message}"):
        push_to_hub(model, NAME, token=token)
    assert not any(repository.commits for repository in hub.repositories.values())


def test_a_cached_model_is_used_without_any_request(hub, commit, files, monkeypatch):  # row 54
    folder = download_model(NAME)
    assert contents(folder) == files
    assert len(hub.lines("hub GET /api")) == 1
    assert len(hub.lines("storage GET")) == 1
    hub.heal()
    hub.repositories[NAME].commit("newer", {"config.json": b"{}"})
    assert download_model(NAME) == folder
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert contents(download_model(NAME)) == files
    assert download_model(NAME, commit) == folder
    assert hub.requests == []


def test_every_revision_is_a_model_of_its_own(hub, commit, files, model, tmp_path):
    broken = hub.repositories[NAME].commit("broken", {**files, "model.safetensors": b"x"}, "broken")
    save_model(model, tmp_path / "half", dtype=torch.float16)
    half = contents(tmp_path / "half")
    hub.repositories[NAME].commit("half", half, "feature/half")
    assert contents(download_model(NAME)) == files
    assert contents(download_model(NAME, "feature/half")) == half
    assert contents(download_model(NAME, commit)) == files
    assert len(hub.lines("storage GET")) == 2  # the commit is what main was
    with pytest.raises(HubError, match=r"model\.safetensors is damaged: .*header"):
        download_model(NAME, broken)
    with pytest.raises(HubError, match="it has no such revision"):
        download_model(NAME, "v3")


def test_weights_of_one_commit_are_never_paired_with_the_config_of_another(hub, commit, files):
    def commit_between(answer):
        response = answer()
        hub.repositories[NAME].commit("newer", {name: b"newer" for name in files})
        return response

    hub.add_fault("hub GET .*config", commit_between, times=1)
    assert contents(download_model(NAME)) == files


def test_a_model_that_is_not_cached_needs_the_network(hub, commit, monkeypatch):  # row 55
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as error:
        download_model(NAME)
    assert str(error.value) == (
        f"{NAME} is not in the cache and cannot be downloaded: HF_HUB_OFFLINE forbids it. By hand: put "
        f"{hub.url}/{NAME}/resolve/main/config.json and {hub.url}/{NAME}/resolve/main/model.safetensors "
        "into one folder, and load that folder"
    )
    assert isinstance(error.value, CheckpointError)
    assert hub.requests == []


def test_a_hub_that_is_not_there_is_named(hub, commit, monkeypatch):  # row 55
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + URL_TEMPLATE)
    begun = time.monotonic()
    with pytest.raises(
        HubError, match=f"the connection to {nowhere} failed .*refused.*By hand: put {nowhere}/"
    ):
        download_model(NAME)
    assert time.monotonic() - begun < 12  # huggingface_hub itself tries for twenty seconds


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(500), "answers with status 500; try again later. By hand"),
        (status(503), "answers with status 503; try again later. By hand"),
        (status(401), "knows no such model, or it is private"),
        (status(403), "does not permit it"),
        (status(404), "knows no such model, or it is private"),
        (web_page, "what answers is not the Hub; a proxy or a login page may stand in between. By hand"),
        (lambda answer: Response(200, {}, b"[1]"), "what answers is not the Hub"),
        (lambda answer: Response(200, {}, b'{"id": "owner/tiny"}'), "has no config.json"),
        (lambda answer: Response(200, {}, answer().body.replace(b'"sha"', b'"was"')), "is not the Hub"),
        (lambda answer: Response(200, {}, b'{"id": "owner/tiny", "gated": "auto"}'), "has to be granted"),
        (broken_off, "the connection to .* failed"),
        (stalled, "does not answer in time"),
    ],
)
def test_a_hub_that_does_not_answer_well_is_one_sentence(hub, commit, files, monkeypatch, fault, message):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)  # row 56
    hub.add_fault("hub GET /api", fault)
    begun = time.monotonic()
    with pytest.raises(HubError, match=message) as error:
        download_model(NAME)
    assert time.monotonic() - begun < 12
    assert "\n" not in str(error.value)
    assert len(hub.requests) == 1
    hub.heal()
    assert contents(download_model(NAME)) == files


@pytest.mark.parametrize(
    ("line", "fault", "message"),
    [
        ("hub HEAD .*config", web_page, "what answers is not the Hub"),
        ("hub GET .*config", web_page, "file should be of size"),
        ("hub GET .*config", other_bytes, r"config\.json is not what the Hub announces"),
        ("storage GET", web_page, "file should be of size"),
        ("storage GET", shorter, "file should be of size"),
        ("storage GET", other_bytes, r"model\.safetensors is not what the Hub announces"),
        ("storage GET", status(404), "knows no such model"),
        ("storage GET", status(500), "answers with status 500"),
    ],
)
def test_a_bad_download_is_never_used_and_fetched_anew(hub, commit, files, line, fault, message):  # row 56
    hub.add_fault(line, fault)
    for _ in range(2):
        with pytest.raises(HubError, match=message) as error:
            download_model(NAME)
        assert "\n" not in str(error.value)
    hub.heal()
    assert contents(download_model(NAME)) == files
    assert len(hub.lines("storage GET")) == 1


def test_wrong_bytes_are_asked_for_again_at_once(hub, commit, files):  # row 56
    hub.add_fault("storage GET", other_bytes, times=1)
    assert contents(download_model(NAME)) == files
    assert len(hub.lines("storage GET")) == 2


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on_from_there(hub, commit, files, monkeypatch):  # row 56
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.add_fault("storage GET", broken_off, times=1)
    assert contents(download_model(NAME)) == files
    ranges = [request.headers.get("range") for request in hub.requests if request.server == "storage"]
    assert 50_000 < len(files["model.safetensors"]) / 2 < 100_000  # half came, of which one chunk is whole
    assert ranges == [None, "bytes=50000-"]


@pytest.mark.slow
def test_a_download_that_breaks_off_for_good_is_fetched_anew(hub, commit, files):  # row 56
    hub.add_fault("storage GET", status(503))
    hub.add_fault("storage GET", broken_off, times=1)
    with pytest.raises(HubError, match=r"answers with status 503; try again later\. By hand"):
        download_model(NAME)
    hub.heal()
    assert contents(download_model(NAME)) == files


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_that_is_used(hub, commit, files, tmp_path):  # row 56
    hub.add_fault("storage GET", stalled)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_of_somebody",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    script = f"from flasepformer.models.hub import download_model; download_model({NAME!r})"
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        for _ in range(600):
            if hub.lines("storage GET") or process.poll() is not None:
                break
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list((tmp_path / "home" / "hub").rglob("*.incomplete"))
    assert {request.token for request in hub.requests if request.server == "hub"} == {"Bearer hf_of_somebody"}
    hub.heal()
    assert contents(download_model(NAME)) == files
    assert len(hub.lines("storage GET")) == 1


def damage(path, fault):
    content = bytearray(path.read_bytes())
    if fault == "cut":
        del content[-100:]
    elif fault == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.resolve().write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("fault", ["cut", "flipped", "empty"])
def test_a_file_that_was_damaged_in_the_cache_is_fetched_anew(hub, commit, files, monkeypatch, name, fault):
    damage(download_model(NAME) / name, fault)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            HubError, match=rf"is damaged in the cache \({name} is not what the Hub announces"
        ):
            download_model(NAME)
    hub.heal()
    assert contents(download_model(NAME)) == files
    assert len(hub.lines("(hub|storage) GET /(?!api)")) == 1  # the other file was good


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("fault", ["cut", "empty"])
def test_a_cache_without_symbolic_links_does_too(hub, commit, files, monkeypatch, name, fault):  # row 47
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    folder = download_model(NAME)
    assert not any(path.is_symlink() for path in folder.iterdir())
    hub.heal()
    assert download_model(NAME) == folder
    assert hub.requests == []
    damage(folder / name, fault)
    assert contents(download_model(NAME)) == files


def test_a_cache_that_cannot_be_written_is_named(hub, commit, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(HubError, match=f"Not a directory: '{tmp_path}/file/hub"):
        download_model(NAME)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, commit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download_model(NAME)
    tokens = {(request.server, request.token) for request in hub.requests}
    assert tokens == {("hub", f"Bearer {TOKEN}"), ("storage", None)}


def test_a_gated_model_tells_how_to_get_access(hub, commit, monkeypatch):
    hub.repositories[NAME].gated = True
    with pytest.raises(HubError, match="access to it has to be granted: ask for it on its page, then log in"):
        download_model(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (download_model(NAME) / "model.safetensors").is_file()


def test_a_model_of_another_kind_is_refused_before_its_weights_are_fetched(hub, files):
    other = hub.repositories[NAME] = Repository()
    other.commit("pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(
        HubError, match=rf"^{NAME} is not a model of flasepformer: it has no model\.safetensors$"
    ):
        download_model(NAME)
    other.commit("bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    with pytest.raises(HubError, match=r"is not a model of flasepformer: its config\.json names no family"):
        download_model(NAME)
    assert hub.lines("storage") == []


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("hf://owner/name", ("owner/name", None)),
        ("owner/name", ("owner/name", None)),
        ("hf://o.w-n_er/n@feature/x", ("o.w-n_er/n", "feature/x")),
    ],
)
def test_a_name_on_the_hub_is_its_owner_name_and_revision(name, parsed):
    assert parse_hub_name(name) == parsed


@pytest.mark.parametrize(
    "name", ["hf://name", "hf://a/b/c", "hf://a/..", "hf://a/b@", "hf://a/b c", "hf://", "/"]
)
def test_what_is_no_name_on_the_hub_is_refused(hub, model, name):
    with pytest.raises(HubError, match=f"^'{name}'"):
        parse_hub_name(name)
    with pytest.raises(HubError, match="expected owner/name"):
        download_model(name)
    with pytest.raises(HubError, match="expected owner/name"):
        push_to_hub(model, name, token=TOKEN)
    assert hub.requests == []


def test_a_path_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_name("owner/name")
    assert is_hub_name("owner/name@v1")
    assert is_hub_name("hf://models/name")
    for path in ("models/name", "name", "./owner/name", "owner/name/model.safetensors", tmp_path / "a" / "b"):
        assert not is_hub_name(path)
