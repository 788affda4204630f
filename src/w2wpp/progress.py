"""Progress on stderr, so that stdout stays clean for results."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yield from `iterable` with a progress bar on stderr, drawn only once the work has taken a second."""
    pause = 0.5 if sys.stderr.isatty() else 30.0  # a log file should not fill up with bars
    return tqdm(iterable, desc=description, total=total, delay=1.0, mininterval=pause, maxinterval=max(10.0, pause), dynamic_ncols=True)
