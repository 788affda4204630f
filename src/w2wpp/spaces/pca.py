"""PCA-w2w: standardise each coordinate, keep m principal components (Dravid et al. 2024, section 3.2)."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor

from w2wpp.errors import W2WError
from w2wpp.layout import Layout
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.streaming import GIB, Table, moments, signed, streamed_components
from w2wpp.weights import WeightDataset

Solver = Literal["auto", "exact", "streaming"]
COLUMNS = 2048  # whose products are taken in double precision at a time


class PcaSpace(Space):
    """A linear space; z is the coefficient of a component over that coefficient's standard deviation.

    Thousands of adapters are held in memory and decomposed exactly, through a square matrix of side min(n, d). What
    does not fit is read from disk block by block, several times over (`spaces/streaming.py`).
    """

    kind = "pca"
    mean: Tensor  # [d], in the adapters' units
    scale: Tensor  # [d], each coordinate's standard deviation; 1 where it never varies
    components: Tensor  # [m, d], orthonormal, in standardised units
    spread: Tensor  # [m], each coefficient's standard deviation, falling
    explained_variance_ratio: Tensor  # [m], of the standardised variance

    def __init__(self, layout: Layout, base_id: str, m: int) -> None:
        super().__init__(layout, base_id)
        self.m = m
        self.register_buffer("mean", torch.zeros(layout.d))
        self.register_buffer("scale", torch.ones(layout.d))
        self.register_buffer("components", torch.zeros(m, layout.d))
        self.register_buffer("spread", torch.ones(m))
        self.register_buffer("explained_variance_ratio", torch.zeros(m))

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
        seed: int = 0,
    ) -> Self:
        """Fit to a dataset, or to weights [n, d] given with their layout and base.

        solver: exact, streaming, or auto: exact where it fits into `memory` GiB. seed: of the streaming solver's start.
        Raises W2WError if the adapters span fewer than m directions, hold NaN, or the memory does not suffice.
        """
        adapters = Adapters.of(data, layout, base_id)
        adapters.check_m(m)
        space = cls(adapters.layout, adapters.base_id, m)
        n, d = len(adapters), adapters.layout.d
        # Two copies of the weights; the square matrix in double precision, its eigenvectors and their workspace.
        needed = (2 * n * d * 4 + 4 * min(n, d) ** 2 * 8) / GIB
        if solver == "streaming" or (solver == "auto" and needed > memory):
            table = Table(n, d, adapters.rows)
            space.mean, space.scale, total = moments(table, memory)
            variances, components = streamed_components(table, space.mean, space.scale, m, memory=memory, seed=seed)
            return space._finish(variances, components, total)
        weights = adapters.rows(range(n))
        # Compared, not measured: rounding gives a constant coordinate a tiny deviation, which would be blown up to 1.
        varies = (weights != weights[0]).any(0)
        space.mean = torch.where(varies, weights.mean(0), weights[0])
        space.scale = torch.where(varies, weights.std(0), 1.0)
        x = (weights - space.mean) / space.scale
        return space._finish(*principal_components(x, m), x.var(0).double().sum())

    def _finish(self, variances: Tensor, components: Tensor, total: Tensor) -> Self:
        m = len(variances)
        if not variances[-1] > 1e-9 * variances[0]:
            spanned = int((variances > 1e-9 * variances[0]).sum())
            raise W2WError(f"m = {m} is not possible: these adapters span only {spanned} directions, some are alike. Lower --m.")
        self.components, self.spread = components, variances.sqrt().float()
        self.explained_variance_ratio = (variances / total).float()
        return self

    def encode(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> points z [n, m] float32 in prior units. Raises W2WError for another d or NaN."""
        return ((self.given(weights) - self.mean) / self.scale) @ self.components.T / self.spread

    def decode(self, z: Tensor) -> Tensor:
        """Points z [n, m] in prior units -> adapters weights [n, d] float32 in their own units; differentiable."""
        return (z.to(self.device) * self.spread) @ self.components * self.scale + self.mean

    def truncate(self, m: int) -> "PcaSpace":
        """The space of the first m components: what a fit at that m gives. Raises W2WError if there are fewer."""
        if not 1 <= m <= self.m:
            raise W2WError(f"m = {m} is not possible: {self.source} has {self.m} components. Fit at a larger --m.")
        space = PcaSpace(self.layout, self.base_id, m)
        space.mean, space.scale = self.mean, self.scale
        space.components, space.spread = self.components[:m], self.spread[:m]
        space.explained_variance_ratio = self.explained_variance_ratio[:m]
        return space

    def config(self) -> dict[str, Any]:
        """m alone: the rest is in the tensors."""
        return {"m": self.m}

    @classmethod
    def blank(cls, layout: Layout, base_id: str, config: Mapping[str, Any]) -> Self:
        """A space of m components that are all zero."""
        return cls(layout, base_id, int(config["m"]))


def principal_components(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest variances [m] float64, falling, and their directions [m, d] float32, of centred x [n, d].

    Exact, through the smaller of x x^T and x^T x. Each direction's largest entry is positive, so that a refit has
    the same signs.
    """
    n, d = x.shape
    values, vectors = torch.linalg.eigh(smaller_product(x))
    values, vectors = values.flip(0)[:m].clamp_min(0), vectors.flip(1)[:, :m].float()
    directions = vectors.T if d < n else torch.nn.functional.normalize(vectors.T @ x)
    return values / (n - 1), signed(directions)


def smaller_product(x: Tensor) -> Tensor:
    """x x^T or x^T x of x [n, d], whichever is smaller, float64: their non-zero eigenvalues are the same."""
    tall = x if x.shape[0] <= x.shape[1] else x.T
    product = torch.zeros(tall.shape[0], tall.shape[0], dtype=torch.float64, device=x.device)
    for part in tall.split(COLUMNS, 1):
        doubled = part.double()
        product.addmm_(doubled, doubled.T)
    return product
