"""Photos of people to learn from: their latents, their descriptions, and what the decoded adapter of a person has to do.

Teachers. `adapters`: predict what the person's own adapters predict, on their noised photos. `photos`: denoise the
person's photos (eq. 5). `both`: adapters teach where people have them, and photos where they have none. `likeness`: draw what
looks like the person's photos (`inversion.likeness`). `names`: predict what the base itself predicts when it is told the person's
name, for a base that learned names from photos.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.base.captions import full_name
from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.likeness import face_network, faces_drawn, unlikeness
from w2wpp.inversion.tone import Tones, check_size
from w2wpp.lora.batched import adapted
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.descriptors import described_faces
from w2wpp.photos.images import to_tensor

WITH_ADAPTERS = ("adapters", "both", "likeness")  # teachers whose training begins at a dataset's adapters, or may
TEACHERS = ("auto", "adapters", "both", "likeness", "names", "photos")
SUBJECT = "sks person"  # what stands in a prompt for the adapter's person
ENDS = ("", " smiling")  # of the captions that are taught
PLAIN, SMILING, EMPTY, CLASS = range(4)  # which of the contexts
# How often each end is taught, and then the empty caption, which guidance needs; last the plain class word, which adapters
# were trained to leave alone.
NAMES_SHARES, ADAPTERS_SHARES = (0.65, 0.10, 0.25), (0.60, 0.10, 0.20, 0.10)

# Predictions from descriptions lie closer to the mean adapter than adapters do; louder teachers make up for it. Chosen on val people by
# the score of pictures (docs/research/tiny-faces.md).
LOUDNESS = 2.5
# Weights of the tone of what is drawn, beside its likeness: of each person's, and of all together. Chosen on val people.
TONE, COMMON_TONE = 0.03, 0.1


@dataclass(frozen=True)
class OwnAdapters:
    """The adapters that people have in a dataset: what teaches in place of their photos alone."""

    dataset: WeightDataset
    rows: Mapping[str, list[int]]  # person -> positions in the dataset
    loudness: float = 1.0  # what is taught is what the mean adapter predicts, plus this times the difference of what they predict

    @classmethod
    def of(cls, dataset: WeightDataset, people: Sequence[str], loudness: float = 1.0) -> "OwnAdapters":
        """Those of some people. Raises W2WError naming somebody who has none."""
        rows: dict[str, list[int]] = {}
        for i, (name, labels) in enumerate(zip(dataset.ids, dataset.labels, strict=True)):
            rows.setdefault(str(labels.get("person", name)), []).append(i)
        if missing := [person for person in people if person not in rows]:
            found = f"{len(missing)} of {len(people)} people with photos have no adapter in {dataset.folder}, such as {missing[0]}"
            raise W2WError(f"{found}. Use --teacher photos, or train their adapters.")
        return cls(dataset, {person: rows[person] for person in people}, loudness)

    @cached_property
    def mean(self) -> Tensor:
        """The mean of these people's adapters, [d] float32."""
        rows = [row for mine in self.rows.values() for row in mine]
        total = sum((self.dataset.rows(rows[s]).double().sum(0) for s in batches(len(rows), 256)), torch.zeros(()))
        return (total / len(rows)).float()

    def owners(self, people: Sequence[str], draws: int) -> Tensor:
        """Who of these people has an adapter, `draws` times each: [k draws] bool."""
        return torch.tensor([person in self.rows for person in people]).repeat_interleave(draws)

    def drawn(self, people: Sequence[str], draw: torch.Generator) -> Tensor:
        """One of each person's adapters, at random: weights [k, d] float32."""
        mine = [self.rows[person] for person in people]
        return self.dataset.rows([rows[int(torch.randint(len(rows), (1,), generator=draw))] for rows in mine])


