"""Is half precision any faster here? Many processors only emulate it; it is measured once for each device."""

import math
import time
from functools import cache
from typing import Literal, get_args

import torch

from flasepformer.errors import InputError
from flasepformer.inference.devices import DeviceError, pick_device
from flasepformer.inference.execution import Precision

SLOWER = 1.2
"""From this many times the time of float32 on, half precision is worth a warning."""

UNUSABLE = 20.0
"""And from this many times on it is refused: what takes a minute would take the afternoon."""

WORTHWHILE = 0.8
"""Share of the time of float32 up to which "auto" takes half precision."""

_N_ROUNDS = 3
_SIZE, _LONGEST_SECONDS = 384, 2.0


def pick_precision(
    precision: Precision | Literal["auto"] = "auto", device: str | torch.device = "auto"
) -> tuple[Precision, tuple[str, ...]]:
    """Return the precision to use on a device, and what is to be said against it.

    Args:
        precision: "auto" takes bfloat16 where it is clearly faster than float32.
        device: See `pick_device`.

    Raises:
        DeviceError: The device only emulates that precision, so slowly that nobody would wait.
        InputError: There is no such precision.
    """
    if precision not in ("auto", *get_args(Precision)):
        raise InputError(f"precision must be auto, {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "float32":
        return precision, ()
    chosen = pick_device(device)
    return judge_precision(
        precision, slowdown(chosen, "bfloat16" if precision == "auto" else precision), chosen
    )


def judge_precision(
    precision: Precision | Literal["auto"], times: float, device: torch.device
) -> tuple[Precision, tuple[str, ...]]:
    """Decide as `pick_precision` does, given that half precision takes so many times as long as float32."""
    if precision == "auto":
        return ("bfloat16" if times < WORTHWHILE else "float32"), ()
    if times >= UNUSABLE:
        raise DeviceError(
            f"{precision} is only emulated on {device}, {times:.0f} times slower than float32 or more; "
            "use float32, or auto"
        )
    if times > SLOWER:
        return precision, (
            f"{precision} is only emulated on {device}, {times:.1f} times slower than float32",
        )
    return precision, ()


@cache
def slowdown(device: torch.device, precision: Precision) -> float:
    """Measure how many times longer a product and a convolution take than in float32."""
    return _seconds(device, precision, _LONGEST_SECONDS) / max(_seconds(device, "float32", math.inf), 1e-9)


def _seconds(device: torch.device, precision: Precision, longest: float) -> float:
    """Return the least time of a few rounds; one that takes very long is the last."""
    x = torch.ones(1, _SIZE, _SIZE, device=device)
    kernel = torch.ones(_SIZE, 1, 33, device=device)
    low = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
    best = math.inf
    with torch.inference_mode(), low:
        for _ in range(_N_ROUNDS + 1):  # the first one has more to do than to compute
            started = time.perf_counter()
            (torch.nn.functional.conv1d(x @ x, kernel, groups=_SIZE) @ x[..., : _SIZE - 32].mT).sum().item()
            best = min(best, time.perf_counter() - started)
            if best > longest:
                break
    return best
