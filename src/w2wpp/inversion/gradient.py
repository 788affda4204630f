"""Invert photos by gradient descent on the point: the published way, which later ways are measured against.

Weights2Weights++, eq. 5, after Dravid et al. 2024, section 3.4: every step draws a fresh timestep and fresh noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.base_model import BaseModel, denoising_loss
from w2wpp.errors import W2WError
from w2wpp.images import batches
from w2wpp.progress import track
from w2wpp.seeds import generator
from w2wpp.spaces.base import Space


@dataclass(frozen=True)
class InversionOptions:
    """How to invert; the defaults are the published ones."""

    steps: int = 400  # of Adam
    batch: int = 1  # draws of timestep and noise a person and step
    lr: float = 0.1  # Adam's rate, in prior units of z
    prompt: str = "photo of sks person"  # the one that the space's adapters were trained with
    prior_weight: float = 0.0  # of |z|^2 / 2m, minus the log of the prior, a latent (eq. 6); 0 is eq. 5
    group: int = 32  # people that share each forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.prior_weight >= 0):
            found = f"lr {self.lr:g} and prior weight {self.prior_weight:g}"
            raise W2WError(f"a photo cannot be inverted with {found}. lr must be above 0, the prior weight at least 0.")


@dataclass(frozen=True)
class Inverted:
    """Points of k people and how they were found."""

    z: Tensor  # [k, m] float32 in prior units, on the CPU
    losses: Tensor  # [steps, k] float32, the denoising loss on each step's own draw
    unet_evals: int  # pictures a person that went through the UNet


def invert(
    base: BaseModel, space: Space, latents: Tensor, keys: Sequence[str], options: InversionOptions, mask: Tensor | None = None
) -> Inverted:
    """Find, for each person's photo, the point whose adapter denoises the photo best, from the mean point z = 0 on.

    latents: [k, c, h, w], one photo a person, scaled. keys: for each person, the name of their random draws; a
    person's point does not depend on who shares the batch. mask: [k or 1, 1, h, w] in 0..1, what the loss looks at.
    Raises W2WError if the space belongs to another base, or the loss stops being a number.
    """
    if latents.shape != (len(keys), *base.latent_shape):
        expected = [len(keys), *base.latent_shape]
        raise W2WError(f"latents have shape {list(latents.shape)}, expected {expected}: one photo for each of {len(keys)} keys.")
    space.check(space.layout, base.id, f"base {base.source}")
    space = space.to(base.device)
    context = base.encode_text([options.prompt])[0].float()
    masks = None if mask is None else mask.to(base.device).expand(len(keys), -1, -1, -1)
    found = [
        _invert_group(base, space, latents[s], keys[s], options, context, None if masks is None else masks[s])
        for s in batches(len(keys), options.group)
    ]
    z, losses = torch.cat([z for z, _ in found]), torch.cat([losses for _, losses in found], 1)
    if not torch.isfinite(z).all():
        raise W2WError(f"inversion diverged at learning rate {options.lr:g}: points are not numbers. Lower --lr.")
    return Inverted(z, losses, options.steps * options.batch)


def _invert_group(
    base: BaseModel, space: Space, latents: Tensor, keys: Sequence[str], options: InversionOptions, context: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    k, n = len(keys), options.batch
    z = torch.zeros(k, space.m, device=base.device, requires_grad=True)
    optimiser = torch.optim.Adam([z], lr=options.lr)
    draws = [generator(options.seed, "inversion", key) for key in keys]
    last = base.noise_scheduler.config.num_train_timesteps
    photos = latents.to(base.device, torch.float32)[:, None].expand(-1, n, -1, -1, -1)
    losses = torch.zeros(options.steps, k)
    for step in track(range(options.steps), f"invert {k} photos"):
        timesteps = torch.stack([torch.randint(last, (n,), generator=draw) for draw in draws]).to(base.device)
        noise = torch.stack([torch.randn(n, *base.latent_shape, generator=draw) for draw in draws]).to(base.device)
        loss = denoising_loss(
            base, space.layout, space.decode(z), photos, context, timesteps, noise, None if mask is None else mask[:, None]
        )
        own = loss.mean(1)
        # A sum over people: nobody's gradient holds anybody else's loss, and Adam works number by number.
        total = own.sum() + options.prior_weight * z.square().mean(1).sum() / 2
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        losses[step] = own.detach().cpu()
    return z.detach().cpu(), losses
