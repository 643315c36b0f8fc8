"""Cost grows linearly with the recording: counted, not timed, so that a busy machine changes nothing."""

import torch
from tests.models.conftest import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flasepformer.models import SepReformer


class LargestTensor(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return result


def cost(model, n_samples):
    with torch.no_grad(), LargestTensor() as largest, FlopCounterMode(display=False) as flops:
        model(torch.randn(1, n_samples))
    return largest.n_elements, flops.get_total_flops()


def test_no_tensor_grows_faster_than_the_recording():
    model = SepReformer(tiny_config()).eval()
    n_samples = 24_000  # 6,000 frames: a tensor of frames x frames would have 36 million elements
    (short, short_flops), (long, long_flops) = cost(model, n_samples), cost(model, 2 * n_samples)
    assert long <= 2.01 * short
    assert long_flops <= 2.01 * short_flops
    assert short < 100 * n_samples
