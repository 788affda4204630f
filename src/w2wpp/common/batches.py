"""Cut a number of items into slices."""

from collections.abc import Iterator


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n) in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
