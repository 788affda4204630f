"""Points of many people, with their faces' descriptions: from photos, or from what their adapters draw."""

from collections.abc import Sequence
from pathlib import Path

import torch

from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.from_adapter import AdapterReading, pictures_of_adapters
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.descriptors import described_faces, mean_descriptions
from w2wpp.prior.examples import Examples, people_of
from w2wpp.spaces.base import Space


@torch.no_grad()
def examples_of_faces(space: Space, encoder: PhotoEncoder, faces: AlignedFaces | str | Path, split: str = "") -> Examples:
    """One point per photo of a split's people, or of everyone; labels are those of the photos.

    Raises W2WError for an encoder of another space, a split of nobody, or without the extra that describes faces.
    """
    encoder.check(space)
    faces = faces if isinstance(faces, AlignedFaces) else AlignedFaces.load(faces)
    people = faces.choose(split)
    named = [(person, photo) for person in people for photo in faces.people[person]]
    described = torch.cat(list(described_faces(faces, people).values()))
    labels: list[Labels] = [dict(faces.labels[key]) for key in named]
    return Examples(encoder(described), ["/".join(key) for key in named], [person for person, _ in named], labels, described)


@torch.no_grad()
def examples_of_adapters(
    base: BaseModel, space: Space, encoder: PhotoEncoder, data: WeightDataset, reading: AdapterReading, rows: Sequence[int] | None = None
) -> Examples:
    """One point per adapter of a dataset, or per row of `rows`: what the encoder makes of the pictures that it draws.

    Raises W2WError if space, encoder, dataset and base do not belong together, or without the extra that describes faces.
    """
    space.check(data.layout, data.base_id, f"dataset {data.folder}")
    space.check(space.layout, base.id, f"base {base.source}")
    encoder.check(space)
    rows = range(len(data)) if rows is None else rows
    ids, labels = [data.ids[i] for i in rows], [data.labels[i] for i in rows]
    described = []
    for s in batches(len(rows), reading.group):
        drawn = pictures_of_adapters(base, data.layout, data.rows(rows[s]), ids[s], reading)
        described.append(mean_descriptions(drawn))
    faces = torch.cat(described)
    return Examples(encoder(faces), ids, people_of(ids, labels), labels, faces)
