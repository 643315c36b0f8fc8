"""Train on long segments in less memory: compute activations a second time instead of keeping them."""

from torch import nn

from flasepformer.models import SeparationNetwork


def checkpoint_activations(model: nn.Module) -> None:
    """Let every layer keep its input only, and compute the rest again in the backward pass.

    Gradients, dropout and running statistics are the same, and so are the names of the weights.

    Args:
        model: A network of one of the families, or a module with some in it.
    """
    for module in model.modules():
        if isinstance(module, SeparationNetwork):
            module.recompute = True
