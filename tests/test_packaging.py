import json
import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def test_plain_listening_needs_at_most_six_packages():  # issue 16
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy", "soundfile", "soxr", "safetensors", "typer"}
    assert project["authors"]
    assert project["urls"]
    assert "Typing :: Typed" in project["classifiers"]


@pytest.mark.slow
def test_the_example_notebook_runs_from_top_to_bottom(monkeypatch):  # issue 16
    notebook = json.loads((PROJECT / "examples" / "two_talkers.ipynb").read_text())
    monkeypatch.chdir(PROJECT / "examples")
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert names["tracks"].shape == (2, len(names["mixture"]))
    assert float(names["improvement"].mean()) > 5


def test_the_dockerfile_names_what_is_there():  # issue 16; no container is built here
    text = re.sub(r"\\\n", " ", (PROJECT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for line in lines:
        word, _, rest = line.partition(" ")
        assert word in ("FROM", "WORKDIR", "COPY", "ARG", "RUN", "ENTRYPOINT", "CMD")
        if word == "COPY":
            assert all((PROJECT / source).exists() for source in rest.split()[:-1])
    assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2]) == [
        *project["scripts"]
    ]
    (run,) = (line for line in lines if line.startswith("RUN"))
    assert run.index("${TORCH}") < run.index(
        "[media]"
    )  # the build of torch is chosen before anything needs it
    assert set(re.findall(r"\[(\w+)\]", run)) <= set(project["optional-dependencies"])
    copied = {source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]}
    assert {project["readme"], *project["license-files"], "pyproject.toml", "src"} <= copied
