"""The mean of the weights of several validations, which often scores better than each of them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from flasepformer.models import SeparationNetwork, load_model


@torch.no_grad()
def average_checkpoints(folders: Sequence[Path]) -> SeparationNetwork:
    """Return a model whose weights are the mean of those of checkpoints of one network.

    Running statistics are averaged like weights; what is counted in whole numbers is taken from the first.

    Args:
        folders: Checkpoints in our format, at least one.
    """
    model = load_model(folders[0])
    mean = model.state_dict()  # the model's own tensors
    for n, folder in enumerate(folders[1:], start=2):
        for name, value in load_model(folder).state_dict().items():
            if value.is_floating_point():
                mean[name].lerp_(value, 1 / n)
    return model
