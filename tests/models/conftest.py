import pytest
import torch
from tests.networks import TINY

from flasepformer.models import SepReformer, SepReformerConfig


def tiny_config(**changes):
    return SepReformerConfig(**{**TINY, "dropout": 0.0, **changes})


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return SepReformer(tiny_config()).eval()
