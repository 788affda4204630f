"""The methods that table 1 compares: each makes, for every person, an adapter from what it may see of the person."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from w2wpp.adapters import AdapterOptions, prior_latents, train_adapters
from w2wpp.base_model import BaseModel
from w2wpp.images import Image, batches, to_tensor
from w2wpp.inversion.gradient import InversionOptions, invert
from w2wpp.population import photo_latents
from w2wpp.progress import track
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeOptions, VaeSpace
from w2wpp.weights import WeightDataset


@dataclass(frozen=True)
class Table1Options:
    """Sizes of table 1. Prompt and DreamBooth's options are those that the dataset's adapters were trained with."""

    ms: tuple[int, ...] = (32, 128, 512)  # dimensions of the spaces
    min_photos: int = 2  # that a person must have to be scored
    pictures: int = 5  # a person and method, with the same image seeds for every method
    guidance: float = 2.0
    solver_steps: int = 20
    group: int = 32  # people that share each forward pass
    inversion: InversionOptions = field(default_factory=InversionOptions)
    vae: VaeOptions = field(default_factory=VaeOptions)


@dataclass(frozen=True)
class Subject:
    """A person to be scored. The methods see the first half of the photos, or only the first one of all."""

    person: str
    seen: tuple[Image, ...]
    held_out: tuple[Image, ...]

    @property
    def input_photo(self) -> Image:
        """The one photo that every method sees."""
        return self.seen[0]

    @classmethod
    def of(cls, person: str, photos: Sequence[Image]) -> "Subject":
        """Halve a person's photos, at least two; the methods get the odd one."""
        half = (len(photos) + 1) // 2
        return cls(person, tuple(photos[:half]), tuple(photos[half:]))


@dataclass(frozen=True)
class Fitted:
    """What a method made of k people."""

    weights: Tensor | None  # [k, d] float32; None is the base alone
    photos: float  # seen a person, on average
    unet_evals: int  # pictures a person that went through the UNet
    seconds: float  # of wall time a person


@dataclass(frozen=True)
class Method:
    """A row of table 1."""

    name: str
    space: str | None
    m: int | None
    fit: Callable[[Sequence[Subject]], Fitted]


def methods(base: BaseModel, dataset: WeightDataset, adapters: AdapterOptions, options: Table1Options, seed: int) -> list[Method]:
    """The methods in the table's order. A space is fitted when its row is; that time is not the person's."""

    @cache
    def largest_pca() -> PcaSpace:
        return PcaSpace.fit(dataset, m=max(options.ms))

    inversion = replace(options.inversion, prompt=adapters.prompt, group=options.group, seed=seed)

    def pca(m: int) -> Callable[[Sequence[Subject]], Fitted]:
        return lambda subjects: inverted(base, largest_pca().truncate(m), subjects, inversion)

    def vae(m: int) -> Callable[[Sequence[Subject]], Fitted]:
        def fit(subjects: Sequence[Subject]) -> Fitted:
            space, _ = VaeSpace.fit(dataset, replace(options.vae, m=m, seed=seed), device=str(base.device))
            return inverted(base, space, subjects, inversion)

        return fit

    return [
        Method("base", None, None, lambda subjects: Fitted(None, 0, 0, 0.0)),
        Method("DreamBooth, one photo", None, None, lambda subjects: dreambooth(base, subjects, adapters, options.group, many=False)),
        Method("DreamBooth, many photos", None, None, lambda subjects: dreambooth(base, subjects, adapters, options.group, many=True)),
        *(Method("inversion", "pca", m, pca(m)) for m in options.ms),
        *(Method("inversion", "vae", m, vae(m)) for m in options.ms),
    ]


def dreambooth(base: BaseModel, subjects: Sequence[Subject], options: AdapterOptions, group: int, *, many: bool) -> Fitted:
    """An adapter for each person from the input photo, or from all photos that may be seen."""
    prior = prior_latents(base, options) if options.prior_weight > 0 else None
    layout = options.layout_of(base)
    start = time.perf_counter()
    weights, evals = [], 0
    for s in track(list(batches(len(subjects), group)), f"DreamBooth, groups of {group}"):
        people = [subject.person for subject in subjects[s]]
        photos = [subject.seen if many else subject.seen[:1] for subject in subjects[s]]
        latents = [photo_latents(base, shown, person, options.seed) for shown, person in zip(photos, people, strict=True)]
        trained = train_adapters(base, layout, latents, people, options, prior)
        weights.append(trained.weights)
        evals = trained.unet_evals
    seen = sum(len(subject.seen) for subject in subjects) / len(subjects) if many else 1
    return Fitted(torch.cat(weights), seen, evals, (time.perf_counter() - start) / len(subjects))


def inverted(base: BaseModel, space: Space, subjects: Sequence[Subject], options: InversionOptions) -> Fitted:
    """The adapter of the point to which each person's input photo is inverted."""
    start = time.perf_counter()
    latents = base.encode_images(to_tensor([subject.input_photo for subject in subjects]))
    found = invert(base, space, latents, [subject.person for subject in subjects], options)
    with torch.no_grad():
        weights = space.decode(found.z.to(base.device)).cpu()
    return Fitted(weights, 1, found.unet_evals, (time.perf_counter() - start) / len(subjects))
