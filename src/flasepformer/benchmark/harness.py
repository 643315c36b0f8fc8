"""Run every measurement in a process of its own, within limits of time and memory."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from flasepformer.benchmark.cases import FAILED, KILLED, NOT_RUN, TIME_LIMIT, Case, CaseResult
from flasepformer.benchmark.machine import MachineRates

MEMORY_SHARE = 0.8
"""Share of the free memory that a case may take unless told otherwise."""


def available_memory() -> int:
    """Return the bytes that a new process can take without swapping, in the limit of its control group."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (_control_group_bytes(name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, max(0, limit - used))


def _control_group_bytes(name: str) -> int | None:
    path = Path("/sys/fs/cgroup") / name
    content = path.read_text().strip() if path.exists() else "max"
    return None if content == "max" else int(content)


def run_cases(
    results: Sequence[CaseResult],
    *,
    n_rounds: int,
    time_limit: float,
    memory_limit: int,
    time_budget: float = inf,
    report: Callable[[CaseResult], None] = lambda result: None,
) -> None:
    """Measure cases, round after round, each time in a fresh process, and fill in their results.

    A case that fails says so in its status and is not tried again, nor are longer recordings of its model.

    Args:
        results: The cases, in the order to run them; filled in as the work goes on, so that an interruption
            leaves what was measured.
        n_rounds: Measurements of each case.
        time_limit: Seconds that one measurement may take, loading included.
        memory_limit: Bytes that a measurement on the CPU may take.
        time_budget: Seconds after which no further measurement starts.
        report: Called after every measurement.
    """
    started = time.monotonic()
    for n_round in range(n_rounds):
        for result in results:
            if n_round > 0 and not result.ok:
                continue
            shorter = next((r for r in results if r.failed and result.case.is_longer_than(r.case)), None)
            if shorter is not None:
                result.status = f"{NOT_RUN}: {shorter.status} at {shorter.case.seconds:g} s"
            elif time.monotonic() - started <= time_budget:
                add_round(result, run_case(result.case, time_limit, memory_limit, count=n_round == 0))
                report(result)
            elif n_round == 0:
                result.status = f"{NOT_RUN}: no time left"


def add_round(result: CaseResult, measured: dict[str, Any]) -> None:
    """Join one round's measurement to what earlier rounds gave."""
    result.status, result.error = measured["status"], measured.get("error", "")
    if result.ok:
        result.round_seconds += measured["round_seconds"]
        result.round_cpu_seconds += measured["round_cpu_seconds"]
        result.peak_memories += measured["peak_memories"]
        result.n_passes += measured["n_passes"]
        result.n_parameters, result.weight_bytes = measured["n_parameters"], measured["weight_bytes"]
        result.multiply_adds = measured["multiply_adds"] or result.multiply_adds


def run_case(case: Case, time_limit: float, memory_limit: int, *, count: bool = True) -> dict[str, Any]:
    """Measure a case once, in a fresh process.

    Args:
        case: What to measure.
        time_limit: Seconds until the process is ended.
        memory_limit: Bytes that it may take on the CPU.
        count: Count the multiply-adds too.

    Returns:
        "status"; where it is `OK` also the measured fields of `CaseResult`, where it is `FAILED` "error".
    """
    task = {"case": asdict(case), "memory_limit": memory_limit, "count": count}
    try:
        process = _run(task, case.threads, time_limit)
    except subprocess.TimeoutExpired:
        return {"status": TIME_LIMIT}
    if process.returncode == 0:
        measured: dict[str, Any] = json.loads(process.stdout)
        return measured
    if process.returncode < 0:  # the system ends a process with SIGKILL where memory runs out
        return {"status": f"{KILLED} by {signal.Signals(-process.returncode).name}"}
    return {"status": f"{FAILED}: {_error_name(process.stderr)}", "error": process.stderr}


def measure_machine(device: str, threads: int) -> MachineRates:
    """Measure in a fresh process what the device can do at most.

    Raises:
        RuntimeError: If the device cannot be used; the message is PyTorch's.
    """
    process = _run({"device": device, "threads": threads}, threads, time_limit=300.0)
    if process.returncode != 0:
        raise RuntimeError(process.stderr.strip().splitlines()[-1])
    return MachineRates(**json.loads(process.stdout))


def _run(task: dict[str, Any], threads: int, time_limit: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flasepformer.benchmark.process", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return subprocess.run(command, capture_output=True, text=True, timeout=time_limit, env=environment)


def _error_name(traceback: str) -> str:
    """Return the exception's type from the last line of a traceback, without its message."""
    return traceback.strip().splitlines()[-1].split(":")[0].rsplit(".", 1)[-1]
