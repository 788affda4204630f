"""Photos of people to train on: their latents, their descriptions, and the denoising loss of adapters on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.alignment import AlignedFaces
from w2wpp.base_model import BaseModel, denoising_loss
from w2wpp.descriptors import described_faces
from w2wpp.images import to_tensor
from w2wpp.layout import Layout
from w2wpp.progress import track


@dataclass(frozen=True)
class PersonPhotos:
    """Photos of people as a base sees them, and as a face describer does."""

    base: BaseModel
    latents: Mapping[str, Tensor]  # person -> [p, c, h, w], each photo and its mirror image
    described: Mapping[str, Tensor]  # person -> [p, f]
    context: Tensor  # [tokens, width], of the adapters' prompt

    @classmethod
    def of(cls, base: BaseModel, faces: AlignedFaces | str | Path, split: str, prompt: str) -> "PersonPhotos":
        """Encode and describe the photos of a split's people, or of everyone if it is "".

        Descriptions are kept in the faces folder for the next time. Raises W2WError for a split of nobody, or without
        the extra that describes.
        """
        faces = faces if isinstance(faces, AlignedFaces) else AlignedFaces.open(faces)
        people = faces.of_split(split) if split else list(faces.people)
        described = described_faces(faces, people)
        latents = {}
        for person in track(people, "encode photos"):
            images = to_tensor(faces.photos(person))
            latents[person] = base.encode_images(torch.cat([images, images.flip(-1)])).float()
        return cls(base, latents, described, base.encode_text([prompt])[0].float())

    def loss(self, layout: Layout, weights: Tensor, people: Sequence[str], draws: int, draw: torch.Generator) -> Tensor:
        """The denoising loss of adapters weights [k, d], each on `draws` draws of photo, timestep and noise: [k]."""
        k, device = len(people), self.base.device
        photos = torch.stack([self.latents[p][torch.randint(len(self.latents[p]), (draws,), generator=draw)] for p in people])
        share = (torch.arange(draws) + torch.rand(k, draws, generator=draw)) / draws
        last = self.base.noise_scheduler.config.num_train_timesteps
        timesteps = (share * last).long().clamp_max(last - 1).to(device)
        noise = torch.randn(photos.shape, generator=draw).to(device)
        return denoising_loss(self.base, layout, weights, photos.to(device), self.context, timesteps, noise).mean(1)
