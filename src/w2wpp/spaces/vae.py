"""VAE-w2w: a variational autoencoder over adapters (Weights2Weights++, section 5.1), exactly as published.

Weights x 10 go through linear layers with LeakyReLU to m latents and back, then tanh. Published without centring and
without a scale for each coordinate; `collapse` shows what comes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from w2wpp.errors import W2WError
from w2wpp.images import batches
from w2wpp.layout import Layout
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.pca import smaller_product
from w2wpp.weights import WeightDataset

SCHEDULES = ("steps", "cyclical")
VARIANTS = ("plain", "residual-adversarial")


@dataclass(frozen=True)
class VaeOptions:
    """How a VAE-w2w is built and trained; the defaults are the published ones, for Stable Diffusion 1.5."""

    m: int = 512  # latents
    widths: tuple[int, ...] = (4096, 2048, 1024)  # of the encoder's hidden layers; the decoder mirrors them
    scale: float = 10.0  # what weights are multiplied with; decoding divides by it
    lr: float = 1e-4  # Adam's rate
    batch: int = 64  # adapters a step
    epochs: int = 12
    warmup_epochs: int = 3  # with KL weight 0; in as many more it rises step by step
    kl_weight: float = 0.005  # after the rise; of the KL averaged over latents, against the error averaged over d
    schedule: str = "steps"  # or "cyclical": four times from 0 up
    variant: str = "plain"  # or "residual-adversarial": residual blocks, and a critic of decoded weights
    adversarial_weight: float = 0.001  # of the critic's word, against the error averaged over d
    seed: int = 0

    def __post_init__(self) -> None:
        for given, known in ((self.schedule, SCHEDULES), (self.variant, VARIANTS)):
            if given not in known:
                raise W2WError(f"a VAE knows no {given!r}. Choose {' or '.join(known)}.")


class VaeSpace(Space):
    """A non-linear space; z of an adapter is its posterior's mean, and the prior is N(0, I) (Kingma and Welling 2014)."""

    kind = "vae"

    def __init__(self, layout: Layout, base_id: str, options: VaeOptions) -> None:
        super().__init__(layout, base_id)
        self.options, self.m = options, options.m
        residual = options.variant == "residual-adversarial"
        sizes = (layout.d, *options.widths)
        self.encoder = layers((*sizes, 2 * options.m), residual)  # mean and log variance of each latent
        self.decoder = layers((options.m, *reversed(sizes)), residual)

    @classmethod
    def fit(
        cls,
        data: WeightDataset | Tensor,
        options: VaeOptions | None = None,
        *,
        layout: Layout | None = None,
        base_id: str = "",
        device: str = "auto",
        checkpoint: str | Path | None = None,
    ) -> tuple["VaeSpace", dict[str, Any]]:
        """Train on a dataset, or on weights [n, d] given with their layout and base -> the space and its history.

        history: {"recon": {"train", "val"}, "kl": {"train", "val"}, "kl_weight", "test"}, a number an epoch; recon is
        the squared error averaged over d in x10 units, kl is in nats, averaged over latents.
        checkpoint: a file that holds the training's state after each epoch; a run that finds it there goes on from it.
        Raises W2WError for fewer than m + 1 adapters or three people, NaN, a loss that is none, or a foreign checkpoint.
        """
        from w2wpp.spaces.vae_training import train_vae  # which needs this class

        return train_vae(Adapters.of(data, layout, base_id), options or VaeOptions(), device, checkpoint)

    def encode(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> points z [n, m] float32, their posteriors' means. Raises W2WError for another d or NaN."""
        return self.posterior(self.scaled(weights))[0]

    def decode(self, z: Tensor) -> Tensor:
        """Points z [n, m] -> adapters weights [n, d] float32 in their own units; differentiable."""
        return self.decode_scaled(z.to(self.device)) / self.options.scale

    def scaled(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> x [n, d], in the units of the loss. Raises W2WError for another d or NaN."""
        return self.given(weights) * self.options.scale

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled adapters x [n, d] -> mean and log variance of their latents, [n, m] each."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance

    def decode_scaled(self, z: Tensor) -> Tensor:
        """Latents z [n, m] -> scaled adapters [n, d], each number within -1 and 1."""
        return self.decoder(z).tanh()

    def config(self) -> dict[str, Any]:
        """The options it was trained with."""
        return {"options": asdict(self.options)}

    @classmethod
    def blank(cls, layout: Layout, base_id: str, config: Mapping[str, Any]) -> Self:
        """A space with untrained networks."""
        options = config["options"]
        return cls(layout, base_id, VaeOptions(**{**options, "widths": tuple(options["widths"])}))


class ResidualBlock(nn.Module):
    """x + W2 LeakyReLU(W1 x), at one width (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [n, width]."""
        return x + self.inner(x)


def layers(sizes: Sequence[int], residual: bool = False) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], LeakyReLU between them, a residual block after each if asked."""
    chain: list[nn.Module] = []
    for here, there in pairwise(sizes[:-1]):
        chain += [nn.Linear(here, there), nn.LeakyReLU(), *([ResidualBlock(there)] if residual else [])]
    return nn.Sequential(*chain, nn.Linear(sizes[-2], sizes[-1]))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each latent, in nats: [n, m]."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


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
    kl_per_unit: nats a latent, over adapters. decoded_spread_ratio: variance of the reconstructions over that of the
    adapters; sampled_spread_ratio: the same of drawn points; near 0 means that the answer is always the mean adapter.
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
