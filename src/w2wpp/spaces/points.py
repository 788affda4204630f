"""Pure functions on points z [m] or [n, m] of any space, in prior units."""

import torch
from torch import Tensor


def interpolate(z0: Tensor, z1: Tensor, n: int) -> Tensor:
    """n points on the straight line from z0 [m] to z1 [m], both ends included: [n, m]. Dravid et al. 2024, section 4.1.

    Points in the middle are closer to the mean than both ends, as the average of two people is.
    """
    t = torch.linspace(0, 1, n, dtype=z0.dtype, device=z0.device)[:, None]
    # lerp gives both ends exactly; z0 + t (z1 - z0) would miss z1 by rounding.
    return torch.lerp(z0[None], z1[None], t)


def principal_directions(z: Tensor, k: int) -> Tensor:
    """The k directions in which points z [n, m] vary most, each as long as its standard deviation: [k, m], the longest first.

    The largest number of each is positive. None, [0, m], if there are not more than k points.
    """
    if len(z) <= k:
        return z[:0]
    _, values, v = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    k = min(k, len(v))
    signs = v[:k].gather(1, v[:k].abs().argmax(1, keepdim=True)).sign()
    return signs * v[:k] * values[:k, None] / (len(z) - 1) ** 0.5


def nearest(z: Tensor, zs: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest among zs [n, m] of each point z [q, m]: distances [q, k], nearest first, and positions [q, k].

    Euclidean: one unit is one standard deviation of the prior in any direction.
    """
    # "donot_use_mm": the matrix-product shortcut loses the small distances, which are the ones asked for.
    distances = torch.cdist(z, zs, compute_mode="donot_use_mm_for_euclid_dist")
    found = distances.topk(k, largest=False)
    return found.values, found.indices
