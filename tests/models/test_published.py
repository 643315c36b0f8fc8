import dataclasses
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import soundfile
import torch
import yaml
from tests.models.published_files import CATALOGUE, SEVEN, entry, layout_of, place, publish, tiny_network
from tests.models.weights_server import PAGE, Answer, WeightsServer
from tests.processes import start
from torch.testing import assert_close

from flasepformer import Separator
from flasepformer.data import PUBLISHED_SETS
from flasepformer.models import (
    CheckpointError,
    LicenceNotAccepted,
    PublishedError,
    fetching,
    find_published,
    list_models,
    load_model,
    local_copy,
    model_info,
    obtain,
    published_models,
)
from flasepformer.models.published import export, home

APACHE = "tflocoformer-m-libri2mix"
LISTED = "fla-sepreformer-b-libri2mix"
MIXTURE = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 59979488\n"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Of every name: a small network, its settings and its weights as they would be published."""
    result = {}
    for name in SEVEN:
        model = tiny_network(name).eval()
        result[name] = (model, *publish(model, layout_of(name), tmp_path_factory.mktemp("published")))
    return result


@pytest.fixture
def server(originals, tmp_path, monkeypatch):
    """Both hosts on this machine with small files of the seven names, and nothing on this computer yet."""
    entries = {}
    with WeightsServer() as hosts:
        for name, (model, settings, weights) in originals.items():
            entries[name] = entry(name, settings, weights, model)
            place(hosts, entries[name], settings, weights)
        (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": entries}))
        variables = hosts.environment | {
            "FLASEPFORMER_MODELS": str(tmp_path / "models.yaml"),
            "FLASEPFORMER_HOME": str(tmp_path / "home"),
        }
        hosts.variables = variables
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("FLASEPFORMER_ACCEPT_LICENCE", raising=False)
        monkeypatch.setattr(fetching, "RETRY_SECONDS", 0.0)
        yield hosts


def fetched(name, **options):
    return obtain(find_published(name), accept_licence=True, **options)


def weights_host(name):
    return "media /.*pth" if layout_of(name) != "modelscope" else "storage"


def status(code, body=b"", **headers):
    return lambda answer: Answer(code, {key.replace("_", "-"): value for key, value in headers.items()}, body)


def answering(body, **changes):
    return lambda answer: Answer(body=body, **changes)


def broken_off(answer):
    response = answer()
    return dataclasses.replace(response, n_sent=len(response.body) // 2)


def other_bytes(answer):
    response = answer()
    return dataclasses.replace(response, body=response.body[:-1] + bytes([response.body[-1] ^ 1]))


def without_digests(answer):
    response = answer()
    return dataclasses.replace(response, body=re.sub(rb'"Sha256": "\w+"', b'"Sha256": "1"', response.body))


# The list


def test_every_entry_of_the_package_is_whole_and_names_a_set_that_can_be_prepared(monkeypatch):
    monkeypatch.delenv("FLASEPFORMER_MODELS", raising=False)
    catalogue = published_models()
    assert tuple(catalogue.models) == SEVEN
    assert set(catalogue.aliases) == {"best", "fast"}
    for model in catalogue.models.values():
        assert model.measured is not None
        assert model.commercial_use == (model.licence == "Apache-2.0")
        for score in model.scores:
            assert score.split in PUBLISHED_SETS[score.set].n_mixtures
            assert score.task in PUBLISHED_SETS[score.set].tasks
    assert catalogue.models["sepreformer-b-wsj0-2mix"].weights.size == 178_067_890
    assert catalogue.find("best").scores[0].si_snri == 22.1
    assert sum(model.weights.sha256 is not None for model in catalogue.models.values()) == 5


def test_published_models_are_listed_between_ours_and_the_random_ones():
    names = [info.name for info in list_models()]
    assert names[names.index("default-live") + 1 : names.index("fla-sepreformer-t")] == list(SEVEN)


@pytest.mark.parametrize("name", ["sepreformer-l-wham", "sepreformer-l-whamr"])
def test_a_name_that_was_never_published_says_so(name):
    with pytest.raises(PublishedError, match="its authors have not published the weights"):
        load_model(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"licence": ""}, "licence is empty"),
        ({"licence": None}, "licence is empty"),
        ({"parameters": "many"}, "parameters must be int, got 'many'"),
        ({"commercial_use": "no"}, "commercial_use must be bool"),
        ({"family": "resnet"}, "family must be one of sepreformer, tflocoformer"),
        ({"source": {"host": "ftp", "repository": "a/b", "revision": "c"}}, "host must be one of github"),
        ({"weights": {"path": "x/w.pth"}}, "files on GitHub need size and sha256"),
        ({"weights": {"path": "x/w.pth", "size": 1, "sha256": "abc"}}, "sha256 has 64 digits"),
        ({"scores": [{"set": "libri2mix"}]}, "missing 3 required"),
        ({"layout": ""}, "give either settings, or layout and config"),
        ({"settings": {"path": "x/config.yaml", "size": 1, "sha256": "0" * 64}}, "give either settings, or"),
        ({"layout": "modelscope"}, "layout must be one of sepreformer, espnet"),
        ({"config": {"n_blocks": 6, "n_heads": 5}}, "n_channels must be a multiple of n_heads"),
    ],
)
def test_an_entry_that_makes_no_sense_is_named(tmp_path, monkeypatch, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"models": {"mine": {**CATALOGUE["models"][APACHE], **change}}}))
    monkeypatch.setenv("FLASEPFORMER_MODELS", str(path))
    with pytest.raises(PublishedError, match=rf"^{re.escape(str(path))}: models: mine: .*{message}"):
        published_models()


