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
# Of a direction of the inputs, where the mean is 1. Descriptions hardly vary along 50 of their 128: enlarged to the variance of the
# others, these would be a random code of each photo.
LEAST_VARIANCE = 1e-2


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

        k is m, or the number of directions along which the inputs vary if that is less. Over the inputs that it was fitted to, the
        coordinates have mean 0 and covariance I.
        """
        variance, vectors = torch.linalg.eigh(self.covariance)
        varying = variance > LEAST_VARIANCE * self.covariance.diagonal().mean()
        spread, vectors = variance[varying].sqrt(), vectors[:, varying]  # inputs = vectors @ (spread * white inputs)
        turned = spread[:, None] * (vectors.T @ self.slope.double())
        values, kept = torch.linalg.eigh(turned @ turned.T)
        best = kept[:, values.argsort(descending=True)[:m]]
        return (best.T @ turned).float(), (vectors / spread @ best).T.float()
