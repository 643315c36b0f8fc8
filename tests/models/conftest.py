import pytest
import torch

from flasepformer.models import SepReformer, SepReformerConfig


def tiny_config(**changes):
    sizes = {
        "n_filters": 16,
        "n_channels": 8,
        "n_heads": 2,
        "n_stages": 2,
        "local_kernel_size": 5,
        "dropout": 0.0,
    }
    return SepReformerConfig(**{**sizes, **changes})


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return SepReformer(tiny_config()).eval()
