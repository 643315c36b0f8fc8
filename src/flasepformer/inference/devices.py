"""Choose where the model runs, and say why when a device cannot be used."""

import warnings
from collections.abc import Callable

import torch

from flasepformer.errors import FlasepformerError

_IS_AVAILABLE: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}


class DeviceError(FlasepformerError, RuntimeError):
    """The device that was asked for cannot be used; the message says why and what to do."""


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return a device that has just worked.

    Args:
        device: "auto" takes CUDA, then MPS, then the CPU, the first that works; or a name such as "cpu",
            "cuda", "cuda:1", "mps".

    Raises:
        DeviceError: A device named outright is unknown, absent or broken. "auto" only warns of one.
    """
    if device == "auto":
        for kind in _IS_AVAILABLE:
            found, fault = _probe(torch.device(kind))
            if found:
                return found
            if fault:
                warnings.warn(f"{kind} cannot be used ({fault}); working on another device", stacklevel=2)
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeviceError(f"no device is called {device!r}; use auto, cpu, cuda or mps") from error
    found, fault = _probe(chosen)
    if not found:
        raise DeviceError(
            f"device {chosen} cannot be used ({fault or 'not on this machine'}); use auto or cpu"
        )
    return found


def _probe(device: torch.device) -> tuple[torch.device | None, str]:
    """Return the device with its index if it works, and what PyTorch says of one that is there but broken."""
    fault = ""
    with warnings.catch_warnings(record=True) as said:  # a driver that does not fit is only warned about
        warnings.simplefilter("always")
        try:
            if _IS_AVAILABLE.get(device.type, lambda: True)():
                return torch.zeros(1, device=device).device, ""
        except RuntimeError as error:
            fault = str(error)
    fault = fault or "".join(str(warning.message) for warning in said[:1])
    return None, fault.split("\n")[0]
