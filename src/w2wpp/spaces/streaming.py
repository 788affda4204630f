"""A table that need not fit into memory: read by blocks of rows or columns, standardised on the way."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Mapper
from w2wpp.common.memory import GIB
from w2wpp.common.progress import track
from w2wpp.dataset.weights import WeightDataset

CHUNK = 2**20  # numbers that are worked on at a time, so that they stay in the processor's cache
Of = Callable[..., Any]  # of a block, and of what all blocks share; a plain function of a module, which workers find by its name


@dataclass(frozen=True)
class Table:
    """Rows [n, d] that are read anew on every pass, in the precision in which they are kept."""

    n: int
    d: int
    rows: Callable[[int, int], Tensor]  # first and last -> [k, d]
    columns: Callable[[int, int], Tensor]  # first and last -> [n, width]
    first: int = 0  # what the first row is called
    mapper: Mapper | None = None  # workers who read the same table

    @classmethod
    def of(cls, data: WeightDataset | Tensor, first: int = 0, mapper: Mapper | None = None) -> Self:
        """The rows from `first` on of a dataset, or all of weights [n, d]. mapper: workers of a `TableRecipe` for that dataset."""
        if isinstance(data, Tensor):
            weights = data.float()
            n, d = weights.shape
            return cls(n, d, lambda start, stop: weights[start:stop], lambda start, stop: weights[:, start:stop])
        kept = getattr(torch, next(iter(data.dtypes))) if len(data.dtypes) == 1 else torch.float32
        kept = kept if kept.is_floating_point else torch.float32  # rows of int8 are numbers only together with their scales
        return cls(
            len(data) - first,
            data.d,
            lambda start, stop: data.rows(range(first + start, first + stop), kept),
            lambda start, stop: data.columns(start, stop, range(first, len(data)), kept),
            first,
            mapper,
        )

    def block(self, start: int, stop: int, dim: int) -> Tensor:
        """Rows (or columns, for dim 1) from `start` to `stop`."""
        return self.columns(start, stop) if dim else self.rows(start, stop)

    def spans(self, size: int, dim: int) -> list[tuple[int, int]]:
        """Where blocks of `size` rows (or columns, for dim 1) begin and end."""
        end = self.d if dim else self.n
        return [(start, min(end, start + size)) for start in range(0, end, size)]

    def mapped(
        self, of: Of, size: int, dim: int, *shared: Any, doing: str = "pass over the adapters", scaling: "Scaling | None" = None
    ) -> Iterator[Any]:
        """`of(block, *shared)` for every block, in order, at most `size` rows (or columns) at a time, by workers where there are some."""
        spans = self.spans(size, dim)
        words = (doing, f"groups of {size} {'numbers' if dim else 'adapters'}")
        if self.mapper:
            yield from track(self.mapper([(of, span, dim) for span in spans], (scaling, shared)), *words, total=len(spans))
            return
        for span in track(spans, *words):
            yield self.work((of, span, dim), (scaling, shared))

    def work(self, task: tuple[Of, tuple[int, int], int], shared: "tuple[Scaling | None, tuple[Any, ...]]") -> Any:
        """One block's result: what a worker does."""
        (of, (start, stop), dim), (scaling, more) = task, shared
        block = self.block(start, stop, dim)
        return of(block if scaling is None else scaling.of(block, start, stop, dim), *more)


@dataclass(frozen=True)
class Moments:
    """Mean and sum of squared deviations of each coordinate, over n rows; those of disjoint rows can be merged exactly."""

    n: int
    mean: Tensor  # [d] float64
    squares: Tensor  # [d] float64, of the differences from the mean; 0 where nothing varies

    @classmethod
    def of(cls, table: Table, memory: float) -> Self:
        """In one pass. memory: GiB that blocks may take. Raises W2WError naming the first row that holds NaN or infinity."""
        first = table.rows(0, 1)[0].float()
        total = torch.zeros(table.d, dtype=torch.float64)
        squares = torch.zeros(table.d, dtype=torch.float64)
        size = block_rows(table.d, memory)
        found = table.mapped(_sums, size, 0, first, doing="moments")
        for (start, stop), sums in zip(table.spans(size, 0), found, strict=True):
            if not torch.isfinite(sums[1]).all():
                _refuse_unless_finite(table.rows(start, stop), table.first + start, table.first + table.n)
            total += sums[0]
            squares += sums[1]
        return cls(table.n, first.double() + total / table.n, (squares - total.square() / table.n).clamp_min(0))

    def merged(self, other: "Moments") -> "Moments":
        """Those of both sets of rows (Chan, Golub and LeVeque 1983, equation 2.1)."""
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), squares)

    @property
    def scale(self) -> Tensor:
        """Standard deviation [d] float32, of n - 1 degrees of freedom; 1 where a coordinate never varies."""
        return torch.where(self.squares > 0, (self.squares / (self.n - 1)).sqrt(), 1.0).float()

    @property
    def varying(self) -> Tensor:
        """Which coordinates vary, [d] bool. Each has a standardised variance of 1."""
        return self.squares > 0


