"""Pictures of edited people, kept on disk, and how they are scored: attributes by classifiers, identity by FaceNet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import replacing
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import embed_pictures
from w2wpp.photos.images import Image
from w2wpp.spaces.edits import auc, cross_validated, ridge_weights

PHOTOS = 8  # of a person scored, for the identity
PROMPT = "photo of sks person"


@dataclass(frozen=True)
class Drawn:
    """Pictures of k people at n image seeds each."""

    images: NDArray[np.uint8]  # [k, n, h, w, 3]
    faces: NDArray[np.float64]  # [k, n, 512] unit vectors; NaN where no face was found


def kept(
    path: Path,
    base: BaseModel,
    layout: Layout,
    before: Tensor,
    after: Tensor,
    seeds: Sequence[Sequence[int]],
    inject_at: float,
    steps: int,
) -> Drawn:
    """Draw and embed pictures of adapters [k, d] at each one's seeds, or read them where an earlier run kept them."""
    if not path.exists():
        n = len(seeds[0])
        old, new = before.repeat_interleave(n, 0), after.repeat_interleave(n, 0)
        flat = [seed for row in seeds for seed in row]
        pictures = base.generate(PROMPT, flat, layout=layout, weights=new, steps=steps, delayed=(old, inject_at))
        rows = [pictures[i : i + n] for i in range(0, len(pictures), n)]
        keep(path, images=np.array(rows), faces=np.array([embedded(row) for row in rows]))
    with np.load(path) as file:
        return Drawn(file["images"], file["faces"])


def kept_photos(path: Path, faces: AlignedFaces, people: Sequence[str]) -> tuple[NDArray[np.float64], Tensor]:
    """The embedding of each person's first photo [k, 1, 512], and whether it smiles [k]; no photo is kept."""
    if not path.exists():
        keep(path, faces=np.array([embedded(faces.photos(person)[:1]) for person in people]))
    smiles = [float(faces.labels[person, faces.people[person][0]].get("emotion") == "happiness") for person in people]
    with np.load(path) as file:
        return file["faces"], torch.tensor(smiles, dtype=torch.float64)


def own_photos(path: Path, faces: AlignedFaces, people: Sequence[str]) -> NDArray[np.float64]:
    """The mean embedding of each person's first photos [k, 512], at most `PHOTOS`; NaN where none shows a face to the face recogniser."""
    if not path.exists():
        found = [embedded(faces.photos(person)[:PHOTOS]) for person in people]
        keep(path, faces=np.array([mean_found(row) for row in found]))
    with np.load(path) as file:
        return file["faces"]