def test_a_list_that_is_missing_or_no_list_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASEPFORMER_MODELS", str(tmp_path / "none.yaml"))
    with pytest.raises(PublishedError, match=r"none\.yaml cannot be read"):
        published_models()
    (tmp_path / "none.yaml").write_text("- a\n- b\n")
    with pytest.raises(PublishedError, match="must hold models, aliases, not_published and nothing else"):
        published_models()


def test_a_file_or_folder_here_comes_before_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_published("best").name == APACHE
    (tmp_path / "best").mkdir()
    assert find_published("best") is None
    assert find_published("default") is None


# From nothing to a model


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVEN)
def test_each_name_gives_the_network_that_was_published_and_no_request_after_that(server, originals, name):
    separator = Separator.from_pretrained(name, "cpu", accept_licence=True)
    model = originals[name][0]
    with torch.inference_mode():
        assert_close(separator.model(MIXTURE), model(MIXTURE), rtol=0, atol=0)  # row 54
    published = CATALOGUE["models"][name]
    for key in ("licence", "data", "citation"):
        assert separator.description[key] == published[key]
    server.heal()
    again = Separator.from_pretrained(name, "cpu")
    assert again.description == separator.description
    assert again.description["name"] == name
    assert server.requests == []


@pytest.mark.slow
def test_the_package_alone_goes_from_nothing_to_tracks_of_every_name(server, tmp_path):  # issue 16
    code = (
        "import sys\n"
        "for name in ('huggingface_hub', 'yaml', 'tqdm', 'accelerate', 'matplotlib', 'torchmetrics', 'av'):\n"
        "    sys.modules[name] = None\n"
        "import soundfile\n"
        "from flasepformer import Separator\n"
        f"for name in {SEVEN!r}:\n"
        "    separator = Separator.from_pretrained(name, 'cpu', accept_licence=True)\n"
        "    [*tracks] = separator.separate_file('talk.wav', name)\n"
        "    print(name, *(soundfile.info(track).frames for track in tracks))\n"
        "from flasepformer.cli import main\n"
        "sys.argv[1:] = ['talk.wav', '-o', 'default', '--device', 'cpu']\n"
        "main()\n"
    )
    entries = yaml.safe_load((tmp_path / "models.yaml").read_text())
    (tmp_path / "models.toml").write_text(_as_toml(entries))
    soundfile.write(tmp_path / "talk.wav", MIXTURE[0].numpy() / 10, 8000)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "FLASEPFORMER_MODELS": str(tmp_path / "models.toml")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *(f"{name} 500 500" for name in SEVEN),
        *(os.path.join("default", f"talk_speaker{talker}.wav") for talker in (1, 2)),
    ]


def _as_toml(content):
    """Write tables of tables of values: JSON's scalars are TOML's, but for objects."""

    def value(item):
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{key} = {value(each)}" for key, each in item.items()) + " }"
        return f"[{', '.join(map(value, item))}]" if isinstance(item, list) else json.dumps(item)

    return "".join(
        f"[models.{name}]\n" + "".join(f"{key} = {value(item)}\n" for key, item in fields.items()) + "\n"
        for name, fields in content["models"].items()
    )


@pytest.mark.slow
def test_the_local_copy_is_our_format_with_a_card_and_nothing_of_the_original(server, originals, tmp_path):
    name = "sepreformer-b-wsj0-2mix"
    folder = fetched(name)
    assert folder == tmp_path / "home/models" / name
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    weights = originals[name][2]
    assert (folder / "model.safetensors").stat().st_size < 0.5 * len(weights)  # no optimiser state
    assert not list((tmp_path / "home/downloads").rglob("*.pth"))
    card = (folder / "README.md").read_text()
    for text in ("Apache-2.0", "WSJ0-2mix", "NeurIPS 2024", hashlib.sha256(weights).hexdigest(), "| 23.8 |"):
        assert text in card
    info = model_info(folder)
    assert (info.licence, info.citation) == (
        "Apache-2.0",
        CATALOGUE["models"][name]["citation"],
    )


@pytest.mark.slow
def test_a_licence_that_forbids_commercial_use_has_to_be_accepted_and_others_do_not(server, monkeypatch):
    with pytest.raises(LicenceNotAccepted, match=r"are under CC BY-NC 4\.0, .*--accept-licence"):  # row 74
        load_model(LISTED)
    monkeypatch.setenv("FLASEPFORMER_ACCEPT_LICENCE", "no")
    with pytest.raises(LicenceNotAccepted):
        load_model(LISTED)
    assert server.requests == []
    monkeypatch.setenv("FLASEPFORMER_ACCEPT_LICENCE", "1")
    load_model(LISTED)
    monkeypatch.delenv("FLASEPFORMER_ACCEPT_LICENCE")
    load_model(LISTED)  # here already
    load_model(APACHE)


def test_a_copy_for_another_computer_is_whole_and_never_replaced(server, tmp_path):
    folder = fetched(APACHE)
    (tmp_path / "stick" / f".{APACHE}-copy-0").mkdir(parents=True)  # as a kill leaves it
    copy = export(folder, tmp_path / "stick" / APACHE)
    assert [path.name for path in copy.parent.iterdir()] == [APACHE]
    with torch.inference_mode():
        assert_close(load_model(copy)(MIXTURE), load_model(folder)(MIXTURE), rtol=0, atol=0)
    assert export(folder, copy) == copy
    (copy / "config.json").write_text("{}")
    with pytest.raises(PublishedError, match="exists and is not this model"):
        export(folder, copy)


@pytest.mark.parametrize("fault", ["cut", "config", "gone"])
def test_a_local_copy_that_was_damaged_is_fetched_anew(server, originals, fault):
    folder = fetched(APACHE)
    weights = (folder / "model.safetensors").read_bytes()
    if fault == "cut":
        (folder / "model.safetensors").write_bytes(weights[:-100])
    elif fault == "config":
        (folder / "config.json").write_text("{")
    else:
        (folder / "model.safetensors").unlink()
    assert local_copy(find_published(APACHE)) is None
    assert (fetched(APACHE) / "model.safetensors").read_bytes() == weights


def test_an_entry_that_was_changed_is_another_model(server, originals, tmp_path):
    fetched(APACHE)
    content = yaml.safe_load((tmp_path / "models.yaml").read_text())
    content["models"][APACHE]["weights"]["sha256"] = "0" * 64
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(PublishedError, match=f"is not valid.loss.*: its SHA-256 is .*, not {'0' * 64}"):
        fetched(APACHE)
    assert not list((tmp_path / "home/downloads" / APACHE).glob("*.pth*"))


def test_what_is_published_must_be_the_network_that_is_listed(server, tmp_path):
    content = yaml.safe_load((tmp_path / "models.yaml").read_text())
    content["models"][APACHE]["parameters"] = 7
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(PublishedError, match="is listed as tflocoformer of 7 parameters, but"):
        fetched(APACHE)
    assert local_copy(find_published(APACHE)) is None


# Interruptions


@pytest.mark.parametrize("name", [APACHE, LISTED])
def test_a_download_that_breaks_off_goes_on_from_there_at_once(server, originals, name):  # row 73
    server.add_fault(weights_host(name), broken_off, times=1)
    told = []
    fetched(name, notify=told.append)
    half = len(originals[name][2]) // 2
    assert server.ranges("media" if name == APACHE else "storage")[-2:] == [None, f"bytes={half}-"]
    assert re.search(rf"broke off after {half:,} of .*; trying again|broke off \(.*; trying again", told[0])


