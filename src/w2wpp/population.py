"""From aligned faces to a weight dataset: an adapter for every person, trained in groups, resumable."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from w2wpp import captions
from w2wpp.adapters import AdapterOptions, prior_latents, train_adapters
from w2wpp.alignment import AlignedFaces
from w2wpp.base_model import BaseModel
from w2wpp.images import Image, to_tensor
from w2wpp.progress import track
from w2wpp.seeds import generator
from w2wpp.weights import WeightDataset

# How far a jittered copy of a photo may be off: turned (degrees), scaled, shifted (fraction of the side).
TURN, STRETCH, SHIFT = 4.0, 0.04, 0.025


@dataclass(frozen=True)
class Portrait:
    """What one adapter of the population is trained on."""

    id: str  # the person; with "#b" for their second adapter
    person: str
    photos: tuple[int, ...]  # indices into the person's photos
    half: str  # "a" or "b" where the photos are one half of the person's, else ""


@dataclass(frozen=True)
class Start:
    """Where training begins in place of an adapter that does nothing: at what an encoder makes of the photos, say."""

    name: str  # kept with the dataset, which holds adapters of one start only
    weights: Callable[[Sequence[Sequence[Image]]], Tensor]  # photos of k people -> [k, d]


def portraits(faces: AlignedFaces, people: Sequence[str]) -> list[Portrait]:
    """One adapter a person, or two from disjoint halves of the photos of a person who has several.

    Unless they begin where an encoder puts those photos, the two adapters of a person start from the same initial A and differ
    only by what is not identity.
    """
    listed = []
    for person in people:
        n = len(faces.people[person])
        if n == 1:
            listed.append(Portrait(person, person, (0,), ""))
        else:
            listed.append(Portrait(person, person, tuple(range(0, n, 2)), "a"))
            listed.append(Portrait(f"{person}#b", person, tuple(range(1, n, 2)), "b"))
    return listed


def photo_latents(base: BaseModel, photos: Sequence[Image], key: str, seed: int = 0, views: int = 4) -> Tensor:
    """Latents of a person's photos and their mirror images: [p, c, h, w] on the CPU.

    Where there are fewer than `views` photos, slightly turned, scaled and shifted copies make up the number.
    """
    draw = generator(seed, "jitter", key)
    images = list(photos)
    for i in range(max(0, views - len(photos))):
        images.append(_jitter(photos[i % len(photos)], draw))
    images += [np.ascontiguousarray(image[:, ::-1]) for image in images]
    return base.encode_images(to_tensor(images)).float().cpu()


def train_population(
    base: BaseModel,
    faces: AlignedFaces,
    people: Sequence[str],
    out: str | Path,
    options: AdapterOptions,
    *,
    group: int = 64,
    dtype: torch.dtype = torch.float16,
    start: Start | None = None,
) -> WeightDataset:
    """Train the adapters of `people` and append them to the dataset `out`, a shard a group of `group` adapters.

    Adapters that the dataset already has are not trained again, so an interrupted run goes on where it stopped.
    start: where each adapter begins. Raises W2WError if `out` belongs to another base, layout or way of training.
    """
    layout = options.layout_of(base)
    how = {"adapters": asdict(options), "base": base.source} | ({"start": start.name} if start else {})
    dataset = WeightDataset.open_or_create(out, layout, base.id, how)
    have = set(dataset.ids)
    todo = [portrait for portrait in portraits(faces, people) if portrait.id not in have]
    if not todo:
        return dataset
    prior = prior_latents(base, options) if options.prior_weight > 0 else None
    groups = [todo[i : i + group] for i in range(0, len(todo), group)]
    for members in track(groups, f"groups of {group} adapters"):
        whole = [faces.photos(member.person) for member in members]
        photos = [[own[i] for i in member.photos] for own, member in zip(whole, members, strict=True)]
        latents = [photo_latents(base, own, member.id, options.seed) for own, member in zip(photos, members, strict=True)]
        begin = start.weights(photos) if start else None
        trained = train_adapters(base, layout, latents, [member.id for member in members], options, prior, start=begin)
        dataset.append(trained.weights, [member.id for member in members], [_labels(faces, member) for member in members], dtype)
    return dataset


def _labels(faces: AlignedFaces, portrait: Portrait) -> dict[str, str | int | float]:
    names = [faces.people[portrait.person][i] for i in portrait.photos]
    emotions = [faces.labels[portrait.person, name].get("emotion", "") for name in names]
    return {
        "person": portrait.person,
        "split": faces.split(portrait.person),
        "half": portrait.half,
        "photos": len(names),
        "gender": captions.gender(portrait.person),
        "smiling": round(emotions.count("happiness") / len(emotions), 3),
    }


def _jitter(image: Image, draw: torch.Generator) -> Image:
    turn, stretch, dx, dy = (2 * torch.rand(4, generator=draw) - 1).tolist()
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn * TURN, 1 + stretch * STRETCH)
    matrix[:, 2] += np.array([dx, dy]) * SHIFT * side
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