def mean_found(faces: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of embeddings [n, 512] without those that are NaN."""
    has = ~np.isnan(faces[:, 0])
    return faces[has].mean(0) if has.any() else faces[0]


def embedded(images: Sequence[Image]) -> NDArray[np.float64]:
    """Pictures -> unit vectors [n, 512], NaN where no face was found."""
    return np.array([np.full(512, np.nan) if face is None else face for face in embed_pictures(images)], np.float64)


def keep(path: Path, **arrays: NDArray[Any]) -> None:
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)


@dataclass(frozen=True)
class Classifier:
    """A ridge regression on FaceNet embeddings, scored 0 to 1 between the means of its held-out people."""

    weights: Tensor  # [512]
    offset: float
    n: int
    accuracy: float  # of its own people, each held out once; mean of both labels'
    auc: float  # for the same people

    @classmethod
    def fit(cls, faces: NDArray[np.float64], labels: Tensor, people: Sequence[str]) -> "Classifier":
        """faces [k, n, 512], labels [k] (0 to 1) and names of k people. Raises W2WError unless it tells the labels apart at all."""
        x, positions = faces_found(faces)
        s = (labels[positions] > 0.5).double()
        ridge, predicted = cross_validated(x, s, [people[i] for i in positions])
        low, high = predicted[s == 0].mean(), predicted[s == 1].mean()
        if not high > low:
            raise W2WError("a classifier does not tell its labels apart: its scores would mean nothing. Give it more people.")
        w = ridge_weights(x, s, ridge[None])[0] / (high - low)
        offset = float((s.mean() - low) / (high - low) - x.mean(0) @ w)
        area = auc(predicted, s)
        return cls(w, offset, len(x), balanced_accuracy((predicted - low) / (high - low), s), float("nan") if area is None else area)

    def __call__(self, faces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Embeddings [..., 512] -> scores [...], NaN where there is no face."""
        return faces @ self.weights.numpy() + self.offset

    def report(self, original: Drawn, unencoded: Drawn, labels: Tensor) -> dict[str, float | None]:
        """How good it is: on photos of its own people held out, and on pictures of the people scored, unedited.

        unencoded: pictures of their adapters as trained; the difference is what the space loses of the attribute.
        """
        found: dict[str, float | None] = {"photos": self.n, "accuracy": self.accuracy, "auc": self.auc}
        for suffix, drawn in (("", original), ("_unencoded", unencoded)):
            faces, positions = faces_found(drawn.faces)
            told, s = torch.from_numpy(self(faces.numpy())), (labels[positions] > 0.5).double()
            found |= {f"accuracy_scored_people{suffix}": balanced_accuracy(told, s), f"auc_scored_people{suffix}": auc(told, s)}
        return found


def faces_found(faces: NDArray[np.float64]) -> tuple[Tensor, list[int]]:
    """The embeddings [k, n, 512] that are there, [p, 512], and whose each is."""
    has = ~np.isnan(faces[..., 0])
    return torch.from_numpy(faces[has]), np.nonzero(has)[0].tolist()


def balanced_accuracy(scores: Tensor, labels: Tensor) -> float:
    """How often a score is on its label's side of a half, labels 0 and 1 counting equally; chance is 0.5."""
    right = ((scores > 0.5) == (labels > 0.5)).double()
    return fmean(float(right[labels == label].mean()) for label in (0, 1))


def compare(original: Drawn, edited: Drawn, classifiers: dict[str, Classifier], own: NDArray[np.float64]) -> dict[str, Any]:
    """Changes of each attribute's score, the share of pictures that have it, and the identity kept; mean and se over people."""
    row: dict[str, Any] = {"missed": int(np.isnan(edited.faces[..., 0]).sum())}
    for name, classifier in classifiers.items():
        score = classifier(edited.faces)
        row |= over_people(f"{name}_change", score - classifier(original.faces))
        row |= over_people(f"{name}_share", np.where(np.isnan(score), np.nan, score > 0.5))
    return row | over_people("id_kept", (original.faces * edited.faces).sum(-1)) | id_photos(edited, own)


def id_photos(drawn: Drawn, own: NDArray[np.float64]) -> dict[str, Any]:
    """The ID Score of pictures with real photos of their person."""
    return over_people("id_photos", (drawn.faces * own[:, None]).sum(-1))


def floors(original: Drawn, neighbour: Drawn, classifiers: dict[str, Classifier], own: NDArray[np.float64]) -> dict[str, Any]:
    """Of the unedited pictures: how many have each attribute, and the ID Score of one person's and of different people's.

    neighbour: pictures of the next person's model at a person's own image seeds.
    """
    row: dict[str, Any] = {"missed": int(np.isnan(original.faces[..., 0]).sum()), "pictures": int(original.faces[..., 0].size)}
    for name, classifier in classifiers.items():
        score = classifier(original.faces)
        row |= over_people(f"{name}_share", np.where(np.isnan(score), np.nan, score > 0.5))
    row |= over_people("id_same_person_other_seed", (original.faces * np.roll(original.faces, 1, 1)).sum(-1))
    row |= over_people("id_other_people_same_seed", (original.faces * neighbour.faces).sum(-1))
    row |= over_people("id_other_people_other_seed", (original.faces * np.roll(original.faces, 1, 0)).sum(-1))
    return row | id_photos(original, own) | over_people("id_photos_other_people", (original.faces * np.roll(own, 1, 0)[:, None]).sum(-1))


def over_people(name: str, values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and standard error over people of their means over pictures [k, n], those without a face (NaN) left out."""
    people = [float(np.nanmean(row)) for row in values if not np.isnan(row).all()]
    se = stdev(people) / math.sqrt(len(people)) if len(people) > 1 else None
    return {name: fmean(people) if people else None, f"{name}_se": se}