def test_a_download_that_breaks_off_for_good_goes_on_with_the_next_call(server, originals, monkeypatch):
    server.add_fault("media /.*pth", answering(b"", status=500))
    server.add_fault("media /.*pth", broken_off, times=1)
    with pytest.raises(PublishedError, match=r"status 500\. The same command goes on from there; by hand"):
        fetched(APACHE)
    server.heal()
    shares = []
    fetched(APACHE, progress=lambda done, total: shares.append(done / total))
    half = len(originals[APACHE][2]) // 2
    assert server.ranges("media")[-1] == f"bytes={half}-"
    assert shares[0] == pytest.approx(0.5, abs=0.01)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_every_byte_that_was_left_is_a_place_to_go_on(server, originals, tmp_path):
    weights, work = originals[APACHE][2], tmp_path / "home/downloads" / APACHE
    digest = hashlib.sha256(weights).hexdigest()
    for left in (0, 1, len(weights) - 1, len(weights)):
        work.mkdir(parents=True)
        (work / f"valid.loss.ave_5best.pth.{digest[:16]}.part").write_bytes(weights[:left])
        server.heal()
        folder = fetched(APACHE)
        expected = {0: [None], len(weights): []}.get(left, [f"bytes={left}-"])
        assert [wanted for line, wanted in server.requests if re.match("media .*pth", line)] == expected
        (folder / "config.json").unlink()


def test_a_host_that_cannot_go_on_sends_all_of_it_again(server, originals):
    server.add_fault("media /.*pth", lambda answer: Answer(body=originals[APACHE][2]))
    server.add_fault("media /.*pth", broken_off, times=1)
    fetched(APACHE)


@pytest.mark.parametrize("left", [b"something else", None])
def test_a_part_that_does_not_fit_is_thrown_away_and_the_file_fetched_once_more(
    server, originals, tmp_path, left
):
    weights, work = originals[APACHE][2], tmp_path / "home/downloads" / APACHE
    work.mkdir(parents=True)
    digest = hashlib.sha256(weights).hexdigest()
    part = work / f"valid.loss.ave_5best.pth.{digest[:16]}.part"
    part.write_bytes(left if left else weights + b"more than the file")
    fetched(APACHE)
    assert server.ranges("media")[-1] is None


def _fetch(environment):
    os.environ.update(environment)
    obtain(find_published(APACHE))


@pytest.fixture
def other_process(server):
    """Start a process that fetches, too."""
    processes = []

    def begin():
        processes.append(start(_fetch, {name: os.environ[name] for name in server.variables}))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.join()


def _wait_for(condition, process=None):
    for _ in range(1200):
        if condition():
            return
        assert process is None or process.exitcode is None
        time.sleep(0.025)
    raise AssertionError("it did not happen")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, *(pytest.param(n, marks=pytest.mark.long) for n in (0.2, 0.97))])
def test_a_killed_download_goes_on_from_there(server, other_process, originals, tmp_path, share):  # row 73
    half = int(share * len(originals[APACHE][2]))

    def half_and_no_more(answer):
        return dataclasses.replace(answer(), n_sent=half, stalls=True)

    server.add_fault("media /.*pth", half_and_no_more)
    work = tmp_path / "home/downloads" / APACHE
    process = other_process()
    _wait_for(lambda: any(part.stat().st_size > 0 for part in work.glob("*.pth.*.part")), process)
    time.sleep(0.2)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [part] = work.glob("*.pth.*.part")
    there = part.stat().st_size
    assert 0 < there <= half
    assert local_copy(find_published(APACHE)) is None
    server.heal()
    fetched(APACHE)
    assert server.ranges("media") == [f"bytes={there}-"]  # the settings were here already


@pytest.mark.slow
def test_of_two_processes_one_fetches_and_the_other_waits(server, other_process, originals):
    server.add_fault("media /.*pth", lambda answer: dataclasses.replace(answer(), seconds_per_part=0.15))
    process = other_process()
    _wait_for(lambda: any(line.startswith("media") and "pth" in line for line, _ in server.requests), process)
    told = []
    fetched(APACHE, notify=told.append)
    process.join(60)
    assert process.exitcode == 0
    assert told == [f"another process is fetching {APACHE}; waiting for it"]
    assert len([line for line, _ in server.requests if line.startswith("media") and "pth" in line]) == 1


