"""Edits as the published code makes them: least squares on raw coefficients, without a constant, and Euclidean debiasing.

`edits` is ours: held-out ridge regression, strengths in standard deviations, and debiasing that keeps other scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.dataset.labels import read_table
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.base import Space
from w2wpp.spaces.edits import attributes, encode_rows
from w2wpp.spaces.edits import read_labels as labels_of_rows
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points

COMPONENTS = 1000  # that the published projections have; directions are 0 beyond


def published_direction(raw: Tensor, labels: Tensor) -> Tensor:
    """The pseudo-inverse of raw coefficients [n, m] times labels [n]: [m] float64, 0 from component 1,000 on."""
    told = torch.isfinite(labels)
    held = raw[told, :COMPONENTS].double()
    solved = torch.linalg.lstsq(held, labels[told].double()[:, None], driver="gelsd").solution[:, 0]
    return torch.cat([solved, solved.new_zeros(raw.shape[1] - held.shape[1])])


def published_debias(direction: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The direction [m] less its Euclidean projection on each of the others, one after another."""
    for other in others:
        direction = direction - (direction @ other) / other.square().sum() * other
    return direction


def published_edit(space: Space, z: Tensor, directions: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
    """Points z [n, m] whose raw coefficients are moved by strength times direction, summed over the attributes: [n, m]."""
    space = _pca(space)
    raw = space.to_raw(z).double()
    for direction, strength in zip(directions, strengths, strict=True):
        raw = raw + strength * direction
    return space.from_raw(raw.to(z.dtype))


def published_directions(
    space: Space, source: str | Path, names: Sequence[str], labels: str | Path | None = None
) -> tuple[dict[str, Tensor], int]:
    """The direction of each named attribute, and from how many rows.

    source: a weight dataset, whose rows are encoded, or a points file of the space, such as the imported projections.
    labels: a csv with a column `id`; the dataset's own unless given. Raises W2WError for an attribute that no label names.
    """
    space = _pca(space)
    if Path(source).suffix == ".safetensors":
        z, ids = load_points(source, space)
        rows = _labels_of(ids, labels, source)
    else:
        data = WeightDataset.from_pretrained(source)
        z, rows = encode_rows(space, data), labels_of_rows(labels, data) if labels else data.labels
    known = attributes(rows)
    for name in names:
        if name not in known:
            raise W2WError(f"there is no attribute {name!r}; the labels have {', '.join(sorted(known)) or 'none'}. Name one of them.")
    raw = space.to_raw(z)
    return {name: published_direction(raw, known[name]) for name in names}, len(z)


def _labels_of(ids: Sequence[str], labels: str | Path | None, source: str | Path) -> list[Labels]:
    if labels is None:
        raise W2WError(f"{source} holds points without labels. Give --labels, the labels.csv that `w2w import` wrote beside it.")
    told: Mapping[str, Labels] = read_table(labels)
    found = [told.get(name, {}) for name in ids]
    if not any(found):
        raise W2WError(f"{labels} names none of the points of {source}. Give the labels of these rows.")
    return found


def _pca(space: Space) -> PcaSpace:
    if not isinstance(space, PcaSpace):
        raise W2WError(f"{space.source} is a space of kind {space.kind}; the published edit moves coefficients of a pca. Give one.")
    return space
