import errno
import os
import resource

import pytest
import torch

from flasepformer.benchmark import (
    Case,
    CaseResult,
    MachineRates,
    available_memory,
    measure_machine,
    run_case,
    run_cases,
)
from flasepformer.benchmark.process import measure_case
from flasepformer.errors import is_out_of_memory

GB, MB = 10**9, 10**6


@pytest.mark.slow
def test_the_peak_of_a_known_allocation_is_measured(fake_builder):
    measured = run_case(Case(model="takes-300-mb", seconds=1.0, builder=fake_builder), 100.0, 4 * GB)
    assert measured["status"] == "ok"
    assert measured["peak_memories"][0] == pytest.approx(300e6, rel=0.1)
    assert measured["multiply_adds"] == 0


def test_a_case_that_needs_more_than_the_limit_is_out_of_memory(fake_builder, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    case = Case(model="takes-4-gb", seconds=1.0, builder=fake_builder)
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert measure_case(case, 2 * GB, count=False) == {"status": "out of memory"}
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.long
def test_packages_that_count_the_multiply_adds_are_not_what_the_limit_is_for(fake_builder):
    measured = run_case(Case(model="takes-little", seconds=1.0, builder=fake_builder), 100.0, 50 * MB)
    assert (measured["status"], measured["multiply_adds"]) == ("ok", 3000)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (SystemError("error return without exception set"), True),  # measured: imports under a limit
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ImportError("No module named 'x'"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected
    wrapped = RuntimeError("the model cannot be loaded")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) == expected


@pytest.mark.slow
def test_a_case_that_breaks_is_told_by_its_error_and_the_message_is_kept_apart(fake_builder):
    measured = run_case(Case(model="breaks", seconds=1.0, builder=fake_builder), 100.0, 2 * GB)
    assert measured["status"] == "failed: ValueError"
    assert measured["error"].rstrip().endswith("ValueError: /home/someone/secret.wav is odd")


@pytest.mark.slow
def test_a_case_that_the_system_ends_is_told_by_the_signal(fake_builder):
    case = Case(model="is-killed", seconds=1.0, builder=fake_builder)
    assert run_case(case, 100.0, 2 * GB) == {"status": "killed by SIGKILL"}


def test_a_case_past_the_time_limit_is_a_row_and_longer_ones_are_not_tried():
    names = [("default", 2.0), ("default", 9.0), ("fla-sepreformer-t", 1.0)]
    results = [CaseResult(case=Case(model=model, seconds=seconds)) for model, seconds in names]
    measured = []
    run_cases(results, n_rounds=2, time_limit=0.05, memory_limit=GB, report=measured.append)
    assert [r.status for r in results] == ["time limit", "not run: time limit at 2 s", "time limit"]
    assert measured == [results[0], results[2]]


def test_no_measurement_starts_past_the_time_budget():
    results = [CaseResult(case=Case(model="default", seconds=1.0))]
    run_cases(results, n_rounds=2, time_limit=9.0, memory_limit=GB, time_budget=-1.0)
    assert results[0].status == "not run: no time left"
    assert not results[0].broken


def test_a_precision_has_its_rate():
    """That the rates are measured, and what they can be: see tests/commands/test_benchmark.py."""
    rates = MachineRates(device="cpu", float32_flops=2e9, bf16_flops=None, bandwidth=1e9)
    assert (rates.flops("float32"), rates.flops("bfloat16")) == (2e9, None)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_device_that_is_not_there_is_an_error_with_its_reason():
    with pytest.raises(RuntimeError, match=r"CUDA|NVIDIA"):
        measure_machine("cuda", threads=1)


def test_free_memory_is_no_more_than_the_control_group_allows():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < available_memory() < total
