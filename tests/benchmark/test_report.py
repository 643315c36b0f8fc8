import csv
import json
import sys

import pytest
from tests.benchmark.conftest import result

from flasepformer.benchmark import MachineRates, Report, draw_plots, fit_slope

RATES = MachineRates(device="a CPU", float32_flops=1e11, bf16_flops=None, bandwidth=1e10)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_slope_of_a_power_law_is_its_exponent(power):
    lengths = [4, 16, 30, 60]
    assert fit_slope(lengths, [0.3 * length**power for length in lengths]) == pytest.approx(power)


def test_no_slope_without_two_lengths():
    assert fit_slope([4, 4], [1.0, 2.0]) is None
    assert fit_slope([4, 8], [1.0, 0.0]) is None


@pytest.fixture
def report():
    return Report(
        results=[
            result("/home/someone/best", seconds=4.0, time=1.0, memory=50e6),
            result("/home/someone/best", seconds=16.0, time=4.0, memory=100e6),
            result("sepreformer-t", seconds=16.0, status="out of memory"),
        ],
        rates=RATES,
        machine={"processor": "a CPU", "cores": 2},
        versions={"torch": "2.13.0"},
        command="flasepformer benchmark best sepreformer-t",
        settings={"rounds": 3},
    )


def test_a_row_for_every_case_with_its_settings(report, tmp_path):
    report.write(tmp_path / "new")
    with (tmp_path / "new/benchmark.csv").open() as file:
        short, long, failed = csv.DictReader(file)
    assert short["model"] == "best"
    assert [float(short[name]) for name in ("seconds", "threads", "rounds")] == [4, 1, 3]
    times = [float(short[f"time_{name}_seconds"]) for name in ("median", "min", "max")]
    assert times == pytest.approx([1.0, 0.8, 1.2])
    assert float(short["real_time_factor"]) == 0.25
    assert float(short["peak_memory_mb"]) == 50
    assert float(short["multiply_adds_per_second_of_audio"]) == 5e9
    # 5 G multiply-adds are 10 GFLOP per second of audio: a tenth of a second at 100 GFLOP/s
    assert float(long["arithmetic_limit_real_time_factor"]) == pytest.approx(0.1)
    assert float(long["times_the_limit"]) == pytest.approx(2.5)
    assert (failed["status"], failed["time_median_seconds"]) == ("out of memory", "")


def test_the_markdown_says_the_same(report):
    lines = report.as_markdown().splitlines()
    assert lines[2] == ("| best | 4 s | float32 | 1 s (0.8 to 1.2) | 0.25 | 0.1 | 2.5 | 50 MB | 5.00 G |")
    assert lines[4].startswith("| sepreformer-t | 16 s | float32 | out of memory |  |")
    assert "| best | 1 | 0.5 |" in lines  # time is linear, memory grows with the square root
    assert "float32 products 100 GFLOP/s" in report.as_markdown()


def test_no_file_names_a_folder_of_the_machine(report, tmp_path):
    paths = report.write(tmp_path)
    assert {path.name for path in paths} == {"benchmark.csv", "benchmark.md", "benchmark.json"}
    for path in paths:
        assert "someone" not in path.read_text()
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["slopes"]["best"]["time"] == pytest.approx(1.0)
    assert content["machine"]["rates"]["float32_flops"] == 1e11
    assert content["rounds"]["best 4 s float32"]["peak_bytes"] == [50_000_000] * 3


def test_plots_are_drawn_with_the_slope_in_the_legend(report, tmp_path):
    for path in draw_plots(report, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.png", "time.png"]


def test_without_matplotlib_the_extra_is_named(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'plots need matplotlib: pip install .*\[plot\]"'):
        draw_plots(report, tmp_path)
