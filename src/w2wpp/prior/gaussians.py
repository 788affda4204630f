"""N(0, I), and a mixture of Gaussians fitted to points of real people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from w2wpp.common.seeds import generator
from w2wpp.prior.base import Prior
from w2wpp.prior.conditions import Asked
from w2wpp.prior.examples import Examples

COMPONENTS = (1, 2, 4, 8)
ROUNDS = 30  # of expectation and maximisation
FLOOR = 1e-4  # of a component's variances, of the mean one


class GaussianPrior(Prior):
    """N(0, I): what `Space.sample` draws from."""

    kind = "gaussian"
    fitted = False

    @classmethod
    def fit(cls, train: Examples, held_out: Examples, *, attributes: Sequence[str] = (), seed: int = 0) -> Self:
        """Nothing is fitted."""
        return cls(train.z.shape[1])

    def drawn(self, draws: Sequence[torch.Generator], asked: Asked, guidance: float) -> Tensor:
        """The points of `Space.sample`."""
        return torch.stack([torch.randn(self.m, generator=draw) for draw in draws])

    def config(self) -> dict[str, Any]:
        """The number of latents."""
        return {"m": self.m}

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Self:
        """N(0, I)."""
        return cls(config["m"])


class MixturePrior(Prior):
    """k Gaussians of their own means and covariances; k is that of `COMPONENTS` under which held-out points are most likely.

    Each covariance is drawn towards that of all points, which counts as much as m points: few people for many latents.
    """

    kind = "mixture"
    weights: Tensor  # [k], summing to 1
    means: Tensor  # [k, m]
    factors: Tensor  # [k, m, m], lower triangular

    def __init__(self, k: int, m: int) -> None:
        super().__init__(m)
        self.register_buffer("weights", torch.full((k,), 1 / k))
        self.register_buffer("means", torch.zeros(k, m))
        self.register_buffer("factors", torch.eye(m).repeat(k, 1, 1))

    @classmethod
    def fit(cls, train: Examples, held_out: Examples, *, attributes: Sequence[str] = (), seed: int = 0) -> Self:
        """By expectation and maximisation (Dempster et al. 1977), from k points as means."""
        z, others, best, nats = train.z.double(), held_out.z.double(), None, -math.inf
        for k in [k for k in COMPONENTS if k == 1 or k * 4 <= len(z)]:
            prior = cls(k, z.shape[1])
            prior.weights, prior.means, prior.factors = expectation_maximisation(z, k, seed)
            likely = float(prior.log_density(others).mean())
            if likely > nats:
                best, nats = prior, likely
        if best is None:
            raise ValueError("no mixture has a density at these points")
        best.history = {"components": len(best.weights), "held_out_nats": nats}
        best.weights, best.means, best.factors = best.weights.float(), best.means.float(), best.factors.float()
        return best

    def sound(self) -> bool:
        """Whether there is a component, and all have a weight."""
        return len(self.weights) > 0 and bool((self.weights > 0).all())

    def log_density(self, z: Tensor) -> Tensor:
        """Nats of points z [n, m]: [n]."""
        return log_densities(z, self.weights, self.means, self.factors).logsumexp(1)

    def drawn(self, draws: Sequence[torch.Generator], asked: Asked, guidance: float) -> Tensor:
        """A component by lot, and a point of it."""
        points = []
        for draw in draws:
            k = int(torch.multinomial(self.weights, 1, generator=draw))
            points.append(self.means[k] + self.factors[k] @ torch.randn(self.m, generator=draw))
        return torch.stack(points)

    def config(self) -> dict[str, Any]:
        """The number of components and of latents."""
        return {"k": len(self.weights), "m": self.m}

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Self:
        """k times N(0, I)."""
        return cls(config["k"], config["m"])


def log_densities(z: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Nats of z [n, m] under each weighted component: [n, k]."""
    away = torch.linalg.solve_triangular(factors, (z[None] - means[:, None]).mT, upper=False)  # [k, m, n]
    scale = factors.diagonal(dim1=1, dim2=2).log().sum(1) + means.shape[1] * math.log(2 * math.pi) / 2
    return (weights.log() - scale)[None] - away.square().sum(1).T / 2


def expectation_maximisation(z: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weights [k], means [k, m] and factors [k, m, m] of a mixture fitted to points z [n, m] float64."""
    n, m = z.shape
    pooled = torch.cov(z.T).reshape(m, m) if n > 1 else torch.eye(m, dtype=z.dtype)
    pooled = pooled + FLOOR * pooled.diagonal().mean().clamp_min(1e-12) * torch.eye(m, dtype=z.dtype)
    weights = torch.full((k,), 1 / k, dtype=z.dtype)
    means = z.mean(0, keepdim=True)
    if k > 1:
        means = z[torch.randperm(n, generator=generator(seed, "mixture", k))[:k]]
    factors = torch.linalg.cholesky(pooled).repeat(k, 1, 1)
    for _ in range(ROUNDS if k > 1 else 1):
        mine = log_densities(z, weights, means, factors).softmax(1)  # [n, k]
        count = mine.sum(0)
        weights, means = (count + 1) / (n + k), (mine.T @ z + means) / (count[:, None] + 1)  # one point in mind: none dies
        away = z[None] - means[:, None]
        scatter = torch.einsum("nk,kni,knj->kij", mine, away, away)
        factors = torch.linalg.cholesky((scatter + m * pooled) / (count + m)[:, None, None])
    return weights, means, factors
