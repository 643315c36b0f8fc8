import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_plain_listening_needs_at_most_six_packages():  # issue 16
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy", "soundfile", "soxr", "safetensors", "typer"}
    assert project["authors"]
    assert project["urls"]
    assert "Typing :: Typed" in project["classifiers"]


def test_a_recording_is_separated_without_hub_yaml_or_bars(tmp_path):  # issue 16
    code = (
        "import sys\n"
        "for name in ('huggingface_hub', 'yaml', 'tqdm', 'accelerate', 'matplotlib', 'torchmetrics'):\n"
        "    sys.modules[name] = None\n"
        "import numpy, soundfile\n"
        "noise = 0.1 * numpy.random.default_rng(0).standard_normal(8000)\n"
        "soundfile.write(sys.argv[1] + '/talk.wav', noise, 8000)\n"
        "from flasepformer.cli import main\n"
        "sys.argv[1:] = [sys.argv[1] + '/talk.wav', '-o', sys.argv[1] + '/out', '--device', 'cpu']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
