"""Priors that answer with what they were shown: a point plus noise, or the mean of two people's points.

They say what a generator that copies, or interpolates, would score (Zeng et al. 2025, arXiv:2506.07998).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.prior.base import Prior
from w2wpp.prior.conditions import Asked
from w2wpp.prior.examples import Examples

WIDTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the noise, in each coordinate's standard deviation


class NoisyRowsPrior(Prior):
    """A kernel density: one of the points that it was fitted to, with noise as wide as suits held-out people best."""

    kind = "noisy-rows"
    z: Tensor  # [n, m]
    noise: Tensor  # [m]

    def __init__(self, n: int, m: int) -> None:
        super().__init__(m)
        self.register_buffer("z", torch.zeros(n, m))
        self.register_buffer("noise", torch.zeros(m))

    @classmethod
    def fit(cls, train: Examples, held_out: Examples, *, attributes: Sequence[str] = (), seed: int = 0) -> Self:
        """Keep the points; the noise is that of `WIDTHS` under which held-out points are most likely."""
        prior = cls(*train.z.shape)
        deviations = train.z.std(0).clamp_min(1e-6)
        likely = {width: mean_log_density(train.z, held_out.z, width * deviations) for width in WIDTHS}
        width = max(likely, key=lambda known: likely[known])
        prior.z, prior.noise = train.z.clone(), width * deviations
        prior.history = {"width": width, "held_out_nats": likely[width]}
        return prior

    def sound(self) -> bool:
        """Whether there is a point."""
        return len(self.z) > 0

    def drawn(self, draws: Sequence[torch.Generator], asked: Asked, guidance: float) -> Tensor:
        """A point of those, and noise."""
        rows = [self.z[int(torch.randint(len(self.z), (1,), generator=draw))] for draw in draws]
        return torch.stack([row + self.noise * torch.randn(self.m, generator=draw) for row, draw in zip(rows, draws, strict=True)])

    def config(self) -> dict[str, Any]:
        """How many points."""
        return {"n": len(self.z), "m": self.m}

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Self:
        """A prior of points that are all 0."""
        return cls(config["n"], config["m"])


class MeanOfTwoPrior(Prior):
    """The mean of the points of two people."""

    kind = "mean-of-two"
    z: Tensor  # [n, m]
    person: Tensor  # [n], a number for each person

    def __init__(self, n: int, m: int) -> None:
        super().__init__(m)
        self.register_buffer("z", torch.zeros(n, m))
        self.register_buffer("person", torch.zeros(n, dtype=torch.int64))

    @classmethod
    def fit(cls, train: Examples, held_out: Examples, *, attributes: Sequence[str] = (), seed: int = 0) -> Self:
        """Keep the points, and whose they are."""
        prior = cls(*train.z.shape)
        numbers = {person: i for i, person in enumerate(dict.fromkeys(train.people))}
        if len(numbers) < 2:
            raise W2WError("the mean of two people needs points of two. Give more.")
        prior.z, prior.person = train.z.clone(), torch.tensor([numbers[person] for person in train.people])
        return prior

    def sound(self) -> bool:
        """Whether there are two people or more, each with a number and a point."""
        numbers = self.person.unique()
        return len(numbers) > 1 and torch.equal(numbers, torch.arange(len(numbers)))

    def drawn(self, draws: Sequence[torch.Generator], asked: Asked, guidance: float) -> Tensor:
        """Two people by lot, and one point of each."""
        means = []
        for draw in draws:
            two = torch.randperm(int(self.person.max()) + 1, generator=draw)[:2]
            rows = [(self.person == person).nonzero()[:, 0] for person in two]
            means.append(torch.stack([self.z[row[int(torch.randint(len(row), (1,), generator=draw))]] for row in rows]).mean(0))
        return torch.stack(means)

    def config(self) -> dict[str, Any]:
        """How many points."""
        return {"n": len(self.z), "m": self.m}

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Self:
        """A prior of points that are all 0."""
        return cls(config["n"], config["m"])


def mean_log_density(points: Tensor, at: Tensor, noise: Tensor) -> float:
    """Nats, averaged over `at` [k, m], under equal Gaussians of deviations `noise` [m] around points [n, m]."""
    x, y, nats = points.double() / noise, at.double() / noise, 0.0
    constant = torch.tensor(2 * torch.pi).log().double() * points.shape[1] / 2 + noise.double().log().sum()
    for s in batches(len(y), 256):
        nats += float((-torch.cdist(y[s], x).square() / 2).logsumexp(1).sum())
    return nats / len(y) - float(constant) - float(torch.tensor(len(x)).log())