def _sums(block: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [d] float64 of the rows' differences from a row, and of their squares."""
    total, squares = (torch.zeros(len(first), dtype=torch.float64) for _ in range(2))
    for part in block.split(chunk_rows(len(first))):
        # Differences from one row: no cancellation where a coordinate hardly varies, none at all where it never does.
        difference = part - first
        total += difference.sum(0)
        squares += difference.square_().sum(0)
    return total, squares


class Rows(Protocol):
    """What the solvers decompose: [n, d], given piece by piece, as often as needed."""

    @property
    def far(self) -> bool:
        """Whether workers read it."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the pieces."""

    @property
    def shape(self) -> tuple[int, int]:
        """n and d."""

    def split(self, size: int, dim: int = 0) -> Iterable[Tensor]:
        """As a tensor's: all rows (or columns, for dim 1) in order, at most `size` at a time."""

    def mapped(self, of: Of, size: int, dim: int, *shared: Any) -> Iterator[Any]:
        """`of(block, *shared)` for each of these pieces, in order."""


@dataclass(frozen=True)
class Scaling:
    """What is taken off and divided by, and the precision of the result."""

    mean: Tensor  # [d] float32
    scale: Tensor  # [d] float32
    dtype: torch.dtype

    def of(self, block: Tensor, start: int, stop: int, dim: int) -> Tensor:
        """(block - mean) / scale of rows, or of the columns from `start` to `stop` for dim 1."""
        columns = slice(start, stop) if dim else slice(None)
        mean, inverse = self.mean[columns], 1 / self.scale[columns]
        out = torch.empty(block.shape, dtype=self.dtype)
        rows = chunk_rows(block.shape[1])
        for part, place in zip(block.split(rows), out.split(rows), strict=True):
            place.copy_(torch.sub(part, mean).mul_(inverse))
        return out


@dataclass(frozen=True)
class Standardised:
    """(rows - mean) / scale of a table."""

    table: Table
    scaling: Scaling

    @classmethod
    def of(cls, table: Table, mean: Tensor, scale: Tensor) -> Self:
        """In float32; mean, scale: [d] float32."""
        return cls(table, Scaling(mean, scale, torch.float32))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the pieces."""
        return self.scaling.dtype

    @property
    def far(self) -> bool:
        """Whether workers read it."""
        return self.table.mapper is not None

    @property
    def shape(self) -> tuple[int, int]:
        """n and d."""
        return self.table.n, self.table.d

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """All rows (or columns, for dim 1) in order, at most `size` at a time; one pass over the table, by this process."""
        return replace(self.table, mapper=None).mapped(_itself, size, dim, scaling=self.scaling)

    def mapped(self, of: Of, size: int, dim: int, *shared: Any) -> Iterator[Any]:
        """`of(block, *shared)` for each of these pieces, in order; one pass over the table, by workers where there are some."""
        return self.table.mapped(of, size, dim, *shared, scaling=self.scaling)

    def to(self, dtype: torch.dtype) -> "Standardised":
        """The same in another precision."""
        return replace(self, scaling=replace(self.scaling, dtype=dtype))


def _itself(block: Tensor) -> Tensor:
    return block


@dataclass(frozen=True)
class Stacked:
    """Rows [k, d] held in memory on top of others."""

    top: Tensor
    below: Standardised

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows below."""
        return self.below.dtype

    @property
    def far(self) -> bool:
        """No: this process holds the top."""
        return False

    @property
    def shape(self) -> tuple[int, int]:
        """n and d."""
        return len(self.top) + self.below.shape[0], self.below.shape[1]

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """All rows (or columns, for dim 1) in order, at most `size` at a time."""
        if dim == 0:
            yield from (part.to(self.dtype) for part in self.top.split(size))
            yield from self.below.split(size)
            return
        for top, below in zip(self.top.split(size, 1), self.below.split(size, 1), strict=True):
            yield torch.cat([top.to(self.dtype), below])

    def mapped(self, of: Of, size: int, dim: int, *shared: Any) -> Iterator[Any]:
        """`of(block, *shared)` for each of these pieces, in order."""
        return (of(block, *shared) for block in self.split(size, dim))

    def to(self, dtype: torch.dtype) -> "Stacked":
        """The same in another precision."""
        return replace(self, below=self.below.to(dtype))


def signed(directions: Tensor) -> Tensor:
    """Directions [m, d] with each one's largest entry positive, so that a refit has the same signs."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions.mul_(torch.where(largest < 0, -1.0, 1.0))


def chunk_rows(d: int) -> int:
    """How many rows of d numbers to work on at a time."""
    return max(1, CHUNK // d)


def block_rows(d: int, memory: float, copies: int = 8) -> int:
    """How many rows [., d] a pass may hold: `copies` bytes a number take `memory` GiB at most; at least 1 row, at most 4,096."""
    return max(1, min(4096, int(memory * GIB / (d * copies))))


def _refuse_unless_finite(block: Tensor, first: int, n: int) -> None:
    bad = (~torch.isfinite(block)).any(1).nonzero()
    if len(bad):
        raise W2WError(f"row {first + int(bad[0])} of {n} has weights that are not numbers. Leave it out or train it again.")