@dataclass(frozen=True)
class PersonPhotos:
    """Photos of people as a base sees them, and as a face describer does."""

    base: BaseModel
    latents: Mapping[str, Tensor]  # person -> [p, c, h, w], each photo and its mirror image; not needed for `likeness`
    described: Mapping[str, Tensor]  # person -> [p, f]
    contexts: Tensor  # [c, tokens, width], of the adapters' prompt, the same with " smiling", the empty caption, the class
    named: Mapping[str, Tensor] = field(default_factory=dict)  # person -> [2, tokens, width], their name's captions; for `names`
    taught: OwnAdapters | None = None  # for `adapters`, of everyone, for `both`, and for `likeness` where training begins
    prompt: str = ""  # of the first context
    tones: Tones | None = None  # for `likeness`

    @classmethod
    def of(
        cls,
        base: BaseModel,
        faces: AlignedFaces | str | Path,
        split: str,
        prompt: str,
        teacher: str = "auto",
        dataset: WeightDataset | None = None,
        loudness: float | None = None,
    ) -> "PersonPhotos":
        """Encode and describe the photos of a split's people, or of everyone if it is "".

        teacher: `adapters` (each person's own in `dataset`; people who have none are left out), `both`, `likeness`, `names`, `photos`, or
        `auto`: both where a dataset is given, else photos. loudness: with adapters (`OwnAdapters`), 2.5 unless given.
        Descriptions are kept in the faces folder for the next time.
        Raises W2WError for a split of nobody, without the extra that describes, for an unknown teacher, one that needs a dataset
        without one, or names that the base does not know.
        """
        faces = faces if isinstance(faces, AlignedFaces) else AlignedFaces.load(faces)
        people = faces.choose(split)
        teacher = _checked_teacher(teacher, dataset, loudness)
        taught, tones, alike = None, None, teacher == "likeness"
        if alike:
            face_network(str(base.device))  # what is amiss with it, or with the photos' size, is said now, not after the photos
            check_size(faces, base.image_size)
        if teacher in WITH_ADAPTERS and dataset is not None:
            have = {str(labels.get("person", name)) for name, labels in zip(dataset.ids, dataset.labels, strict=True)}
            owners = [person for person in people if person in have]
            if owners or not alike:
                taught = OwnAdapters.of(dataset, owners or people, LOUDNESS if loudness is None else loudness)
            people = owners if teacher == "adapters" else people
        named = _named(base, people, prompt) if teacher == "names" else {}
        described = described_faces(faces, people)
        latents = {}
        if alike:
            tones = Tones.of(faces, people, base.image_size)
        else:
            for person in track(people, "encode photos", "people"):
                images = to_tensor(faces.photos(person))
                latents[person] = base.encode_images(torch.cat([images, images.flip(-1)])).float()
        captions = [prompt]
        if named or taught or alike:
            captions = [*(prompt + end for end in ENDS), ""]
        if dataset is not None and taught:
            captions.append(dataset.meta.get("adapters", {}).get("prior_prompt", ""))
        return cls(base, latents, described, base.encode_text(captions).float(), named, taught, prompt, tones)

    @property
    def alike(self) -> bool:
        """Whether likeness teaches."""
        return self.tones is not None

    @property
    def people(self) -> list[str]:
        """Whose photos these are."""
        return sorted(self.described if self.alike else self.latents)

    @property
    def teacher(self) -> str:
        """Which teacher this is."""
        if self.alike:
            return "likeness"
        if self.taught:
            return "adapters" if self.latents.keys() <= self.taught.rows.keys() else "both"
        return "names" if self.named else "photos"

    @cached_property
    def centre(self) -> Tensor:
        """The mean over people of their photos' descriptions, [f]: likeness is told about it, for all faces are alike."""
        return torch.stack([photos.mean(0) for photos in self.described.values()]).mean(0)

    def loss(self, layout: Layout, weights: Tensor, people: Sequence[str], draws: int, draw: torch.Generator) -> Tensor:
        """The teacher's loss for adapters weights [k, d], each on `draws` draws of photo, timestep and noise, or pictures: [k]."""
        layout.check_denoiser_alone()
        if self.tones:
            noise = torch.randn(len(people) * draws, *self.base.latent_shape, generator=draw)
            found, tones = faces_drawn(self.base, layout, weights, [self.contexts[PLAIN], self.contexts[EMPTY]], noise)
            own, common = self.tones.off(tones, people)
            unlike = unlikeness(found, [self.described[person] for person in people], self.centre)
            return unlike + TONE * own + COMMON_TONE * common
        k, device = len(people), self.base.device
        latents = torch.stack([self.latents[p][torch.randint(len(self.latents[p]), (draws,), generator=draw)] for p in people]).to(device)
        share = (torch.arange(draws) + torch.rand(k, draws, generator=draw)) / draws
        last = self.base.noise_scheduler.config.num_train_timesteps
        timesteps = (share * last).long().clamp_max(last - 1).to(device)
        noise = torch.randn(latents.shape, generator=draw).to(device)
        if not (self.named or self.taught):
            return denoising_loss(self.base, layout, weights, latents, self.contexts[0], timesteps, noise).mean(1)
        shares = torch.tensor(ADAPTERS_SHARES if self.taught else NAMES_SHARES)
        kinds = torch.multinomial(shares, k * draws, replacement=True, generator=draw)
        if self.taught:  # a photo of its own is no lesson in smiling
            kinds = torch.where((kinds == SMILING) & ~self.taught.owners(people, draws), PLAIN, kinds)
        kinds = kinds.to(device)
        noisy, target = self.base.add_noise(latents.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten())
        asked = self._asked(people, noisy, target.float(), timesteps.flatten(), kinds, draw)
        with adapted(self.base.pipeline.unet, layout, weights):
            predicted = self.base.predict(noisy, timesteps.flatten(), self.contexts[kinds])
        return (predicted - asked).square().mean((1, 2, 3)).unflatten(0, (k, draws)).mean(1)

    @torch.no_grad()
    def _asked(
        self, people: Sequence[str], noisy: Tensor, target: Tensor, timesteps: Tensor, kinds: Tensor, draw: torch.Generator
    ) -> Tensor:
        """What the teacher predicts for noisy latents [n, c, h, w] with the captions `kinds` [n]: [n, c, h, w] float32.

        target [n, c, h, w]: what denoises them.
        """
        if self.taught:
            return self._asked_by_adapters(self.taught, people, noisy, target, timesteps, kinds, draw)
        captions = torch.stack([torch.cat([self.named[p].to(self.contexts), self.contexts[EMPTY:]]) for p in people])
        captions = captions.repeat_interleave(len(noisy) // len(people), 0)
        return self.base.predict(noisy, timesteps, captions[torch.arange(len(noisy), device=noisy.device), kinds])

    def _asked_by_adapters(
        self,
        taught: OwnAdapters,
        people: Sequence[str],
        noisy: Tensor,
        target: Tensor,
        timesteps: Tensor,
        kinds: Tensor,
        draw: torch.Generator,
    ) -> Tensor:
        """The same where adapters teach, at their loudness; of people who have none, what denoises their photos, as loud.

        One draw's noise says little of a person, loud or not. Its mean over draws is what the person's best adapter would predict.
        """
        taught.dataset.layout.check_denoiser_alone()
        mine = taught.owners(people, len(noisy) // len(people)).to(noisy.device)
        asked = target.clone()
        if mine.any():
            own = taught.drawn([person for person in people if person in taught.rows], draw).to(self.base.device)
            asked[mine] = self._predicted(own, noisy[mine], timesteps[mine], kinds[mine])
        if taught.loudness == 1 and mine.all():
            return asked
        mean = self._predicted(taught.mean[None].to(self.base.device), noisy, timesteps, kinds)
        asked = torch.where((mine | (kinds != CLASS))[:, None, None, None], asked, mean)  # the class is nobody's photo
        return mean + taught.loudness * (asked - mean)

    def _predicted(self, adapters: Tensor, noisy: Tensor, timesteps: Tensor, kinds: Tensor) -> Tensor:
        """What the base predicts with these of the teachers' adapters [k, d]."""
        assert self.taught is not None
        with adapted(self.base.pipeline.unet, self.taught.dataset.layout, adapters):
            return self.base.predict(noisy, timesteps, self.contexts[kinds])


def _checked_teacher(teacher: str, dataset: WeightDataset | None, loudness: float | None) -> str:
    """The teacher by its own name, `auto` resolved. Raises W2WError for an unknown one, one without its dataset, or a loudness amiss."""
    if teacher not in TEACHERS:
        raise W2WError(f"no teacher is called {teacher!r}. Choose {', '.join(TEACHERS)}.")
    if teacher == "auto":
        teacher = "photos" if dataset is None else "both"
    if loudness is not None and not (teacher in WITH_ADAPTERS and dataset is not None and 0 < loudness < math.inf):
        found = f"loudness {loudness:g} was given to teacher {teacher}"
        raise W2WError(f"{found}. It is for {', '.join(WITH_ADAPTERS)}, with a dataset, and above 0; 1 is as loud as they are.")
    if teacher in ("adapters", "both") and dataset is None:
        raise W2WError("adapters cannot teach without a dataset that holds them. Give --dataset, or --teacher photos.")
    return teacher


def _named(base: BaseModel, people: Sequence[str], prompt: str) -> dict[str, Tensor]:
    """Each person's captions with their name in the prompt, encoded: [2, tokens, width]."""
    vocabulary = base.pipeline.tokenizer.get_vocab()
    unknown = [person for person in people if full_name(person).lower() not in vocabulary]
    if unknown:
        raise W2WError(f"{base.source} has no word for {len(unknown)} of {len(people)} people, such as {unknown[0]}. Use --teacher photos.")
    if SUBJECT not in prompt:
        raise W2WError(f"names take the place of {SUBJECT!r}, which prompt {prompt!r} lacks. Use --teacher photos, or another --prompt.")
    captions = [prompt.replace(SUBJECT, full_name(person)) + end for person in people for end in ENDS]
    encoded = [
        base.encode_text(captions[s]).half().cpu() for s in track(list(batches(len(captions), 512)), "encode names", "batches of 512")
    ]
    return dict(zip(people, torch.cat(encoded).unflatten(0, (-1, len(ENDS))), strict=True))