# Faults


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answering(POINTER), "sends a git-LFS pointer instead of the file: its allowance for large files"),
        (answering(POINTER, has_length=False), "sends a git-LFS pointer instead of the file"),
        (answering(PAGE), "sends a web page instead of the file; a proxy or a login page"),
        (answering(PAGE, has_length=False), "sends a web page instead of the file"),
        (answering(b"x" * 5000), "has a file of 5,000 bytes, not [0-9,]+: the file there has changed"),
        (
            answering(b"x" * 5000, has_length=False),
            "has 5,000 bytes, not [0-9,]+: the file there has changed",
        ),
        (
            answering(b"x" * 10**6, has_length=False),
            "is longer than [0-9,]+ bytes: the file there has changed",
        ),
        (answering(b""), "has a file of 0 bytes"),
        (other_bytes, "its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}; it was deleted, unopened"),
        (status(403), r"does not permit it \(403\)"),
        (
            status(403, b"This repository is over its data quota."),
            "has used up its allowance for large files",
        ),
        (status(404), r"has no such file \(404\): it was moved or taken away"),
        (status(500), "answers with status 500"),
        (status(429), "answers with status 429"),
        (status(429, Retry_After="3600"), r"is asked for too much and wants 3600 s of rest \(429\)"),
        (status(418), "answers with status 418"),
        (status(302, Location="ftp://nowhere/file"), "leads to no address on the web"),
    ],
)
def test_a_fault_is_one_clear_line_and_leaves_nothing_to_be_trusted(server, tmp_path, fault, message):
    server.add_fault("media /.*pth", fault)  # rows 56, 73
    begun = time.monotonic()
    with pytest.raises(PublishedError, match=f"^{APACHE} cannot be downloaded: .*{message}") as error:
        fetched(APACHE)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, CheckpointError)
    assert time.monotonic() - begun < 12
    assert local_copy(find_published(APACHE)) is None
    parts = list((tmp_path / "home/downloads" / APACHE).glob("*.pth*"))
    assert all(part.stat().st_size == 0 for part in parts)
    server.heal()
    fetched(APACHE)


def test_a_redirect_in_circles_is_named(server):
    for host in ("github", "media"):
        server.add_fault(f"{host} /.*pth", status(302, Location=f"{server.url['github']}/a/b/raw/c/x.pth"))
    with pytest.raises(PublishedError, match="leads from one address to the next and never to the file"):
        fetched(APACHE)


@pytest.mark.parametrize("asked", ["7", "date"])
def test_a_short_rest_that_a_host_asks_for_is_taken(server, asked, monkeypatch):
    slept = []
    monkeypatch.setattr(fetching.time, "sleep", slept.append)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    wanted = date if asked == "date" else asked
    server.add_fault("media /.*pth", status(429, Retry_After=wanted), times=2)
    told = []
    fetched(APACHE, notify=told.append)
    rests = [seconds for seconds in slept if seconds]  # the server sleeps, too: not at all
    assert rests == pytest.approx([90, 90] if asked == "date" else [7, 7], abs=5)
    assert "wants" in told[0]
    assert "trying again in" in told[0]


@pytest.mark.slow
def test_a_host_that_falls_silent_is_named(server, monkeypatch):
    monkeypatch.setattr(fetching, "SILENCE_SECONDS", 0.1)
    server.add_fault("github", lambda answer: Answer(n_sent=0, stalls=True, body=b"x"))
    with pytest.raises(PublishedError, match=r"does not answer in time|broke off"):
        fetched(APACHE)


