"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""


def learning_rate(step: int, *, peak: float, n_steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Rise linearly to the peak, stay there, and fall linearly to zero at the end.

    Args:
        step: From 0 to n_steps - 1.
        peak: Highest learning rate.
        n_steps: Length of the training.
        warmup_steps: Steps until the peak is reached.
        decay_steps: Steps of the fall.

    >>> [learning_rate(s, peak=1.0, n_steps=10, warmup_steps=2, decay_steps=4) for s in (0, 1, 5, 6, 8, 9)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]
    """
    rise = (step + 1) / max(warmup_steps, 1)
    fall = (n_steps - step) / max(decay_steps, 1)
    return peak * max(0.0, min(1.0, rise, fall))
