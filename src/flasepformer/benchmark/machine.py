"""What the machine is, and what it can do at most: arithmetic and memory traffic."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flasepformer

if TYPE_CHECKING:
    import torch

MATRIX_SIZE = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the multiplied matrices: enough to fill the device."""

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**31}
"""Size of the copied buffer, far above every cache."""

LEAST_SECONDS = 1.0
"""How long each rate is measured."""


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """The fastest that the device has been seen to work, with the threads of the benchmark."""

    device: str
    """The GPU's name, or that of the processor."""
    float32_flops: float
    """Floating-point operations per second of float32 matrix products."""
    bf16_flops: float | None
    """The same of bfloat16; None for a CPU without instructions for it."""
    bandwidth: float
    """Bytes per second read plus written by a copy."""

    def flops(self, precision: str) -> float | None:
        """Return the rate in "float32" or "bfloat16"."""
        return self.bf16_flops if precision == "bfloat16" else self.float32_flops


def device_rates(device: str, threads: int) -> MachineRates:
    """Measure the device in this process."""
    import torch

    torch.set_num_threads(threads)
    with_bf16 = device != "cpu" or bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return MachineRates(
        device=processor() if device == "cpu" else torch.cuda.get_device_name(),
        float32_flops=_matrix_flops(device, torch.float32),
        bf16_flops=_matrix_flops(device, torch.bfloat16) if with_bf16 else None,
        bandwidth=_copy_bandwidth(device),
    )


def _copy_bandwidth(device: str) -> float:
    import torch

    buffer = torch.ones(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(buffer)
    return 2 * buffer.nbytes * _calls_per_second(lambda: target.copy_(buffer), device)


def _matrix_flops(device: str, dtype: "torch.dtype") -> float:
    import torch

    size = MATRIX_SIZE[device]
    generator = torch.Generator(device).manual_seed(0)  # zeros would flatter a GPU: they take less power
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 * _calls_per_second(lambda: left @ right, device)


def _calls_per_second(call: Callable[[], Any], device: str) -> float:
    """Return the rate of the fastest call: what is sought is a limit."""
    import torch

    taken: list[float] = []
    call()  # sets things up
    while sum(taken) < LEAST_SECONDS or len(taken) < 3:
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 1 / min(taken)


def processor() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Return the instruction sets that the processor names."""
    return set(f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split())


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def describe_machine() -> dict[str, str | int | float]:
    """Return processor, cores, memory (GB) and system."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, this package, PyTorch and other packages, those that are installed."""
    found = {"python": platform.python_version(), "flasepformer": flasepformer.__version__}
    for package in ("torch", "numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
