"""Keep single mixtures from making up most of a batch's gradient."""

import torch
from torch import Tensor, nn

from flasepformer.models.network import Block


class GradientBalance:
    """Limits what each mixture of a batch sends back through the blocks of a network.

    A mixture in which the network is undecided sends back up to twenty times the gradient of others, although
    its loss is as steep: the difference arises from block to block. At the output of every block the gradient
    of each mixture is scaled down to `limit` times the median of its batch. Where a batch has fewer than
    three, nothing changes.

    Args:
        network: Its blocks are watched from now on.
        limit: A positive number of medians.
    """

    def __init__(self, network: nn.Module, limit: float) -> None:
        self.limit = limit
        self.n_mixtures = 0
        """In the batch that goes through the network next."""
        for block in network.modules():
            if isinstance(block, Block):
                *_, last = block.layers()
                last.register_forward_hook(self._watch)

    def _watch(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.requires_grad and self.n_mixtures >= 3:
            output.register_hook(self._balanced)

    def _balanced(self, gradient: Tensor) -> Tensor:
        by_mixture = gradient.reshape(self.n_mixtures, -1)  # talkers and bins lie behind their mixture
        norms = torch.linalg.vector_norm(by_mixture, dim=1, dtype=torch.float32)
        scales = (self.limit * norms.median() / norms.clamp(min=1e-20)).clamp(max=1.0)
        return (by_mixture * scales.to(gradient.dtype).unsqueeze(1)).view_as(gradient)
