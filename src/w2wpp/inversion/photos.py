"""Photos of people to learn from: their latents, their descriptions, and what the decoded adapter of a person has to do.

Two teachers. `photos`: denoise the person's photos (eq. 5). `names`: predict what the base itself predicts when it is told
the person's name, which it learned from those photos; that holds no noise but what the name leaves open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.alignment import AlignedFaces
from w2wpp.base_model import BaseModel, denoising_loss
from w2wpp.captions import full_name
from w2wpp.descriptors import described_faces
from w2wpp.errors import W2WError
from w2wpp.images import batches, to_tensor
from w2wpp.layout import Layout
from w2wpp.lora import adapted
from w2wpp.progress import track

TEACHERS = ("auto", "names", "photos")
SUBJECT = "sks person"  # what stands in a prompt for the adapter's person
# How often the name is taught with which end of the caption; the last is the empty caption, which guidance needs as it is.
ENDS, SHARES = ("", " smiling"), (0.65, 0.10, 0.25)


@dataclass(frozen=True)
class PersonPhotos:
    """Photos of people as a base sees them, and as a face describer does."""

    base: BaseModel
    latents: Mapping[str, Tensor]  # person -> [p, c, h, w], each photo and its mirror image
    described: Mapping[str, Tensor]  # person -> [p, f]
    contexts: Tensor  # [3, tokens, width], of the adapters' prompt, of the same with " smiling", of the empty caption
    named: Mapping[str, Tensor] = field(default_factory=dict)  # person -> [2, tokens, width], their name's captions; empty for `photos`

    @classmethod
    def of(cls, base: BaseModel, faces: AlignedFaces | str | Path, split: str, prompt: str, teacher: str = "auto") -> "PersonPhotos":
        """Encode and describe the photos of a split's people, or of everyone if it is "".

        teacher: `names`, `photos`, or `auto`: names where the base has a word for each. Descriptions are kept in the
        faces folder for the next time. Raises W2WError for a split of nobody, without the extra that describes, or for
        names that the base does not know.
        """
        faces = faces if isinstance(faces, AlignedFaces) else AlignedFaces.open(faces)
        people = faces.of_split(split) if split else list(faces.people)
        named = _named(base, people, prompt, teacher)
        described = described_faces(faces, people)
        latents = {}
        for person in track(people, "encode photos"):
            images = to_tensor(faces.photos(person))
            latents[person] = base.encode_images(torch.cat([images, images.flip(-1)])).float()
        contexts = base.encode_text([*(prompt + end for end in ENDS), ""]) if named else base.encode_text([prompt])
        return cls(base, latents, described, contexts.float(), named)

    @property
    def teacher(self) -> str:
        """Which teacher this is."""
        return "names" if self.named else "photos"

    def loss(self, layout: Layout, weights: Tensor, people: Sequence[str], draws: int, draw: torch.Generator) -> Tensor:
        """What the teacher asks of adapters weights [k, d], each on `draws` draws of photo, timestep and noise: [k]."""
        k, device = len(people), self.base.device
        photos = torch.stack([self.latents[p][torch.randint(len(self.latents[p]), (draws,), generator=draw)] for p in people]).to(device)
        share = (torch.arange(draws) + torch.rand(k, draws, generator=draw)) / draws
        last = self.base.noise_scheduler.config.num_train_timesteps
        timesteps = (share * last).long().clamp_max(last - 1).to(device)
        noise = torch.randn(photos.shape, generator=draw).to(device)
        if not self.named:
            return denoising_loss(self.base, layout, weights, photos, self.contexts[0], timesteps, noise).mean(1)
        kinds = torch.multinomial(torch.tensor(SHARES), k * draws, replacement=True, generator=draw).to(device)
        taught = torch.stack([torch.cat([self.named[p].to(self.contexts), self.contexts[2:]]) for p in people]).repeat_interleave(draws, 0)
        noisy = self.base.add_noise(photos.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten())[0]
        with torch.no_grad():
            asked = self.base.predict(noisy, timesteps.flatten(), taught[torch.arange(k * draws, device=device), kinds])
        with adapted(self.base.pipeline.unet, layout, weights):
            predicted = self.base.predict(noisy, timesteps.flatten(), self.contexts[kinds])
        return (predicted - asked).square().mean((1, 2, 3)).unflatten(0, (k, draws)).mean(1)


def _named(base: BaseModel, people: Sequence[str], prompt: str, teacher: str) -> dict[str, Tensor]:
    """Each person's captions with their name in the prompt, encoded: [2, tokens, width]; empty if photos are to teach."""
    if teacher not in TEACHERS:
        raise W2WError(f"no teacher is called {teacher!r}. Choose {', '.join(TEACHERS)}.")
    vocabulary = base.pipeline.tokenizer.get_vocab()
    unknown = [person for person in people if full_name(person).lower() not in vocabulary]
    if teacher == "photos" or (teacher == "auto" and (unknown or SUBJECT not in prompt)):
        return {}
    if unknown:
        raise W2WError(f"{base.source} has no word for {len(unknown)} of {len(people)} people, such as {unknown[0]}. Use --teacher photos.")
    if SUBJECT not in prompt:
        raise W2WError(f"names take the place of {SUBJECT!r}, which prompt {prompt!r} lacks. Use --teacher photos, or another --prompt.")
    captions = [prompt.replace(SUBJECT, full_name(person)) + end for person in people for end in ENDS]
    encoded = [base.encode_text(captions[s]).half().cpu() for s in track(list(batches(len(captions), 512)), "encode names")]
    return dict(zip(people, torch.cat(encoded).unflatten(0, (-1, len(ENDS))), strict=True))
