"""What a space keeps of an adapter: encode, decode, compare."""

import torch
from torch import Tensor

from w2wpp.spaces.base import Space


@torch.no_grad()
def reconstruct(space: Space, weights: Tensor, z: Tensor | None = None) -> tuple[Tensor, list[float]]:
    """Encode and decode weights [n, d]: the reconstructions [n, d] float32 on the CPU, and the share of each that is lost.

    z: their points [n, m] float32, where something else than the space's `encode` has read them.
    The share is |w - w'|^2 / |w - w0|^2, where w0 is what the prior's centre z = 0 decodes to: 0 for a perfect
    reconstruction, about 1 for a space that always answers with its centre.
    """
    rebuilt = space.decode(space.encode(weights) if z is None else z.to(space.device)).cpu()
    centre = space.decode(torch.zeros(1, space.m)).cpu()
    lost = (weights - rebuilt).square().sum(1) / (weights - centre).square().sum(1)
    return rebuilt, lost.tolist()
