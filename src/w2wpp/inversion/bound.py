"""Eq. 7, amortised over people: what an encoder of photos is trained by, alone or with the decoder of its space."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from w2wpp.common.seeds import generator
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import PersonPhotos
from w2wpp.spaces.base import Space
from w2wpp.spaces.networks import kl_divergence


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder is trained, alone or with the decoder of its space."""

    hidden: int = 512  # width of the residual network's one hidden layer
    steps: int = 900  # of Adam
    batch: int = 64  # people a step
    draws: int = 2  # of photo, timestep and noise per person and step, or pictures
    lr: float = 2e-3  # Adam's peak rate; it falls along a half cosine to 0
    # The same where training begins at a regression, as a share of the size of what is trained; the teacher's unless given.
    linear_lr: float | None = None
    prior_weight: float = 0.0002  # of the KL to the prior, a latent (eq. 7)
    jitter: float = 0.2  # noise on a description in training, in its standard deviations over photos; none after a regression
    measured: int = 5  # times that held-out people's loss is taken; the best is kept
    seed: int = 0


class Bound:
    """Eq. 7, amortised: the teacher's loss of decoded draws of z, and the KL of their distribution to the prior."""

    def __init__(self, space: Space, encoder: PhotoEncoder, photos: PersonPhotos, options: EncoderOptions) -> None:
        self.space, self.encoder, self.photos, self.options = space, encoder.to(photos.base.device), photos, options
        # Narrow from the start: at the prior's width the decoder learned to hear noise, and pictures lost 0.04 to 0.06 of their score.
        self.log_variance = nn.Parameter(torch.full((space.m,), -5.0, device=photos.base.device))

    def __call__(self, people: Sequence[str], draw: torch.Generator, jitter: float = 0.0) -> dict[str, Tensor]:
        """Means over these people: what is minimised, and its parts."""
        described = [self.photos.described[person] for person in people]
        given = torch.stack([photos[int(torch.randint(len(photos), (1,), generator=draw))] for photos in described])
        given = given.to(self.log_variance.device)
        given = given + jitter * self.encoder.scale * torch.randn(given.shape, generator=draw).to(given)
        mean = self.encoder(given)
        z = mean + (self.log_variance / 2).exp() * torch.randn(mean.shape, generator=draw).to(mean)
        taught = self.photos.loss(self.space.layout, self.space.decode(z), people, self.options.draws, draw).mean()
        kl = kl_divergence(mean, self.log_variance.expand_as(mean)).mean()
        return {"loss": taught + self.options.prior_weight * kl, "taught": taught, "kl": kl}

    @torch.no_grad()
    def measure(self, people: Sequence[str]) -> dict[str, float]:
        """The same over held-out people, with the same draws each time."""
        draw, size = generator(self.options.seed, "encoder held out"), self.options.batch
        groups = [people[i : i + size] for i in range(0, len(people), size)]
        found = [(len(group), self(group, draw)) for group in groups]
        return {name: sum(n * float(parts[name]) for n, parts in found) / len(people) for name in found[0][1]}
