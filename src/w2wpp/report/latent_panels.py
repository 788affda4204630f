"""Six panels on the latents of a VAE, as the code of Weights2Weights++ draws them, and grids of reconstructions."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.photos.images import Image, grid
from w2wpp.spaces.base import Space

ACTIVE = 0.1  # variance of a latent's mean over adapters from which on the seed's code calls it active
SIGNIFICANT = 0.05


def latent_figures(means: Tensor, errors: Tensor) -> dict[str, float]:
    """What the panels say in numbers, of latent means [n, m] and each adapter's reconstruction error [n].

    active: latents whose variance is above 0.1. mean_norm: of the mean latent. correlation: mean absolute, off the diagonal.
    """
    m = means.shape[1]
    varying = means[:, means.var(0) > 0]
    off = torch.corrcoef(varying.T) - torch.eye(varying.shape[1]) if varying.shape[1] > 1 else torch.zeros(1, 1)
    return {
        "latents": m,
        "active": int((means.var(0, correction=0) > ACTIVE).sum()),
        "mean_norm": float(means.mean(0).norm()),
        "correlation": float(off.abs().mean()),
        "reconstruction_error": float(errors.mean()),
    }


@torch.no_grad()
def encoded(space: Space, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Latent means [n, m] of adapters weights [n, d], and the mean squared error [n] of what they decode to, in weights."""
    means, errors = [], []
    for s in batches(len(weights), 100):
        z = space.encode(weights[s])
        means.append(z.cpu())
        errors.append((space.decode(z).cpu() - weights[s]).square().mean(1))
    return torch.cat(means), torch.cat(errors)


def latent_panels(means: Tensor, errors: Tensor) -> Image:
    """One picture of six panels from latent means [n, m] and errors [n]: [h, w, 3] uint8.

    Distributions of five latents; variance by latent and the threshold of activity; encoded adapters and draws of N(0, I) on
    their first two principal directions; correlations; reconstruction errors; normality by latent (D'Agostino and Pearson).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    z, m = means.double().numpy(), means.shape[1]
    figure, axes = plt.subplots(3, 2, figsize=(12, 12), layout="constrained")
    for i in range(min(5, m)):
        axes[0, 0].hist(z[:, i], bins=50, alpha=0.5, density=True, label=f"latent {i}")
    axes[0, 0].set(title="distribution of the first latents", xlabel="value", ylabel="density")
    axes[0, 0].legend(frameon=False)
    variance = z.var(0)
    axes[0, 1].bar(range(m), variance)
    axes[0, 1].axhline(ACTIVE, color="tab:red", linestyle="--")
    axes[0, 1].set(
        title=f"variance by latent: {int((variance > ACTIVE).sum())} of {m} above {ACTIVE:g}", xlabel="latent", ylabel="variance"
    )
    _projected(axes[1, 0], z)
    with np.errstate(invalid="ignore", divide="ignore"):
        shown = axes[1, 1].imshow(np.nan_to_num(np.atleast_2d(np.corrcoef(z.T))), cmap="coolwarm", vmin=-1, vmax=1)
    figure.colorbar(shown, ax=axes[1, 1])
    axes[1, 1].set(title="correlation of the latents", xlabel="latent", ylabel="latent")
    axes[2, 0].hist(errors.numpy(), bins=50)
    axes[2, 0].set(title=f"reconstruction error: mean {float(errors.mean()):.3g}", xlabel="squared error by weight", ylabel="adapters")
    axes[2, 1].bar(range(m), normality(means).numpy())
    axes[2, 1].axhline(-np.log10(SIGNIFICANT), color="tab:red", linestyle="--")
    axes[2, 1].set(title="normality by latent", xlabel="latent", ylabel="-log10 p")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    plt.close(figure)
    return np.asarray(PILImage.open(file, formats=["PNG"]).convert("RGB"))


def normality(means: Tensor) -> Tensor:
    """-log10 of the p value that a latent is normal over adapters, [m]; 0 where it never varies or there are under 20."""
    from scipy import stats

    found = torch.zeros(means.shape[1], dtype=torch.float64)
    varies = means.double().var(0) > 1e-20
    if len(means) >= 20 and varies.any():
        p = stats.normaltest(means.double()[:, varies].numpy()).pvalue
        found[varies] = -torch.from_numpy(np.maximum(p, 1e-300)).log10()
    return found


def reconstruction_grid(originals: Sequence[Sequence[Image]], rebuilt: Sequence[Sequence[Image]]) -> Image:
    """Rows of pictures of adapters, each over the pictures of what its reconstruction draws at the same image seeds."""
    return grid([row for pair in zip(originals, rebuilt, strict=True) for row in pair])


def _projected(axes: Any, z: np.ndarray) -> None:
    centred = z - z.mean(0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    drawn = np.random.default_rng(0).standard_normal(z.shape) - z.mean(0)
    share = (spread[:2] ** 2).sum() / max(1e-30, (spread**2).sum())
    for points, name, colour in ((drawn, "N(0, I)", "tab:gray"), (centred, "encoded", "tab:blue")):
        flat = points @ directions.T
        axes.scatter(flat[:, 0], flat[:, -1], s=8, alpha=0.5, label=name, color=colour)
    axes.set(title=f"first two directions: {share:.0%} of the variance", aspect="equal")
    axes.legend(frameon=False)
