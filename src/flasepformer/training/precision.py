"""Which precision a machine computes faster in, measured where a run starts."""

import time
from typing import Literal

import torch

Precision = Literal["no", "bf16"]

_SHAPES = (
    (2000, 128, 1024),
    (2000, 512, 256),
    (512, 128, 128),
)  # of the default network and of Muon
_N_REPEATS = 5


def matmul_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return how long a few matrix products take, the least of several times."""
    pairs = [
        (torch.ones(n, k, device=device, dtype=dtype), torch.ones(k, m, device=device, dtype=dtype))
        for n, k, m in _SHAPES
    ]
    times = []
    for _ in range(_N_REPEATS + 1):  # the first one is slower
        started = time.perf_counter()
        for a, b in pairs:
            product = a @ b
        float(product[0, 0])  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times)


def resolve_precision(setting: Literal["no", "bf16", "auto"], device: torch.device) -> tuple[Precision, str]:
    """Return the precision to train in, and what was measured; of "auto" the one that multiplies faster.

    Processors without bfloat16 in hardware emulate it, some of them several times slower than float32.
    """
    if setting != "auto":
        return setting, ""
    half, single = (matmul_seconds(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    found: Precision = "bf16" if half < single else "no"
    return found, (
        f"precision auto: {found!r}; matrix products take {1e3 * half:.2f} ms in bfloat16 "
        f"and {1e3 * single:.2f} ms in float32"
    )