@pytest.mark.parametrize("name", [APACHE, LISTED])
def test_without_network_it_is_said_what_to_do_by_hand(server, originals, monkeypatch, tmp_path, name):
    with socket.socket() as free:  # row 55
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    for variable in ("FLASEPFORMER_GITHUB_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, nowhere)
    begun = time.monotonic()
    with pytest.raises(PublishedError, match=r"no connection to 127\.0\.0\.1:\d+ .*; by hand: put") as error:
        fetched(name)
    assert time.monotonic() - begun < 12
    urls = re.findall(rf"{nowhere}\S+", str(error.value))
    assert len(urls) == (2 if find_published(name).settings else 1)
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    if find_published(name).layout:  # beside what is under way: the same name again
        by_hand, again = tmp_path / "home/downloads" / name, name
        assert f"into {by_hand}, and give the same command again" in str(error.value)
    else:
        again = by_hand
    for url, content in zip(urls, originals[name][-len(urls) :], strict=True):
        (by_hand / re.split("[/=]|%2F", url)[-1]).write_bytes(content)
    with torch.inference_mode():
        assert_close(load_model(again)(MIXTURE), originals[name][0](MIXTURE), rtol=0, atol=0)


def test_a_proxy_of_the_environment_is_used_and_named_when_it_refuses(server, monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", server.url["github"])
    monkeypatch.setenv("FLASEPFORMER_GITHUB_ENDPOINT", "http://github.invalid")
    server.add_fault("github http://github.invalid/", status(407))
    with pytest.raises(PublishedError, match=r"github\.invalid does not permit it \(407\)"):
        fetched(APACHE)
    assert server.requests[0][0].startswith("github http://github.invalid/merlresearch/tf-locoformer/raw/")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answering(PAGE), "answers with a web page instead of a list of files"),
        (answering(b"[1]"), "lists no files: its answer has another form"),
        (answering(b'{"Code": 1, "Success": false, "Message": "no access", "Data": null}'), "no access"),
        (answering(b'{"Data": {"Files": []}}'), r"has no configuration\.json: it was moved or taken away"),
        (without_digests, "tells no SHA-256"),
        (status(404), "has no such file"),
        (broken_off, "broke off"),
    ],
)  # fmt: skip
def test_a_listing_that_is_none_is_one_clear_line(server, fault, message):
    server.add_fault("modelscope /.*files", fault)
    with pytest.raises(PublishedError, match=f"^{LISTED} cannot be downloaded: .*{message}") as error:
        fetched(LISTED)
    assert "\n" not in str(error.value)
    server.heal()
    fetched(LISTED)


@pytest.mark.slow
def test_the_digest_of_the_first_download_is_held_to(server, originals, tmp_path):
    folder = fetched(LISTED)
    record = home() / "digests" / f"{LISTED}.json"
    digest = hashlib.sha256(originals[LISTED][2]).hexdigest()
    assert json.loads(record.read_text())["sha256"]["pytorch_model.pt"] == digest
    (folder / "config.json").unlink()
    [key] = [
        key for key in server.modelscope_files if key.endswith("base_libri2mix100/master/pytorch_model.pt")
    ]
    server.modelscope_files[key] = b"another model"
    server.heal()
    with pytest.raises(
        PublishedError, match=rf"now has another pytorch_model\.pt .*delete {record} to accept"
    ):
        fetched(LISTED)
    assert server.ranges("storage") == []
    server.modelscope_files[key] = originals[LISTED][2]
    fetched(LISTED)


def test_a_place_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLASEPFORMER_HOME", str(tmp_path / "file"))
    with pytest.raises(PublishedError, match=rf"cannot be kept in {tmp_path}/file .*Not a directory"):
        fetched(APACHE)
    assert server.requests == []


def test_a_full_disk_is_said_with_what_is_needed(server, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    monkeypatch.setenv("FLASEPFORMER_HOME", str(disk))
    try:
        with pytest.raises(PublishedError, match=r"no room in .*: 0\.\d MB are needed, 0\.0 MB are free"):
            fetched("fla-sepreformer-b-libri2mix")
        assert server.ranges("storage") == []  # it is known beforehand
        monkeypatch.setattr(fetching, "_check_room", lambda folder, needed: None)
        with pytest.raises(PublishedError, match=r"no room in .*MB are needed"):
            fetched("fla-sepreformer-b-libri2mix")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", [APACHE])
def test_a_file_of_something_else_is_never_executed(server, originals, tmp_path, name):
    import pickle  # row 58

    class Malice:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    content = pickle.dumps(Malice())
    published = yaml.safe_load((tmp_path / "models.yaml").read_text())
    bad = entry(name, originals[name][1], content, originals[name][0])
    published["models"][name] = bad
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(published))
    place(server, bad, originals[name][1], content)
    with pytest.raises(CheckpointError, match="holds more than weights"):
        fetched(name)
    assert not (tmp_path / "executed").exists()
    assert local_copy(find_published(name)) is None
