"""Which precision a run trains in."""

from typing import Literal

import torch

from flasepformer.inference.precisions import judge_precision, slowdown

Precision = Literal["no", "bf16"]


def resolve_precision(setting: Literal["no", "bf16", "auto"], device: torch.device) -> tuple[Precision, str]:
    """Return the precision to train in, and what was measured; of "auto" bfloat16 where it is clearly faster.

    Processors without bfloat16 in hardware emulate it, some of them fifty times slower than float32.
    """
    if setting != "auto":
        return setting, ""
    times = slowdown(device, "bfloat16")
    found: Precision = "bf16" if judge_precision("auto", times, device)[0] == "bfloat16" else "no"
    return found, f"precision auto: {found!r}; bfloat16 takes {times:.2g} times as long as float32 here"
