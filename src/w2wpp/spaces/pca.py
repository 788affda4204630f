"""PCA-w2w: standardise each coordinate, keep m principal components (Dravid et al. 2024, section 3.2)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import scipy.linalg
import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Mapper
from w2wpp.common.memory import GIB
from w2wpp.common.precision import fast_dtype
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.krylov import krylov_components
from w2wpp.spaces.streaming import Moments, Of, Rows, Stacked, Standardised, Table, signed

Solver = Literal["auto", "exact", "streaming"]
COLUMNS = 2048  # whose products are taken in double precision at a time
WIDTH = 4096  # numbers an adapter that are encoded or decoded at a time
SMALL = 2000  # side of a square matrix that is decomposed within a second or two
ROUNDING = 1e-5  # share of the variance that m directions may have by rounding to bfloat16 alone


class PcaSpace(Space):
    """A linear space. z is a component's coefficient divided by the standard deviation of that coefficient.

    Where the smaller of n and d is small, or most of the components are wanted, the adapters are decomposed exactly,
    through a square matrix of that side; otherwise by a block Krylov iteration (`spaces/krylov.py`). Both read a
    dataset block by block.
    """

    kind = "pca"
    mean: Tensor  # [d], in the adapters' units
    scale: Tensor  # [d], each coordinate's standard deviation; 1 where it never varies
    components: Tensor  # [m, d] float32 or bfloat16, orthonormal, in standardised units; 0 where a coordinate never varies
    spread: Tensor  # [m], each coefficient's standard deviation, falling
    explained_variance_ratio: Tensor  # [m], of the standardised variance
    centre: Tensor | None  # [m], the coefficients' own means where the space came with coefficients that are not centred; else 0

    def __init__(self, layout: Layout, base_id: str, m: int, n: int = 0, ids: str = "") -> None:
        """n: to how many adapters it was fitted, 0 if that is not known. ids: the digest of their ids, if they had any."""
        super().__init__(layout, base_id)
        self.m, self.n, self.ids = m, n, ids
        self.register_buffer("mean", torch.zeros(layout.d))
        self.register_buffer("scale", torch.ones(layout.d))
        self.register_buffer("components", torch.zeros(m, layout.d))
        self.register_buffer("spread", torch.ones(m))
        self.register_buffer("explained_variance_ratio", torch.zeros(m))
        self.register_buffer("centre", None)

    @classmethod
    def fit(
        cls,
        data: WeightDataset | Tensor,
        *,
        m: int,
        layout: Layout | None = None,
        base_id: str = "",
        solver: Solver = "auto",
        memory: float = 2.0,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        at_most: bool = False,
        mapper: Mapper | None = None,
    ) -> Self:
        """Fit to a dataset, or to weights [n, d] given with their layout and base.

        solver: exact (of the rounding of float32), streaming (keeps 0.1% less variance at most), or auto. memory: GiB to
        use. dtype: of the components, float32 unless given. seed: of the streaming solver's start. at_most: take fewer
        components where the adapters span fewer directions. mapper: workers of a `TableRecipe` for this dataset, who take the
        products; the space is the same, to the byte on processors that are alike.
        Raises W2WError if they span fewer than m and at_most is not set, hold NaN, or the memory does not suffice.
        """
        adapters = Adapters.of(data, layout, base_id)
        adapters.check_m(m)
        table = Table.of(data, mapper=mapper)
        moments = Moments.of(table, memory)
        space = cls(adapters.layout, adapters.base_id, m, len(adapters), _digest(data))
        space.prompting = adapters.prompting
        x = Standardised.of(table, moments.mean.float(), moments.scale)
        return space._solve(x, moments, solver, memory, dtype or torch.float32, seed, at_most)

    def update(
        self,
        data: WeightDataset | Tensor,
        *,
        m: int | None = None,
        solver: Solver = "auto",
        memory: float = 2.0,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Self:
        """The space with new adapters taken in: the rows that a dataset has beyond those fitted to, or new weights [k, d].

        Mean and scale become exactly those of all adapters. Components are those of the new rows and of what this space
        keeps of the old ones, in the new units (Ross et al. 2008, with scales that change): the same as a new fit where
        this space left nothing out; otherwise what this space left out stays out, and the explained variance is a lower bound.
        m and dtype: as now unless given. Raises W2WError as `fit`, or if the dataset's first rows are others.
        """
        if self.n < 2:
            raise W2WError(f"{self.source} does not say how many adapters it was fitted to. Refit with `w2w fit pca`.")
        first = 0
        if isinstance(data, WeightDataset):
            self.check(data.layout, data.base_id, str(data.folder))
            first = self.n
            if len(data) <= first or _digest(data, first) != self.ids:
                found = f"{self.source} was fitted to {first} adapters; {data.folder} has {len(data)}"
                raise W2WError(f"{found}, and must begin with the same rows. Append to that dataset, or refit with `w2w fit pca`.")
        else:
            self.layout.check_width(data.shape[-1], "what was given")
        table, varying = Table.of(data, first), (self.components != 0).any(0)
        old = Moments(self.n, self.mean.double(), self.scale.double().square() * (self.n - 1) * varying)
        new = Moments.of(table, memory)
        moments = old.merged(new)
        # X'X of all rows, centred: of the old about their mean, of the new about theirs, and of the means' distance.
        kept = self.components.float() * (self.spread[:, None] * (self.n - 1) ** 0.5) * (self.scale / moments.scale)
        apart = (new.mean - old.mean) * (old.n * new.n / moments.n) ** 0.5 / moments.scale
        x = Stacked(torch.cat([kept, apart.float()[None]]), Standardised.of(table, new.mean.float(), moments.scale))
        space = type(self)(self.layout, self.base_id, m or self.m, moments.n, _digest(data))
        space.prompting = self.prompting
        if space.m > min(x.shape):
            raise W2WError(f"m = {m} is not possible: {self.m} components and {table.n} new adapters span fewer. Lower --m.")
        return space._solve(x, moments, solver, memory, dtype or self.components.dtype, seed)

    def _solve(
        self,
        x: Standardised | Stacked,
        moments: Moments,
        solver: Solver,
        memory: float,
        dtype: torch.dtype,
        seed: int,
        at_most: bool = False,
    ) -> Self:
        """Fill in this space from x [n, d], whose X'X is (moments.n - 1) times the standardised covariance."""
        side, total = min(x.shape), int(moments.varying.sum())
        m = max(1, min(self.m, total)) if at_most else self.m
        _refuse_fewer(m, total)
        # The square matrix, with a block's share or its eigenvectors; a block in two precisions; the components, and a copy.
        needed = (8 * side * (side + max(side, 2 * m)) + 16 * side * COLUMNS + 8 * m * self.layout.d) / GIB
        if solver == "auto":
            solver = "exact" if needed <= memory and side <= max(SMALL, 4 * m) else "streaming"
        if solver == "exact":
            values, components = principal_components(x, m)
        else:
            values, components = krylov_components(x.to(fast_dtype()), moments.varying, m, memory=memory, seed=seed)
        variances = values / (moments.n - 1)
        spanned = int((variances > max(1e-9 * float(variances[0]), 0.0 if solver == "exact" else ROUNDING * total / m)).sum())
        if at_most:
            m = max(1, min(m, spanned))
            variances, components = variances[:m], components[:m]
        _refuse_fewer(m, spanned)
        self.m = m
        self.mean, self.scale = moments.mean.float(), moments.scale
        self.components, self.spread = signed(components.mul_(moments.varying)).to(dtype), variances.sqrt().float()
        self.explained_variance_ratio = (variances / total).float()
        return self

    def encode(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> points z [n, m] float32 in prior units. Raises W2WError for another d or NaN."""
        x = (self.given(weights) - self.mean) / self.scale
        pieces = zip(x.split(WIDTH, 1), self.components.split(WIDTH, 1), strict=True)
        return torch.stack([piece @ part.float().T for piece, part in pieces]).sum(0) / self.spread

    def decode(self, z: Tensor) -> Tensor:
        """Points z [n, m] in prior units -> adapters weights [n, d] float32 in their own units; differentiable."""
        coefficients = z.to(self.device) * self.spread
        parts = self.components.split(WIDTH, 1)
        if coefficients.requires_grad:
            x = torch.cat([coefficients @ part.float() for part in parts], 1)
        else:  # results that lie between the parts' copies would keep the memory of each from the next
            x = torch.empty(len(coefficients), self.layout.d, device=self.device)
            for part, place in zip(parts, x.split(WIDTH, 1), strict=True):
                torch.matmul(coefficients, part.float(), out=place)
        return x * self.scale + self.mean

    def to_raw(self, z: Tensor) -> Tensor:
        """Points z [n, m] in prior units -> coefficients of the components [n, m], as the published code keeps them."""
        return z * self.spread if self.centre is None else z * self.spread + self.centre

    def from_raw(self, coefficients: Tensor) -> Tensor:
        """Coefficients of the components [n, m] -> points z [n, m] in prior units; differentiable."""
        return (coefficients if self.centre is None else coefficients - self.centre) / self.spread

    def truncate(self, m: int) -> "PcaSpace":
        """The space of the first m components: what a fit at that m gives. Raises W2WError if there are fewer."""
        if not 1 <= m <= self.m:
            raise W2WError(f"m = {m} is not possible: {self.source} has {self.m} components. Fit at a larger --m.")
        space = PcaSpace(self.layout, self.base_id, m, self.n, self.ids)
        space.prompting = self.prompting
        space.mean, space.scale = self.mean, self.scale
        space.components, space.spread = self.components[:m], self.spread[:m]
        space.explained_variance_ratio = self.explained_variance_ratio[:m]
        if self.centre is not None:  # the mean adapter holds all of it
            space.mean = self.mean - (self.centre[m:] @ self.components[m:].float()) * self.scale
            space.centre = self.centre[:m]
        return space

    def config(self) -> dict[str, Any]:
        """m, and which adapters it was fitted to: the rest is in the tensors."""
        return {"m": self.m, "n": self.n, "ids": self.ids, **({} if self.centre is None else {"centred": False})}

    @classmethod
    def blank(cls, layout: Layout, base_id: str, config: Mapping[str, Any]) -> Self:
        """A space of m components that are all zero."""
        space = cls(layout, base_id, int(config["m"]), int(config.get("n", 0)), str(config.get("ids", "")))
        if not config.get("centred", True):
            space.centre = torch.zeros(space.m)
        return space


def principal_components(x: Rows | Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest squared singular values [m] float64, falling, and right singular vectors [m, d] float32, of x [n, d].

    Exact, through the smaller of x x^T and x^T x.
    """
    n, d = x.shape
    product = smaller_product(x).numpy()
    side = len(product)
    # Of a symmetric matrix the transpose is the same, and in LAPACK's order: it is overwritten, not copied.
    values, vectors = scipy.linalg.eigh(product.T, subset_by_index=[side - m, side - 1], overwrite_a=True, check_finite=False)
    values, kept = torch.from_numpy(values[::-1].copy()).clamp_min(0), torch.from_numpy(vectors.T[::-1].copy()).float()
    if d < n:
        return values, kept
    directions = torch.empty(m, d)
    for found, place in zip(_over(x, _mixed, COLUMNS, 1, kept), directions.split(COLUMNS, 1), strict=True):
        place.copy_(found)
    return values, directions.div_(directions.norm(dim=1, keepdim=True).clamp_min(1e-30))


def smaller_product(x: Rows | Tensor) -> Tensor:
    """x x^T or x^T x of x [n, d], whichever is smaller, float64: their non-zero eigenvalues are the same."""
    n, d = x.shape
    product = torch.zeros(min(n, d), min(n, d), dtype=torch.float64, device=getattr(x, "device", None))
    for part in _over(x, _product_of_columns, COLUMNS, 1) if n <= d else _over(x, _product_of_rows, COLUMNS, 0):
        product += part
    for start in range(COLUMNS, len(product), COLUMNS):  # above the diagonal is the same
        product[:start, start : start + COLUMNS] = product[start : start + COLUMNS, :start].T
    return product


def _over(x: Rows | Tensor, of: Of, size: int, dim: int, *shared: Any) -> Iterator[Any]:
    """`of(block, *shared)` for the rows, or columns, of x, in order, at most `size` at a time."""
    return (of(block, *shared) for block in x.split(size, dim)) if isinstance(x, Tensor) else x.mapped(of, size, dim, *shared)


def _product_of_columns(part: Tensor) -> Tensor:
    """x x^T of columns x [n, k], float64, on and below the diagonal."""
    doubled = part.double()
    product = torch.zeros(len(part), len(part), dtype=torch.float64, device=part.device)
    for start in range(0, len(part), COLUMNS):
        at = slice(start, start + COLUMNS)
        product[at, : start + COLUMNS] = doubled[at] @ doubled[: start + COLUMNS].T
    return product


def _product_of_rows(part: Tensor) -> Tensor:
    """x^T x of rows x [k, d], float64, on and below the diagonal."""
    return _product_of_columns(part.T)


def _mixed(part: Tensor, mix: Tensor) -> Tensor:
    """Rows [m, k] of columns [n, k], mixed by [m, n]."""
    return mix @ part


def _refuse_fewer(m: int, spanned: int) -> None:
    if spanned < m:
        raise W2WError(f"m = {m} is not possible: these adapters span only {spanned} directions, some are alike. Lower --m.")


def _digest(data: WeightDataset | Tensor, first: int | None = None) -> str:
    """16 hex digits over the ids of the `first` rows of a dataset, all unless told; nothing for a tensor."""
    if isinstance(data, Tensor):
        return ""
    return hashlib.sha256(json.dumps(data.ids[:first]).encode()).hexdigest()[:16]
