"""How a rate rises and falls in training."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimiser: Optimizer, lr: float, steps: int, rise: float) -> OneCycleLR:
    """The rate rises to `lr` in the first share `rise` of the steps and falls in the others, both along a half cosine."""
    total = max(2, steps)
    if math.isclose(rise * total, 1):  # a rise of one step takes no time, by which torch divides
        total += 1
    return OneCycleLR(optimiser, lr, total_steps=total, pct_start=rise)
