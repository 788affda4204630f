"""What each adapter of a population is trained on: which photos of whom, their latents, and the labels of its row."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from w2wpp.base import captions
from w2wpp.base.model import BaseModel
from w2wpp.common.seeds import generator
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.decoding import picture_bytes
from w2wpp.photos.images import Image, to_tensor

# How far a jittered copy of a photo may be off: turned (degrees), scaled, shifted (fraction of the side).
TURN, STRETCH, SHIFT = 4.0, 0.04, 0.025
TRAINED_ON = "trained_on"  # the label that holds a checksum of the photos


@dataclass(frozen=True)
class Portrait:
    """What one adapter of the population is trained on."""

    id: str  # the person; with "#b" for their second adapter
    person: str
    photos: tuple[int, ...]  # indices into the person's photos
    half: str  # "a" or "b" where the photos are one half of the person's, else ""


def portraits(faces: AlignedFaces, people: Sequence[str], halves_from: int = 2) -> list[Portrait]:
    """One adapter per person, or two from disjoint halves of the photos of a person who has at least `halves_from`.

    Unless they begin where an encoder puts those photos, the two adapters of a person start from the same initial A and differ
    only by what is not identity.
    """
    listed = []
    for person in people:
        n = len(faces.people[person])
        if n < max(2, halves_from):
            listed.append(Portrait(person, person, tuple(range(n)), ""))
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


def photos_sum(faces: AlignedFaces, portrait: Portrait) -> str:
    """The checksum of the photos that an adapter is trained on. Raises W2WError for a file that cannot be read."""
    files = faces.files(portrait.person)
    digest = hashlib.sha256()
    for i in portrait.photos:
        digest.update(hashlib.sha256(picture_bytes(files[i])).digest())
    return "sha256 " + digest.hexdigest()[:16]  # two words: no attribute of a person


def row_labels(faces: AlignedFaces, portrait: Portrait) -> dict[str, str | int | float]:
    """What a dataset says of an adapter beside its numbers."""
    names = [faces.people[portrait.person][i] for i in portrait.photos]
    emotions = [faces.labels[portrait.person, name].get("emotion", "") for name in names]
    return {
        "person": portrait.person,
        "split": faces.split(portrait.person),
        "half": portrait.half,
        "photos": len(names),
        TRAINED_ON: photos_sum(faces, portrait),
        "gender": captions.gender(portrait.person),
        "smiling": round(emotions.count("happiness") / len(emotions), 3),
    }


def _jitter(image: Image, draw: torch.Generator) -> Image:
    turn, stretch, dx, dy = (2 * torch.rand(4, generator=draw) - 1).tolist()
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn * TURN, 1 + stretch * STRETCH)
    matrix[:, 2] += np.array([dx, dy]) * SHIFT * side
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
