"""Progress on stderr, so that stdout stays clean for results."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yield from `iterable` with a progress bar on stderr, drawn only once the work has taken a second."""
    return tqdm(iterable, desc=description, total=total, delay=1.0, mininterval=0.5, dynamic_ncols=True)
