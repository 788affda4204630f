"""Where the training of adapters begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from w2wpp.photos.images import Image


@dataclass(frozen=True)
class Start:
    """Where training begins in place of an adapter that does nothing: at what an encoder makes of the photos, say."""

    name: str  # kept with the dataset, which holds adapters of one start only
    weights: Callable[[Sequence[Sequence[Image]]], Tensor]  # photos of k people -> [k, d]
