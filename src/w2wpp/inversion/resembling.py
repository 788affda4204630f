"""Invert photos by likeness: move the point until what it draws looks like the photo to the network that describes photos.

Where an encoder was taught so (`inversion.likeness`), this goes on with the photo at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.seeds import generator
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.gradient import Inverted
from w2wpp.inversion.likeness import SOLVER_STEPS, faces_drawn, unlikeness
from w2wpp.inversion.watching import InversionStep, Watch
from w2wpp.photos.descriptors import mean_descriptions
from w2wpp.photos.images import Image
from w2wpp.spaces.base import Space

MOST = 1000  # pictures per person and step
FARTHEST = 1000.0  # standard deviations from the mean: where no descent ends that has not diverged
PASSES = 2 * SOLVER_STEPS  # of the UNet for one picture, with guidance


@dataclass(frozen=True)
class LikenessOptions:
    """How to invert by likeness. Chosen on val people, within 40 UNet evaluations."""

    steps: int = 5  # of Adam; 0 keeps the start
    batch: int = 1  # pictures per person and step, of 8 UNet evaluations each
    lr: float = 0.1  # Adam's rate, in prior units of z
    prompt: str | None = None  # of the pictures; the one that the space's adapters were trained with unless given
    prior_weight: float = 0.01  # of |z|^2 / 2m (eq. 6)
    group: int = 32  # people that share each forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.prior_weight >= 0 and self.steps >= 0 and 1 <= self.batch <= MOST):
            found = f"{self.steps} steps, batch {self.batch}, lr {self.lr:g} and prior weight {self.prior_weight:g}"
            raise W2WError(f"a photo cannot be inverted with {found}. lr must be above 0, batch from 1 to {MOST}, the others at least 0.")


def invert_by_likeness(
    base: BaseModel,
    space: Space,
    photos: Sequence[Sequence[Image]],
    keys: Sequence[str],
    options: LikenessOptions,
    encoder: PhotoEncoder,
    watch: Watch | None = None,
) -> Inverted:
    """Find, for each person, the point near the encoder's whose pictures are described as the photos are.

    photos: aligned, [h, w, 3] uint8 each; several of a person are described by their mean. keys: for each person, the name of their
    random draws; a person's point does not depend on who shares the batch. losses of the result are 1 - cosine. watch: called after
    each step. Raises W2WError if base, space and encoder do not belong together, without the extra that describes faces, or if the
    point leaves for the far away.
    """
    space.check(space.layout, base.id, f"base {base.source}")
    encoder.check(space)
    space, described = space.to(base.device), mean_descriptions(photos)
    contexts = list(base.encode_text([options.prompt or space.prompting.prompt, ""]).float())
    with torch.no_grad():
        z = encoder(described).to(base.device)
    z.requires_grad_(True)
    optimiser, path, losses = torch.optim.Adam([z], lr=options.lr), [z.detach().cpu().clone()], []
    for step in track(range(options.steps), "look for a likeness", "steps"):
        noise = torch.stack(
            [
                torch.randn(base.latent_shape, generator=generator(options.seed, "likeness", key, step, i))
                for key in keys
                for i in range(options.batch)
            ]
        )
        found, _ = faces_drawn(base, space.layout, space.decode(z), contexts, noise)
        own = unlikeness(found, described[:, None], encoder.mean)
        # A sum over people: nobody's gradient holds anybody else's loss, and Adam works number by number.
        total = own.sum() + options.prior_weight * (z.square().mean(1) / 2).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        losses.append(own.detach().cpu())
        path.append(z.detach().cpu().clone())
        if watch:
            watch(InversionStep(list(keys), step + 1, options.steps, losses[-1], path[-1]))
    if not (path[-1].abs() < FARTHEST).all():  # also where they are not numbers
        raise W2WError(f"inversion diverged at learning rate {options.lr:g}. Lower --lr.")
    told = torch.stack(losses) if losses else torch.zeros(0, len(keys))
    return Inverted(path[-1], told, torch.stack(path), float(PASSES * options.batch * options.steps))
