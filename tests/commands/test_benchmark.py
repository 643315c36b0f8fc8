import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from tests.models.conftest import tiny_config
from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.installing import how_to_install
from flasepformer.models import SepReformer, save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("somewhere") / "tiny"
    save_model(SepReformer(tiny_config(n_encoder_blocks=1, n_decoder_blocks=1)), path)
    return path


def run(*options):
    return CliRunner().invoke(app, ["benchmark", *map(str, options)])


@pytest.mark.long
def test_a_checkpoint_is_measured_and_everything_is_written(checkpoint, tmp_path):
    options = ("--lengths", "0.5", "--precision", "float32,bf16", "--repeats", 1, "--threads", 1)
    options += ("--out", tmp_path / "new")
    result = run(checkpoint, *options)
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"benchmark.csv", "benchmark.md", "benchmark.json", "time.png", "memory.png"}
    with (tmp_path / "new/benchmark.csv").open() as file:
        row, in_bf16 = csv.DictReader(file)
    for measured, precision in ((row, "float32"), (in_bf16, "bfloat16")):
        settings = tuple(measured[column] for column in ("model", "seconds", "precision", "status"))
        assert settings == ("tiny", "0.5", precision, "ok")
    factor = float(row["time_median_seconds"]) / 0.5
    assert float(row["real_time_factor"]) == pytest.approx(factor, rel=1e-4)
    assert float(row["arithmetic_limit_real_time_factor"]) < factor
    content = json.loads((tmp_path / "new/benchmark.json").read_text())
    assert content["command"].startswith("flasepformer benchmark tiny --lengths 0.5 --device cpu")
    assert "--precision float32,bfloat16" in content["command"]
    assert "bf16 is called bfloat16 now" in result.stderr
    rates = content["machine"]["rates"]
    assert 1e8 < rates["float32_flops"] < 1e12  # one core
    assert 1e8 < rates["bandwidth"] < 1e12
    assert "somewhere" not in (tmp_path / "new/benchmark.json").read_text()
    assert "| tiny | 0.5 s | float32 |" in result.stdout
    assert run(checkpoint, *options).exit_code == 2  # the results exist now


def test_a_model_that_does_not_exist_exits_with_3_and_the_names(tmp_path):
    result = run("fla-sepreformer-xxl", "--out", tmp_path / "new")
    assert result.exit_code == 3
    assert "fla-sepreformer-xxl" in result.stderr
    assert "fla-sepreformer-t" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give at least one MODEL"),
        (
            ("default", "--precision", "float32,fp8"),
            "--precision must be float32, bfloat16 or float32,bfloat16",
        ),
        (("default", "--paper"), "--paper has its own models"),
        (("default", "--lengths", "4;16"), "numbers with commas"),
        (("default", "--lengths", "0"), "must be positive"),
        (("--peers", "nobody"), "no peer is called 'nobody'"),
    ],
)
def test_wrong_usage_exits_with_2(options, message, tmp_path):
    result = run(*options, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_folder_that_cannot_be_made_exits_with_3(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("default", "--out", tmp_path / "file/new")
    assert (result.exit_code, result.stderr) == (3, f"error: {tmp_path / 'file/new'}: Not a directory\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_exits_with_3_before_any_work(tmp_path):
    result = run("default", "--device", "cuda", "--out", tmp_path / "new")
    assert (result.exit_code, "no CUDA device" in result.stderr) == (3, True)
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_ctrl_c_exits_with_130_and_keeps_what_was_measured(checkpoint, tmp_path):
    command = [
        sys.executable,
        "-m",
        "flasepformer",
        "benchmark",
        checkpoint,
        "--lengths",
        "0.5,1,2,3,4,5,6,7",
    ]
    process = subprocess.Popen([*command, "--out", tmp_path], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("tiny 0.5 s")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "interrupted; what was measured is in" in process.stderr.read()
    with (tmp_path / "benchmark.csv").open() as file:
        statuses = [row["status"] for row in csv.DictReader(file)]
    assert statuses[0] == "ok"
    assert statuses[-1] == "not run"


@pytest.mark.long
def test_the_gpu_script_runs_from_a_bare_checkout(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('soundfile', 'soxr', 'typer', 'matplotlib', 'av', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"src{os.pathsep}{tmp_path}"}
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--device",
        "cpu",
        "--lengths",
        "0.1",
        "--minutes",
        "0.01",
    ]
    process = subprocess.run(
        [*command, "--out", tmp_path / "new"], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert f"plots need matplotlib: {how_to_install('plot')}" in process.stderr
    with (tmp_path / "new/benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["model"] == "fla-sepreformer-t"
    assert rows[0]["status"] == "ok"
    assert len(rows) == 6 + 3 + 6
    assert rows[-1]["status"] == "not run: no time left"
