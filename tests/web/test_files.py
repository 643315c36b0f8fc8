"""The page is whole, built from the sources that lie beside it, and can be written anywhere."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from flasepformer.inference.post_filter import HOP_SECONDS
from flasepformer.models import load_filter, load_model
from flasepformer.models.filter_network import CONTEXT
from flasepformer.web import PageError, page_files, write_page

ROOT = Path(__file__).parents[2]


def test_the_built_page_is_that_of_the_sources():
    built = json.loads((ROOT / "src/flasepformer/web/built.json").read_text())
    web = ROOT / "web"
    names = {"build.mjs", "package-lock.json", *(f"src/{path.name}" for path in (web / "src").iterdir())}
    assert set(built) == names, "run `make page`"
    for name, digest in built.items():
        assert hashlib.sha256((web / name).read_bytes()).hexdigest() == digest, f"{name}: run `make page`"


def test_what_was_vendored_is_pinned_with_its_digest():
    locked = json.loads((ROOT / "web/package-lock.json").read_text())["packages"]
    assert {"node_modules/onnxruntime-web", "node_modules/mediabunny"} <= set(locked)
    assert all("integrity" in about for name, about in locked.items() if name)
    licences = page_files()["licences.txt"].read().decode()
    for name in ("onnxruntime-web", "mediabunny"):
        assert f"{name} {locked[f'node_modules/{name}']['version']}, " in licences


def test_no_file_of_the_page_names_another_address_to_load_from():
    for name in ("index.html", "style.css", "main.js", "sw.js", "tap.js", "manifest.webmanifest"):
        text = page_files()[name].read().decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text.replace("https, or 127.0.0.1", "")


MODELS = [("default", "model.json"), ("default-live", "live.json")]


@pytest.mark.parametrize(("name", "file"), MODELS)
def test_the_page_knows_its_models(name, file):
    about, network = json.loads(page_files()[file].read()), load_model(name)
    for fact in about.keys() - {"name", "licence", "graph", "weights", "late_graph", "late_steps", "filter"}:
        assert about[fact] == getattr(network, fact)
    assert about["name"] == name
    assert {"sample_rate", "n_sources", "hop_length", "window_length", "frames_per_step"} <= set(about)
    assert ("lag" in about) == network.causal


def test_the_page_knows_the_filter_behind_its_model():
    about, network = json.loads(page_files()["model.json"].read())["filter"], load_filter("default")
    assert (about["n_bins"], about["context"]) == (network.n_bins, CONTEXT)
    assert about["hop_length"] == HOP_SECONDS * 8000
    assert {about["graph"], about["weights"]} <= set(page_files())


@pytest.mark.slow
def test_a_late_stream_gets_the_numbers_of_one_that_is_not(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    files, about = page_files(), json.loads(page_files()["live.json"].read())
    weights = files[about["weights"]].read()
    (tmp_path / "weights").write_bytes(weights[8 + int.from_bytes(weights[:8], "little") :])
    sessions = []
    for name in (about["graph"], about["late_graph"]):
        (tmp_path / name).write_bytes(files[name].read())
        sessions.append(
            onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        )
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    zeros = {i.name: np.zeros(i.shape, types[i.type]) for i in sessions[0].get_inputs()[1:]}
    n, n_steps = about["hop_length"] * about["frames_per_step"], about["late_steps"]
    samples = 0.1 * np.random.default_rng(0).standard_normal((1, n_steps * n)).astype(np.float32)
    states, estimates = [zeros, zeros], [[], []]
    for which, blocks in enumerate([np.split(samples, n_steps, axis=1), [samples]]):
        for block in blocks:
            done, *after = sessions[which].run(None, {"samples": block, **states[which]})
            estimates[which].append(done)
            states[which] = dict(zip(zeros, after, strict=True))
    one_by_one, at_once = (np.concatenate(done, axis=-1) for done in estimates)
    assert at_once == pytest.approx(one_by_one, abs=1e-4 * float(np.abs(one_by_one).max()))
    for name in zeros:
        bound = 1e-4 * max(float(np.abs(states[0][name]).max()), 1e-3)
        assert states[1][name] == pytest.approx(states[0][name], abs=bound), name


@pytest.mark.parametrize(("name", "file"), MODELS)
def test_the_graphs_of_the_page_take_their_weights_from_where_they_lie_in_the_package(name, file):
    about = json.loads(page_files()[file].read())
    for graph in {about["graph"], about.get("late_graph", about["graph"])}:
        check_weights(graph, about)


def check_weights(name, about):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(page_files()[name].read()).graph
    weights = page_files()[about["weights"]].read()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    outside = [tensor for tensor in graph.initializer if tensor.external_data]
    assert len(outside) == sum(place["dtype"] == "F16" for place in header.values())
    for tensor in outside:
        place = header[tensor.name.removeprefix("network.").removesuffix(".half")]
        told = {entry.key: entry.value for entry in tensor.external_data}
        assert list(tensor.dims) == place["shape"]
        assert int(told["offset"]) == place["data_offsets"][0]
        assert int(told["length"]) == place["data_offsets"][1] - place["data_offsets"][0]


def test_the_page_is_written_whole_and_over_an_earlier_one_but_not_among_other_files(tmp_path):
    folder = tmp_path / "page"
    assert len(write_page(folder)) == len(page_files())
    write_page(folder)
    listed = json.loads((folder / "files.json").read_text())
    for name, integrity in listed["files"].items():
        digest = hashlib.sha256((folder / name).read_bytes()).digest()
        assert integrity == "sha256-" + base64.b64encode(digest).decode()
    assert sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    ) == sorted(page_files())
    (tmp_path / "mine.txt").touch()
    with pytest.raises(PageError, match="something else"):
        write_page(tmp_path)
    with pytest.raises(PageError, match="is a file"):
        write_page(tmp_path / "mine.txt")
