"""Principal components of a table that does not fit into memory, read block by block.

Block subspace iteration with a random start (Halko, Martinsson and Tropp 2011, algorithm 4.4), with the moving shift of
dashSVD (Feng, Yu and Xie 2022): each pass over the table multiplies the basis by X'X - shift, until the variance that
the basis keeps no longer grows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.errors import W2WError
from w2wpp.progress import track
from w2wpp.seeds import generator

GIB = 2**30
MOST_PASSES = 30


@dataclass(frozen=True)
class Table:
    """Rows [n, d] that are read anew on every pass."""

    n: int
    d: int
    rows: Callable[[Sequence[int]], Tensor]  # positions -> [k, d] float32

    def blocks(self, rows: int, doing: str) -> Iterator[Tensor]:
        """All rows in order, at most `rows` at a time, with progress."""
        for start in track(range(0, self.n, rows), doing):
            yield self.rows(range(start, min(self.n, start + rows)))


def moments(table: Table, memory: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [d], standard deviation [d] (1 where a coordinate never varies) and the standardised total variance; one pass.

    memory: GiB that blocks may take.
    """
    first = table.rows(range(1))[0]
    total = torch.zeros(table.d, dtype=torch.float64)
    squares = torch.zeros(table.d, dtype=torch.float64)
    varies = torch.zeros(table.d, dtype=torch.bool)
    for block in table.blocks(block_rows(table.d, memory), "moments"):
        # Sums of differences from one row: no cancellation where a coordinate hardly varies.
        difference = (block - first).double()
        total += difference.sum(0)
        squares += difference.square().sum(0)
        varies |= (difference != 0).any(0)
    mean = first.double() + total / table.n
    variance = (squares - total.square() / table.n).clamp_min(0) / max(1, table.n - 1)
    scale = torch.where(varies, variance.sqrt(), 1.0).float()
    return torch.where(varies, mean.float(), first), scale, varies.sum().double()


def streamed_components(
    table: Table, mean: Tensor, scale: Tensor, m: int, *, memory: float = 2.0, tolerance: float = 1e-4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The m largest variances [m] float64, falling, and their directions [m, d] float32, of (rows - mean) / scale.

    memory: GiB in all. tolerance: stop when a pass raises the kept variance by less than this share of it; the
    subspace of a spectrum that hardly decays is then not unique, its variance is.
    Raises W2WError if two bases [d, m] do not fit into the memory.
    """
    width = min(m + max(16, m // 10), table.n - 1, table.d)
    bases = 4 * table.d * width * 4 / GIB  # the basis, its product, and what a QR decomposition takes
    if bases > 0.8 * memory:
        raise W2WError(
            f"{m} components of {table.d:,} numbers take {bases:.1f} GiB while fitting; --memory is {memory:g}. Raise it, or lower --m."
        )
    rows = block_rows(table.d, memory - bases)
    basis = torch.linalg.qr(torch.randn(table.d, width, generator=generator(seed, "principal components")))[0]
    kept, shift = 0.0, 0.0
    for _ in range(MOST_PASSES):
        product = torch.zeros(table.d, width)
        for block in table.blocks(rows, "pass over the adapters"):
            x = (block - mean) / scale
            product.addmm_(x.T, x @ basis)
        small = (basis.T @ product).double() / (table.n - 1)
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        now = float(values[-m:].sum())
        if now - kept <= tolerance * now:
            break
        kept = now
        shift = (shift + max(0.0, float(values[0]))) / 2
        basis = torch.linalg.qr(product / (table.n - 1) - shift * basis)[0]
    directions = (basis @ vectors.flip(1)[:, :m].float()).T
    return values.flip(0)[:m].clamp_min(0), signed(directions)


def signed(directions: Tensor) -> Tensor:
    """Directions [m, d] with each one's largest entry positive, so that a refit has the same signs."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def block_rows(d: int, memory: float) -> int:
    """How many rows [., d] a pass may hold: a block, its standardised copy and a double of it take `memory` GiB at most."""
    return max(1, int(memory * GIB / (d * 4 * 6)))
