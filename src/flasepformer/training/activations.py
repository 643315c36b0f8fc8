"""Train on long segments in less memory: compute activations a second time instead of keeping them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> None:
    """Let every block keep its input only, and compute the rest again in the backward pass.

    Gradients, dropout and running statistics are the same, and so are the names of the weights. A copy made
    of the model afterwards would run the original's blocks: copy first.

    Args:
        model: A network of one of the families; its blocks are the modules whose class is named `...Block`,
            the innermost ones.
    """
    for block in [block for block in _blocks(model) if _blocks(block) == [block]]:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=partial(_contexts, block)
        )


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks in a module, itself included."""
    return [inner for inner in module.modules() if type(inner).__name__.endswith("Block")]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second computation."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch normalisation leave its running statistics alone: they have seen these frames before."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, n_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches
