"""How a rate rises and falls in training."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimiser: Optimizer, lr: float | list[float], steps: int, rise: float) -> OneCycleLR:
    """The rate (each group's its own, if given) rises in the first share `rise` of the steps, then falls, along half cosines."""
    total = max(2, steps)
    if math.isclose(rise * total, 1):  # a rise of one step takes no time, by which torch divides
        total += 1
    return OneCycleLR(optimiser, lr, total_steps=total, pct_start=rise)


def held_then_falling(progress: float, rise: float = 0.02, hold: float = 0.5) -> float:
    """The share of the peak rate at a share `progress` of the training: up to 1 until `rise`, held until `hold`, then to 0.

    It falls along a half cosine. Unlike `one_cycle` it needs no number of steps, so the end can be a time.
    """
    if progress < hold:
        return min(1.0, progress / rise) if rise > 0 else 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - hold) / (1 - hold))))
