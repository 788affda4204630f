"""A flow from noise to points of people (Lipman et al. 2023, Liu et al. 2023), with conditions and classifier-free guidance.

x_t = (1 - t) noise + t point, and the network predicts the velocity, point - noise. Points are whitened first, and the network
is added to the velocity that carries N(0, I) to N(lead, I), where the lead is a ridge regression on the conditions. Its last
layer starts at zero. So before training the flow draws from one Gaussian with the points' covariance and a mean that follows
what is asked, and early stopping keeps that where nothing better is found.

A description says much more of a point than attributes do, so there are two networks: `plain`, which knows attributes alone, and
`like` for draws that a description asks for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from w2wpp.prior.base import Prior
from w2wpp.prior.conditions import Asked, Conditions
from w2wpp.prior.examples import Examples

PLAIN, LIKE = "plain", "like"
MOST_SOLVER_STEPS = 10_000
FREQUENCIES = 16  # of the time's sines and cosines
FLOOR = 1e-4  # of the points' variances, of the mean one


@dataclass(frozen=True)
class FlowOptions:
    """How a flow is built, trained and solved."""

    hidden: int = 256  # width of the network
    blocks: int = 3
    steps: int = 2000  # of AdamW, at most
    batch: int = 256  # points per step
    lr: float = 1e-3  # AdamW's peak rate; it falls along a half cosine to 0
    decay: float = 0.99  # of the running mean of the weights, which is what draws
    dropped: float = 0.1  # share of points for which a condition is left out
    every: int = 50  # steps between measurements on held-out people
    patience: int = 6  # measurements without a better one, and training stops
    solver_steps: int = 32


class Block(nn.Module):
    """A residual MLP whose norm is scaled, shifted and gated by time and conditions (Peebles and Xie 2023, adaLN-Zero)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.inner = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.modulation = nn.Linear(hidden, 3 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """x, told [n, hidden] -> [n, hidden]."""
        scale, shift, gate = self.modulation(told).chunk(3, 1)
        return x + gate * self.inner(self.norm(x) * (1 + scale) + shift)


class Velocity(nn.Module):
    """Whitened points on their way [n, m], times [n], conditions [n, c] -> velocities [n, m]."""

    lead: Tensor  # [c, m], from conditions to the mean of whitened points

    def __init__(self, m: int, conditions: int, options: FlowOptions) -> None:
        super().__init__()
        hidden = options.hidden
        self.time, self.conditions = nn.Linear(2 * FREQUENCIES, hidden), nn.Linear(conditions, hidden)
        self.first, self.last = nn.Linear(m, hidden), nn.Linear(hidden, m)
        self.blocks = nn.ModuleList(Block(hidden) for _ in range(options.blocks))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("lead", torch.zeros(conditions, m))

    def forward(self, x: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """As the class says."""
        waves = t[:, None] * math.pi * torch.arange(1, FREQUENCIES + 1).to(t)
        told = nn.functional.silu(self.time(torch.cat([waves.sin(), waves.cos()], 1)) + self.conditions(conditions))
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, told)
        # From N(0, I) to N(mean, I), E[point - noise | x_t] = mean + (2t - 1) / (t^2 + (1 - t)^2) (x_t - t mean).
        mean = conditions @ self.lead
        straight = mean + ((2 * t - 1) / (t.square() + (1 - t).square()))[:, None] * (x - t[:, None] * mean)
        return straight + self.last(hidden)


class FlowPrior(Prior):
    """Points of people as a flow draws them, with attributes and a face description where asked."""

    kind = "flow"
    mean: Tensor  # [m], over points
    factor: Tensor  # [m, m], lower triangular: a point is mean + factor x

    def __init__(self, m: int, conditions: Conditions, options: FlowOptions) -> None:
        super().__init__(m)
        self.options, self.conditions = options, conditions
        self.register_buffer("mean", torch.zeros(m))
        self.register_buffer("factor", torch.eye(m))
        self.ways = nn.ModuleDict({way: Velocity(m, conditions.width, options) for way in (PLAIN, LIKE)[: 2 if conditions.features else 1]})

    @classmethod
    def fit(
        cls, train: Examples, held_out: Examples, *, attributes: Sequence[str] = (), seed: int = 0, options: FlowOptions | None = None
    ) -> Self:
        """Train by flow matching; what did best on held-out people is kept. Raises W2WError for attributes that points lack."""
        from w2wpp.prior.flow_training import train_flow

        options, m = options or FlowOptions(), train.z.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = cls(m, Conditions.of(train, attributes), options)
        covariance = torch.cov(train.z.double().T).reshape(m, m)
        floor = FLOOR * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(m, dtype=covariance.dtype)
        flow.mean, flow.factor = train.z.mean(0), torch.linalg.cholesky(covariance + floor).float()
        flow.history = train_flow(flow, train, held_out, seed)
        return flow

    def sound(self) -> bool:
        """Whether it can be solved in so many steps."""
        steps = self.options.solver_steps
        return isinstance(steps, int) and 1 <= steps <= MOST_SOLVER_STEPS

    def whitened(self, z: Tensor) -> Tensor:
        """Points z [n, m] as the network sees them: mean 0, covariance I over those that it was fitted to."""
        return torch.linalg.solve_triangular(self.factor, (z - self.mean).T, upper=False).T

    def check_asked(self, asked: Asked) -> None:
        """Raise W2WError for an attribute or a description that the points did not have."""
        self.conditions.of_asked(asked)

    def drawn(self, draws: Sequence[torch.Generator], asked: Asked, guidance: float) -> Tensor:
        """Solve the flow from each generator's noise, by Heun's rule."""
        x = torch.stack([torch.randn(self.m, generator=draw) for draw in draws])
        told = self.conditions.of_asked(asked).expand(len(x), -1) if asked else None
        way = PLAIN if asked.like is None else LIKE
        steps = self.options.solver_steps
        for i in range(steps):
            here = self._velocity(x, i / steps, told, way, guidance)
            there = self._velocity(x + here / steps, (i + 1) / steps, told, way, guidance)
            x = x + (here + there) / (2 * steps)
        return self.mean + x @ self.factor.T

    def _velocity(self, x: Tensor, t: float, told: Tensor | None, way: str, guidance: float) -> Tensor:
        """The velocity at one time, guided towards the conditions if there are any (Ho and Salimans 2022)."""
        times, nothing = torch.full((len(x),), t), torch.zeros(len(x), self.conditions.width)
        plain: Tensor = self.ways[PLAIN](x, times, nothing)
        if told is None:
            return plain
        return plain + guidance * (self.ways[way](x, times, told) - plain)

    def config(self) -> dict[str, Any]:
        """Sizes, the attributes' names, and the options."""
        names, features = self.conditions.names, self.conditions.features
        return {"m": self.m, "attributes": list(names), "features": features, "options": asdict(self.options)}

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Self:
        """An untrained flow."""
        with torch.random.fork_rng(devices=[]):  # its numbers come from the file
            return cls(config["m"], Conditions(config["attributes"], config["features"]), FlowOptions(**config["options"]))
