"""Adapters, predicted from descriptions of their people by ridge regression, in closed form.

One adapter is mostly noise of its training; what adapters of people who look alike have in common is not. The regression
needs the rows once, in batches, and holds [f, t] numbers (Hoerl and Kennard 1970; its best directions: Izenman 1975).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.common.batches import batches

# For each row, where inputs are standardised descriptions. Pictures of val people resemble them more than with a half, though that
# predicts rows of people held out better: it shrinks more, and loudness makes up for shrinking.
PENALTY = 0.1


@dataclass(frozen=True)
class Ridge:
    """Targets [n, t] = centre + (inputs [n, f] - at) @ slope, and how the inputs vary."""

    slope: Tensor  # [f, t]
    centre: Tensor  # [t]
    at: Tensor  # [f]
    covariance: Tensor  # [f, f] float64, of the inputs

    @classmethod
    def fit(cls, inputs: Tensor, targets: Callable[[slice], Tensor], *, penalty: float = PENALTY, batch: int = 256) -> "Ridge":
        """inputs: [n, f]. targets: rows -> [k, t]; asked for once, in order. penalty: for each row, in the inputs' variance."""
        n, f = inputs.shape
        at = inputs.double().mean(0)
        total, cross, covariance = torch.zeros(()), torch.zeros(()), torch.zeros(f, f, dtype=torch.float64)
        for s in batches(n, batch):
            part, centred = targets(s).float(), inputs[s].double() - at
            total = total + part.sum(0).double()
            cross = cross + centred.float().T @ part
            covariance += centred.T @ centred / n
        slope = torch.linalg.solve(covariance + penalty * torch.eye(f).to(covariance), cross.double() / n)
        return cls(slope.float(), (total / n).float(), at.float(), covariance)

    def directions(self, m: int) -> tuple[Tensor, Tensor]:
        """The m directions in which predictions vary most: [k, t], and the map [k, f] from centred inputs to their coordinates.

        k is m, or f if that is less. Over the inputs that it was fitted to, the coordinates have mean 0 and covariance I.
        """
        floor = 1e-6 * self.covariance.diagonal().mean() * torch.eye(len(self.covariance)).to(self.covariance)
        lower = torch.linalg.cholesky(self.covariance + floor)  # inputs = lower @ white inputs
        turned = lower.T @ self.slope.double()
        values, vectors = torch.linalg.eigh(turned @ turned.T)
        best = vectors[:, values.argsort(descending=True)[:m]]
        into = torch.linalg.solve_triangular(lower.T, best, upper=True)
        return (best.T @ turned).float(), into.T.float()
