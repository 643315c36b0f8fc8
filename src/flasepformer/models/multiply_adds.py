"""Count the multiply-adds of a model, without computing anything."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from flasepformer.models.network import SeparationNetwork


def multiply_adds(model: SeparationNetwork, seconds: float) -> int:
    """Count the multiply-adds that separating one recording takes.

    Those of matrix products, convolutions, attention and recurrent layers count; element-wise work,
    normalisations and Fourier transforms do not, as is the custom. Only shapes pass through the network, so
    nothing is computed or allocated, however long the recording.

    Args:
        model: A network with a `sample_rate` in Hz, on any device; it stays as it is.
        seconds: Length of the recording.

    Returns:
        Multiply-adds; the floating-point operations are twice as many.
    """
    with FakeTensorMode():  # everything made in here is a shape without numbers
        weights: dict[str, Tensor] = {
            name: nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)
            for name, parameter in model.named_parameters()
        }
        for name, buffer in model.named_buffers():
            weights[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        mixture = torch.empty(1, round(seconds * model.sample_rate))
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with torch.inference_mode(False), torch.enable_grad(), counter:
            functional_call(model, weights, (mixture,))
    return counter.get_total_flops() // 2


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **options: Any
) -> int:
    """Count scores and averages, from shapes (..., frames, dim)."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""PyTorch's counter knows the attention kernels of GPUs only."""
