"""What an inversion tells on its way to whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class InversionStep:
    """One step of an inversion, or one generation of a search, that has just been finished, for k people at once."""

    ids: list[str]  # of these k people
    done: int  # steps so far, with this one
    steps: int  # that there will be
    losses: Tensor  # [k] float32 on the CPU, the denoising loss on this step's own draws
    z: Tensor  # [k, m] float32 in prior units, on the CPU: where the points are now


Watch: TypeAlias = Callable[[InversionStep], None]  # called between two steps; what it raises ends the inversion
