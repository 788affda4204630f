"""How much of a VAE has collapsed: active units, KL against the threshold, decoded spread against the data's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.spaces.networks import kl_divergence
from w2wpp.spaces.pca import smaller_product
from w2wpp.spaces.vae import VaeSpace


def kept_directions(spectrum: Tensor, d: int, m: int, kl_weight: float) -> dict[str, Any]:
    """How many principal directions the weighted loss can keep, given their variances `spectrum` [k], in the loss's units.

    Squared error averaged over d and `kl_weight` times the KL averaged over m latents are, but for a factor, a Gaussian
    likelihood of variance sigma^2 = kl_weight d / 2m: `collapse_threshold`. A linear VAE at its optimum keeps the m largest
    variances that exceed it; the others collapse (Lucas et al. 2019, arXiv:1911.02469, section 4).
    directions_above, directions_kept: those that exceed it, and the at most m that are kept. spectrum: variances by rank,
    from the largest. linear_optimum: what that VAE reaches, against which a trained one may be held: nats a latent
    (mean of log(variance / sigma^2) / 2, None at sigma = 0) and the variance of its reconstructions over the adapters'.
    """
    variances = spectrum.double().clamp_min(0).sort(descending=True).values
    threshold = kl_weight * d / (2 * m)
    above = int((variances > threshold).sum())
    kept = variances[: min(above, m)]
    ranks = [2**i for i in range(len(variances).bit_length())]
    return {
        "collapse_threshold": threshold,
        "directions_above": above,
        "directions_kept": len(kept),
        "largest_variance": float(variances[0]),
        "spectrum": {str(rank): float(variances[rank - 1]) for rank in ranks},
        "linear_optimum": {
            "kl_per_unit": float((kept / threshold).log().sum()) / (2 * m) if threshold else None,
            # A kept direction is decoded by sqrt(l - s^2) from a mean of variance 1 - s^2 / l.
            "decoded_spread_ratio": float(((kept - threshold).square() / kept).sum() / variances.sum()),
        },
    }


def principal_variances(x: Tensor) -> Tensor:
    """The variances of the principal directions of x [n, d]: [min(n, d)] float64, rising."""
    return torch.linalg.eigvalsh(smaller_product(x - x.mean(0))) / (len(x) - 1)


@torch.no_grad()
def collapse(space: VaeSpace, weights: Tensor) -> dict[str, Any]:
    """How much of the adapters weights [n, d] the latents still carry, as plain numbers.

    active_units: latents whose posterior mean varies by more than 0.01 over adapters (Burda et al. 2016).
    kl_per_unit: nats per latent, over adapters. decoded_spread_ratio: variance of the reconstructions over that of the
    adapters; sampled_spread_ratio: the same of drawn points; near 0 means that every reconstruction is the mean adapter.
    Beside them what `kept_directions` says of the spectrum of these adapters. Units are those of the loss: x10.
    """
    x = torch.cat([space.scaled(weights[s]) for s in batches(len(weights), 512)])
    means, variances = (torch.cat(found) for found in zip(*(space.posterior(x[s]) for s in batches(len(x), 512)), strict=True))
    kl = kl_divergence(means, variances).mean(0)
    total = _spread([x])
    drawn = space.sample(min(len(weights), 512)).to(space.device)
    return {
        "adapters": len(x),
        "active_units": int((means.var(0) > 0.01).sum()),
        "m": space.m,
        "kl_per_unit": {"mean": float(kl.mean()), "median": float(kl.median()), "min": float(kl.min()), "max": float(kl.max())},
        "decoded_spread_ratio": _spread([space.decode_scaled(means[s]) for s in batches(len(means), 512)]) / total,
        "sampled_spread_ratio": _spread([space.decode_scaled(drawn)]) / total,
        **kept_directions(principal_variances(x), space.layout.d, space.m, space.options.kl_weight),
    }


def _spread(parts: Sequence[Tensor]) -> float:
    """The variance of rows [n, d], given in parts, summed over coordinates."""
    mean = torch.cat([part.sum(0, keepdim=True) for part in parts]).sum(0) / sum(len(part) for part in parts)
    return sum(float((part - mean).square().sum()) for part in parts) / (sum(len(part) for part in parts) - 1)
