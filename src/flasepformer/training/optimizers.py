"""The optimizers that a recipe can ask for."""

import torch
from torch import nn

from flasepformer.training.recipe import OptimizationConfig

OUTER_PARTS = ("encoder.", "feature_projection.", "positions.", "output.", "decoder.", "auxiliary_")
"""Where a network meets the waveform, and tables; Muon is for the matrices between."""


def build_optimizers(model: nn.Module, settings: OptimizationConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together hold every parameter once."""
    rest = dict(model.named_parameters())
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        matrices = [name for name, p in rest.items() if p.ndim == 2 and not name.startswith(OUTER_PARTS)]
        optimizers.append(
            torch.optim.Muon(
                [rest.pop(name) for name in matrices],
                settings.learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",  # one learning rate suits both
            )
        )
    optimizers.append(
        torch.optim.AdamW(
            rest.values(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
    )
    return optimizers
