"""From an adapter to a point, by what the adapter does: the pictures it draws, and what it predicts.

An adapter's numbers are mostly training noise, and networks that read them learn rows by heart. So the adapter draws some
pictures, and the photo encoder maps their mean description to a point, as it maps photos. Steps of Adam may then bring what the
decoded adapter predicts closer to what the given one predicts, on one fixed set of (timestep, noise) pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.objective import NoisePairs, PairOptions
from w2wpp.lora.batched import adapted
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import Image, to_tensor
from w2wpp.spaces.base import Space


@dataclass(frozen=True)
class AdapterReading:
    """How an adapter is read."""

    pictures: int = 8  # drawn by each adapter and described
    solver_steps: int = 15
    guidance: float = 2.0
    prompt: str = "photo of sks person"  # the one that the adapters were trained with
    steps: int = 0  # of Adam on what adapters predict; val people were shown better by the encoder's point itself
    batch: int = 4  # pairs per adapter and step
    lr: float = 0.05  # Adam's rate, in prior units of z; falls along a half cosine to 0
    prior_weight: float = 0.001  # of |z|^2 / 2m
    group: int = 32  # adapters that share each forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.steps < 0 or not self.lr > 0 or not self.prior_weight >= 0:
            found = f"{self.pictures} pictures, {self.steps} steps, lr {self.lr:g}, prior weight {self.prior_weight:g}"
            raise W2WError(f"an adapter cannot be read with {found}. Pictures and lr must be above 0, the others at least 0.")


def points_of_adapters(
    base: BaseModel, space: Space, encoder: PhotoEncoder, weights: Tensor, keys: Sequence[str], options: AdapterReading | None = None
) -> Tensor:
    """Adapters weights [n, d] -> points z [n, m] float32 on the CPU.

    keys: for each adapter, the name of its random draws; its point does not depend on who shares the batch.
    Raises W2WError if space, encoder and base do not belong together, or without the extra that describes faces.
    """
    options = options or AdapterReading()
    space.check(space.layout, base.id, f"base {base.source}")
    encoder.check(space)
    space, found = space.to(base.device), []
    for s in batches(len(keys), options.group):
        drawn = pictures_of_adapters(base, space.layout, weights[s], keys[s], options)
        with torch.no_grad():
            z = encoder.points(drawn)
        found.append(_refined(base, space, weights[s], drawn, keys[s], z, options) if options.steps else z)
    return torch.cat(found)


def pictures_of_adapters(
    base: BaseModel, layout: Layout, weights: Tensor, keys: Sequence[str], options: AdapterReading
) -> list[list[Image]]:
    """The pictures by which adapters weights [n, d] are read."""
    drawn, steps, group = options.pictures, options.solver_steps, options.group
    return generate_for(
        base, layout, weights, keys, options.prompt, drawn, guidance=options.guidance, steps=steps, seed=options.seed, group=group
    )


@torch.enable_grad()  # also for a caller that has turned gradients off
def _refined(
    base: BaseModel,
    space: Space,
    weights: Tensor,
    drawn: Sequence[Sequence[Image]],
    keys: Sequence[str],
    z: Tensor,
    options: AdapterReading,
) -> Tensor:
    """Points z [k, m] moved so that decoded adapters predict what weights [k, d] predict, on noised pictures that these drew."""
    space.layout.check_denoiser_alone()
    latents = [base.encode_images(to_tensor(pictures)).float() for pictures in drawn]
    size = options.steps * options.batch
    pairs = NoisePairs.draw(base, latents, keys, options.prompt, PairOptions(draws=size), options.seed)
    weights = weights.to(base.device, torch.float32)
    point = z.to(base.device, copy=True).requires_grad_(True)
    optimiser = torch.optim.Adam([point], lr=options.lr)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    for step in track(range(options.steps), f"refine {len(keys)} points", "steps"):
        at = slice(step * options.batch, (step + 1) * options.batch)
        noisy, _ = base.add_noise(pairs.latents[:, at].flatten(0, 1), pairs.noise[:, at].flatten(0, 1), pairs.timesteps[:, at].flatten())
        context = pairs.context.expand(len(noisy), -1, -1)
        with torch.no_grad(), adapted(base.pipeline.unet, space.layout, weights):
            asked = base.predict(noisy, pairs.timesteps[:, at].flatten(), context)
        with adapted(base.pipeline.unet, space.layout, space.decode(point)):
            predicted = base.predict(noisy, pairs.timesteps[:, at].flatten(), context)
        error = (predicted - asked).square().mean((1, 2, 3)).unflatten(0, (len(keys), -1)).mean(1)
        # A sum over adapters: nobody's gradient holds anybody else's error.
        total = error.sum() + options.prior_weight * (point.square().mean(1) / 2).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        anneal.step()
    if not torch.isfinite(point).all():
        raise W2WError(f"reading adapters diverged at learning rate {options.lr:g}: points are not numbers. Lower the rate.")
    return point.detach().cpu()
