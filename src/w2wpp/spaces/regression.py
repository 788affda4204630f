"""Adapters, predicted from descriptions of their people by ridge regression, in closed form.

One adapter is mostly noise of its training; what adapters of people who look alike have in common is not. The regression
needs the rows once, in batches, and holds [f, t] numbers (Hoerl and Kennard 1970; its best directions: Izenman 1975).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.common.batches import batches

# Of the ridge, for each row, in units of a standardised description's variance. By pictures on val people a tenth is better than a
# half, which fits the rows of people held out better: what the ridge shrinks, loudness can give back, but not noise.
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
        centred = inputs.double() - at
        total, cross = torch.zeros(()), torch.zeros(())
        for s in batches(n, batch):
            part = targets(s).float()
            total = total + part.sum(0).double()
            cross = cross + centred[s].float().T @ part
        covariance = centred.T @ centred / n
        slope = torch.linalg.solve(covariance + penalty * torch.eye(f).to(covariance), cross.double() / n)
        return cls(slope.float(), (total / n).float(), at.float(), covariance)

    def directions(self, m: int) -> tuple[Tensor, Tensor]:
        """The m directions in which predictions vary most: [k, t], and the map [k, f] from centred inputs to their coordinates.

        k is m, or f if that is less. Over the inputs that it was fitted to, the coordinates have mean 0 and covariance I.
        """
        ridge = 1e-6 * self.covariance.diagonal().mean() * torch.eye(len(self.covariance)).to(self.covariance)
        lower = torch.linalg.cholesky(self.covariance + ridge)  # inputs = lower @ white inputs
        turned = lower.T @ self.slope.double()
        values, vectors = torch.linalg.eigh(turned @ turned.T)
        best = vectors[:, values.argsort(descending=True)[:m]]
        into = torch.linalg.solve_triangular(lower.T, best, upper=True)
        return (best.T @ turned).float(), into.T.float()
