"""Points of real people in one space and what is known of them: what a prior is fitted to, and held against.

Their file is a points file (`spaces/point_files.py`) that also holds people, labels and descriptions of faces.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked
from w2wpp.common.seeds import generator
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.base import Space
from w2wpp.spaces.edits import encode_rows, labels_by_name
from w2wpp.spaces.point_files import load_points, save_points

LEAST_PEOPLE = 10


@dataclass(frozen=True, eq=False)
class Examples:
    """n points of one space, one for each photo or adapter."""

    z: Tensor  # [n, m] float32
    ids: list[str]  # all different
    people: list[str]  # whose point each is
    labels: list[Labels]
    described: Tensor | None = None  # [n, f] float32, of the face that each point stands for

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, positions: Tensor) -> "Examples":
        """Some of them, by position."""
        at = positions.tolist()
        ids, people, labels = [self.ids[i] for i in at], [self.people[i] for i in at], [self.labels[i] for i in at]
        return Examples(self.z[positions], ids, people, labels, None if self.described is None else self.described[positions])

    def split(self, seed: int = 0) -> tuple["Examples", "Examples"]:
        """Those to fit on, and those of a tenth of the people, who are held out. Raises W2WError for too few people."""
        names = sorted(set(self.people))
        if len(names) < LEAST_PEOPLE:
            raise W2WError(f"points of {len(names)} people are too few to fit a prior. Give those of {LEAST_PEOPLE} or more.")
        order = torch.randperm(len(names), generator=generator(seed, "prior split")).tolist()
        out = {names[i] for i in order[: max(1, len(names) // 10)]}
        held_out = torch.tensor([person in out for person in self.people])
        return self.rows((~held_out).nonzero()[:, 0]), self.rows(held_out.nonzero()[:, 0])

    def labelled(self, path: str | Path) -> "Examples":
        """The same with the labels of a csv in place of theirs. Raises W2WError if it names nobody of them."""
        labels = labels_by_name(path, self.ids, self.people, "these points")
        return Examples(self.z, self.ids, self.people, labels, self.described)

    def save(self, path: str | Path, space: Space) -> None:
        """Write them as points of a space, with what is known of them."""
        known = {"people": json.dumps(self.people), "labels": json.dumps(self.labels)}
        save_points(path, self.z, self.ids, space, {} if self.described is None else {"described": self.described}, known)

    @classmethod
    def load(cls, path: str | Path, space: Space) -> "Examples":
        """Read what `save` wrote, or any points of this space; a point of which no person is known is a person of its own.

        Raises W2WError as `load_points`, or for knowledge of other points than these.
        """
        z, ids = load_points(path, space)
        tensors, about = read_checked(path, "points")
        try:
            people, labels = json.loads(about.get("people", "null")) or ids, json.loads(about.get("labels", "null")) or [{} for _ in ids]
        except (ValueError, RecursionError) as error:
            raise W2WError(f"points {path} do not say whose they are ({error}). Make them again.") from error
        described = tensors.get("described")
        lists = all(isinstance(some, list) and all(isinstance(one, of) for one in some) for some, of in ((people, str), (labels, dict)))
        if not lists or (described is not None and described.dim() != 2):
            raise W2WError(f"points {path} do not say whose they are: names, labels and descriptions were expected. Make them again.")
        counts = {len(people), len(labels), len(ids) if described is None else len(described)}
        if counts != {len(ids)}:
            raise W2WError(f"points {path} are {len(ids)}, and tell of {sorted(counts)} people, labels or faces. Make them again.")
        return cls(z, ids, people, labels, described)

    @classmethod
    def of_dataset(cls, space: Space, data: WeightDataset) -> "Examples":
        """A dataset's rows as `space.encode` maps them. Raises W2WError if it is not of the space's layout and base."""
        return cls(encode_rows(space, data), list(data.ids), people_of(data.ids, data.labels), list(data.labels))


def people_of(ids: Sequence[str], labels: Sequence[Labels]) -> list[str]:
    """Whose each row of a dataset is; a row without the label `person` is a person of its own."""
    told: list[Any] = [label.get("person", name) for name, label in zip(ids, labels, strict=True)]
    return [str(person) for person in told]
