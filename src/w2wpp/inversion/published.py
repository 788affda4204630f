"""The inversions of the two papers' code, as they are: for comparison, and for those who want the published result.

Weights2Weights moves the raw coefficients of its components from 0 by Adam; every step draws the photo's latents, one timestep
and the noise afresh. Weights2Weights++ does so in the latents of its VAE, by AdamW, with several timesteps per step.
`InversionOptions` is ours: prior units, a fixed set of draws, a prior.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.gradient import Inverted
from w2wpp.inversion.watching import InversionStep, Watch
from w2wpp.photos.images import Image, to_tensor
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace


@dataclass(frozen=True)
class PublishedOptions:
    """How the published code inverts; the defaults are those for a photo of a person (Dravid et al. 2024, section 3.4)."""

    steps: int = 400
    lr: float = 0.1  # in raw coefficients of a PCA, in latents of a VAE
    weight_decay: float = 1e-10
    decoupled: bool = False  # AdamW in place of Adam
    timesteps: int = 1  # draws a step, of one sample of the photo's latents
    components: int | None = None  # only so many of the first; the rest stay at 0. None: all of the space
    random_start: bool = False  # from a draw of N(0, I) in place of 0
    activity: tuple[float, ...] = ()  # what multiplies each coordinate's gradient; Adam undoes all but a 0
    prompt: str | None = None  # of the photos; the one that the space's adapters were trained with unless given
    group: int = 32  # people that share each forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.lr > 0 or self.timesteps < 1 or (self.components is not None and self.components < 1):
            raise W2WError(
                f"a photo cannot be inverted with {self.steps} steps, lr {self.lr:g}, {self.timesteps} timesteps "
                f"and {self.components} components. lr must be above 0, steps at least 0, the others at least 1."
            )


RAW = PublishedOptions()
OUT_OF_DISTRIBUTION = PublishedOptions(steps=800, lr=1.0, components=1000)
SEED = PublishedOptions(lr=1e-4, decoupled=True, timesteps=10, random_start=True)  # of Weights2Weights++, in its VAE


def published_options(space: Space, *, out_of_distribution: bool = False, activity: str | Path | None = None) -> PublishedOptions:
    """The recipe of the paper that a space comes from.

    out_of_distribution: for a photo unlike those of the dataset, in a PCA. activity: a dataset; latents of a VAE that do not
    move over it stay. Raises W2WError for options of the other kind of space.
    """
    if space.kind == "pca":
        if activity:
            raise W2WError("--activity is for latents of a VAE, and this space is a pca. Leave it out.")
        return OUT_OF_DISTRIBUTION if out_of_distribution else RAW
    if out_of_distribution:
        raise W2WError(f"--out-of-distribution is for components of a pca, and this space is of kind {space.kind}. Leave it out.")
    if activity is None:
        return SEED
    data = WeightDataset.from_pretrained(activity)
    space.check(data.layout, data.base_id, f"dataset {activity}")
    moved = latent_activity(space, data.rows(range(min(len(data), 1000))))
    return replace(SEED, activity=tuple(moved.where(moved > 0.1, 0.0).tolist()))  # its analysis calls latents above 0.1 active


def invert_published(
    base: BaseModel,
    space: Space,
    photos: Sequence[Sequence[Image]],
    keys: Sequence[str],
    options: PublishedOptions,
    mask: Tensor | None = None,
    watch: Watch | None = None,
) -> Inverted:
    """Find the point of each person as the published code does.

    photos: for each person, aligned pictures [h, w, 3] uint8, taken in turn. keys: for each person, the name of their random
    draws. mask: [1, 1, h, w] in 0..1, which multiplies prediction and target both. watch: called after each step.
    Raises W2WError if the space belongs to another base, or the coefficients stop being numbers.
    """
    space.check(space.layout, base.id, f"base {base.source}")
    space = space.to(base.device)
    k, n = len(keys), options.timesteps
    context = base.encode_text([options.prompt or space.prompting.prompt])[0].float()
    moments = [latent_moments(base, images) for images in photos]
    draws = [generator(options.seed, "published inversion", key) for key in keys]
    held = min(options.components or space.m, space.m)
    begin = torch.stack([torch.randn(held, generator=draw) for draw in draws]) if options.random_start else torch.zeros(k, held)
    raw = begin.to(base.device).requires_grad_(True)
    kind = torch.optim.AdamW if options.decoupled else torch.optim.Adam
    optimiser = kind([raw], lr=options.lr, weight_decay=options.weight_decay)
    squared = None if mask is None else mask.to(base.device).square()[None].expand(k, n, -1, -1, -1)
    last = base.noise_scheduler.config.num_train_timesteps
    path, losses = [_points(space, raw)], torch.zeros(options.steps, k)
    for step in track(range(options.steps), f"invert {k} photos as published", "steps"):
        latents = torch.stack([_sample(moments[i], step, draws[i]) for i in range(k)])[:, None].expand(-1, n, -1, -1, -1).to(base.device)
        timesteps = torch.stack([torch.randint(last, (n,), generator=draw) for draw in draws]).to(base.device)
        noise = torch.stack([torch.randn(n, *base.latent_shape, generator=draw) for draw in draws]).to(base.device)
        weights = space.decode(_in_prior_units(space, raw))
        own = denoising_loss(base, space.layout, weights, latents, context, timesteps, noise, squared).mean(1)
        if squared is not None:  # the plain mean over all places, as the published code takes it
            own = own * squared.mean((1, 2, 3, 4))
        optimiser.zero_grad(set_to_none=True)
        own.sum().backward()
        if options.activity and raw.grad is not None:
            raw.grad.mul_(torch.tensor(options.activity[:held]).to(raw.grad))
        optimiser.step()
        losses[step] = own.detach().cpu()
        path.append(_points(space, raw))
        if watch:
            watch(InversionStep(list(keys), step + 1, options.steps, losses[step].clone(), path[-1].clone()))
    ways = torch.stack(path)
    if not torch.isfinite(ways[-1]).all():
        raise W2WError(f"inversion diverged at learning rate {options.lr:g}: coefficients are not numbers. Leave out --published.")
    return Inverted(ways[-1], losses, ways, float(options.steps * n))


@torch.no_grad()
def latent_moments(base: BaseModel, images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    """Mean and deviation [p, c, h, w] of the photos' scaled latents, on the CPU; deviation 0 where the autoencoder has none."""
    vae = base.pipeline.vae
    encoded = vae.encode(to_tensor(list(images)).to(base.device, base.dtype))
    if not hasattr(encoded, "latent_dist"):
        mean = encoded.latents
        return (mean * vae.config.scaling_factor).float().cpu(), torch.zeros(mean.shape)
    found = encoded.latent_dist
    return tuple((part * vae.config.scaling_factor).float().cpu() for part in (found.mean, found.std))


@torch.no_grad()
def latent_activity(space: Space, rows: Tensor) -> Tensor:
    """How much each latent moves over adapters rows [n, d]: the variance of its mean, [m], of 1 at most."""
    return space.encode(rows).var(0).clamp_max(1.0).cpu()


def _sample(moments: tuple[Tensor, Tensor], step: int, draw: torch.Generator) -> Tensor:
    mean, deviation = (part[step % len(part)] for part in moments)
    return mean + deviation * torch.randn(mean.shape, generator=draw)


def _in_prior_units(space: Space, raw: Tensor) -> Tensor:
    """Coefficients [k, held] as points [k, m]; those that are not held are 0."""
    padded = torch.cat([raw, raw.new_zeros(len(raw), space.m - raw.shape[1])], 1)
    return space.from_raw(padded) if isinstance(space, PcaSpace) else padded


def _points(space: Space, raw: Tensor) -> Tensor:
    return _in_prior_units(space, raw.detach()).cpu().clone()
