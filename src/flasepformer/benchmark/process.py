"""The measuring process: one task in as JSON, one answer out as JSON.

Run by `harness`, a fresh process for each measurement: `python -m flasepformer.benchmark.process TASK`.
"""

import ctypes
import gc
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from flasepformer.benchmark.cases import OK, OUT_OF_MEMORY, Case
from flasepformer.errors import is_out_of_memory

if TYPE_CHECKING:  # at run time it is loaded when it is measured
    import torch

    from flasepformer.models import SeparationNetwork

WARM_UP_SECONDS = 2.0
"""Length of the warm-up on a CPU, which sets up code and threads; a GPU warms up on the whole recording."""

LEAST_SECONDS = 0.5
"""A short pass is repeated for so long, and the median counts."""

MOST_PASSES = 50


def measure_case(case: Case, memory_limit: int, count: bool) -> dict[str, Any]:
    """Measure a case in this process.

    Args:
        case: What to measure.
        memory_limit: Bytes that model and passes together may take on the CPU; needs Linux.
        count: Count the multiply-adds too.

    Returns:
        The fields of `CaseResult` that this process knows; with the status `OUT_OF_MEMORY` only that.
    """
    import torch

    from flasepformer.models.multiply_adds import multiply_adds

    torch.set_num_threads(case.threads)
    module, function = case.builder.split(":")
    builder = getattr(import_module(module), function)  # outside the limit, as no package is the model
    try:
        with limited_address_space(memory_limit) if case.device == "cpu" else nullcontext():
            model = builder(case.model).to(case.device).eval()
            measured = _measure(model, case)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"status": OUT_OF_MEMORY}
    countable = count and getattr(model, "countable", True)
    return {**measured, "multiply_adds": multiply_adds(model, case.seconds) if countable else None}


def _measure(model: "SeparationNetwork", case: Case) -> dict[str, Any]:
    import torch

    from flasepformer.models import count_parameters, separate

    sample_rate = model.sample_rate
    n_samples = round(case.seconds * sample_rate)
    mixture = 0.1 * torch.randn(1, n_samples, generator=torch.Generator().manual_seed(0)).to(case.device)
    autocast = torch.autocast(case.device, torch.bfloat16) if case.precision == "bfloat16" else nullcontext()
    with torch.inference_mode(), autocast:
        separate(
            model, mixture[:, : round(WARM_UP_SECONDS * sample_rate) if case.device == "cpu" else n_samples]
        )
        memory = PeakMemory(case.device)
        wall_clock, processor = _time_passes(model, mixture)
        peak_memory = memory.read()
    return {
        "status": OK,
        "round_seconds": [median(wall_clock)],
        "round_cpu_seconds": [median(processor)],
        "n_passes": len(wall_clock),
        "peak_memories": [peak_memory],
        "n_parameters": count_parameters(model),
        "weight_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
    }


def _time_passes(model: "SeparationNetwork", mixture: "torch.Tensor") -> tuple[list[float], list[float]]:
    """Return wall-clock and processor time of each pass in s, at least one."""
    import torch

    from flasepformer.models import separate

    wall_clock: list[float] = []
    processor: list[float] = []
    while sum(wall_clock) < LEAST_SECONDS and len(wall_clock) < MOST_PASSES:
        started, worked = time.perf_counter(), time.process_time()
        separate(model, mixture)
        if mixture.is_cuda:
            torch.cuda.synchronize()
        wall_clock.append(time.perf_counter() - started)
        processor.append(time.process_time() - worked)
    return wall_clock, processor


class PeakMemory:
    """Peak memory from now on, in bytes above what is taken now.

    Of the allocator on a GPU; on a CPU of the whole process, as the system counts what is resident.
    """

    def __init__(self, device: str) -> None:
        self._peak = _peak_resident if device == "cpu" else _peak_allocated
        gc.collect()
        if device == "cpu":
            _reset_peak_resident()
        else:
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._before = self._peak()

    def read(self) -> int:
        """Return the peak since the start."""
        return self._peak() - self._before


def _peak_allocated() -> int:
    import torch

    return torch.cuda.max_memory_allocated()


def _reset_peak_resident() -> None:
    """Let the peak start anew from what is taken now."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what the warm-up has freed must not count as taken
    # Elsewhere than on Linux, or where it is not allowed, only what exceeds the earlier peak will be seen.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident() -> int:
    if peak := process_status("VmHWM"):
        return peak
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def limited_address_space(n_bytes: int) -> Iterator[None]:
    """Let this process take so many bytes beyond what it has now; then allocating fails, not the machine."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = process_status("VmSize") + n_bytes
    resource.setrlimit(
        resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def process_status(key: str) -> int:
    """Return a size in bytes from /proc/self/status, 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def main() -> None:
    """Do the task given as the only argument, print the answer as the only line on stdout."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a package prints on import goes to stderr
        task = json.loads(sys.argv[1])
        if "case" in task:
            answer = measure_case(Case(**task["case"]), task["memory_limit"], task["count"])
        else:
            from flasepformer.benchmark.machine import device_rates

            answer = asdict(device_rates(task["device"], task["threads"]))
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
