"""What changes in the course of a training: the learning rate and the weight of the auxiliary loss.

Where it can be a pure function of the step it is one, so that a resumed run needs no state for it; `Plateau`,
which follows the validation, has its state in the checkpoint.
"""

from dataclasses import dataclass

import numpy as np


def learning_rate(step: int, *, peak: float, n_steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Rise linearly to the peak, stay there, and fall linearly to zero at the end.

    The peak is reached if rise and fall have room in the training, which `OptimizationConfig` asks for.

    Args:
        step: From 0 to n_steps - 1.
        peak: Highest learning rate.
        n_steps: Length of the training.
        warmup_steps: Steps until the peak is reached.
        decay_steps: Steps of the fall.

    >>> tuple(learning_rate(s, peak=1.0, n_steps=10, warmup_steps=2, decay_steps=4) for s in (0, 1, 6, 8, 9))
    (0.5, 1.0, 1.0, 0.5, 0.25)
    """
    rise = (step + 1) / max(warmup_steps, 1)
    fall = (n_steps - step) / max(decay_steps, 1)
    return peak * max(0.0, min(1.0, rise, fall))


def segment_seconds(
    step: int, *, seed: int, usual: float, long_every: int, long: tuple[float, float]
) -> float:
    """Return the length of the segments of a step: every `long_every` steps a longer one, in whole seconds.

    >>> [segment_seconds(s, seed=0, usual=4.0, long_every=2, long=(15, 30)) for s in range(4)]
    [4.0, 23.0, 4.0, 23.0]
    """
    if not long_every or (step + 1) % long_every:
        return usual
    return float(np.random.default_rng([seed, step]).integers(round(long[0]), round(long[1]), endpoint=True))


def linear_decay(step: int, *, n_steps: int) -> float:
    """Fall linearly from 1 to 0 in `n_steps`; 0 steps: stay at 1.

    >>> [linear_decay(s, n_steps=4) for s in (0, 1, 4, 5)], linear_decay(9, n_steps=0)
    ([1.0, 0.75, 0.0, 0.0], 1.0)
    """
    return max(0.0, 1 - step / n_steps) if n_steps else 1.0


def stepwise_decay(epoch: int, *, factor: float, start_epoch: int, every: int) -> float:
    """Stay at 1 for `start_epoch` epochs, then multiply by `factor`, and again after `every` further epochs.

    Args:
        epoch: From 0.
        factor: Of each step down.
        start_epoch: Epochs before the first step down.
        every: Epochs from one step down to the next.

    >>> [stepwise_decay(e, factor=0.5, start_epoch=10, every=5) for e in (9, 10, 14, 15, 20)]
    [1.0, 0.5, 0.5, 0.25, 0.125]
    """
    return float(factor ** (1 + (epoch - start_epoch) // every)) if epoch >= start_epoch else 1.0


@dataclass
class Plateau:
    """Scale of the learning rate that falls when the validation does not get better.

    The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau`, which both originals use: it falls at
    the first epoch after `patience` epochs in a row without a better score.
    """

    scale: float = 1.0
    best_db: float = float("-inf")
    n_stalled: int = 0

    def update(self, score_db: float, *, factor: float, patience: int) -> None:
        """Take in the score of an epoch."""
        if score_db > self.best_db:
            self.best_db, self.n_stalled = score_db, 0
            return
        self.n_stalled += 1
        if self.n_stalled > patience:
            self.scale, self.n_stalled = self.scale * factor, 0
