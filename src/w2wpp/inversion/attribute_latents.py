"""Latents of their own for labels of adapters, such as a smile: what descriptions of faces do not tell.

A description says who somebody is, and hardly how they look into the camera. What it leaves over of a label is therefore a
coordinate that can be moved while the person stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.spaces.edits import attributes
from w2wpp.spaces.regression import Ridge


@dataclass(frozen=True)
class AttributeLatents:
    """Which latents of a space are attributes, and where a dataset's adapters lie along them."""

    first: int  # the place of the first one among the latents
    values: Tensor  # [rows, a]: what descriptions leave over of each label, in its standard deviations; 0 where nothing is told

    @classmethod
    def of(
        cls, names: Sequence[str], first: int, encoder: PhotoEncoder, photos: PersonPhotos, own: OwnAdapters, people: Sequence[str]
    ) -> "AttributeLatents":
        """Those of the labels `names`. people: on whom the part that descriptions tell is learned.

        Raises W2WError for a label that no adapter has, or that does not vary.
        """
        known = attributes(own.dataset.labels)
        values = torch.zeros(len(own.dataset), len(names))
        described, rows = rows_of(photos, own, list(own.rows))
        x = (described - encoder.mean) / encoder.scale
        owners = {row: person for person, mine in own.rows.items() for row in mine}
        who = set(people)
        taught = torch.tensor([owners[row] in who for row in rows])
        for k, name in enumerate(names):
            if name not in known:
                raise W2WError(f"no adapter has a label {name!r}; they have {', '.join(sorted(known)) or 'none'}. Name one of them.")
            given = known[name][rows].float()
            told = given.isfinite()
            learned = told & taught
            if int(learned.sum()) < 2 or not given[learned].std() > 0:
                raise W2WError(f"label {name!r} is the same in all adapters that have it. Name one that varies.")
            ridge = Ridge.fit(x[learned], part(given[learned][:, None]))
            left = given - (ridge.centre + (x - ridge.at) @ ridge.slope)[:, 0]
            values[torch.tensor(rows)[told], k] = (left / left[learned].std())[told]
        return cls(first, values)

    def __len__(self) -> int:
        return self.values.shape[1]

    @property
    def places(self) -> slice:
        """Where they are among the latents."""
        return slice(self.first, self.first + len(self))

    def directions(self, own: OwnAdapters, people: Sequence[str], targets: Callable[[Tensor], Tensor]) -> Tensor:
        """What one standard deviation of each does to `targets` of these people's adapters: [a, t]."""
        rows = sorted(row for person in people for row in own.rows[person])
        return Ridge.fit(self.values[rows], lambda s: targets(own.dataset.rows(rows[s])).cpu()).slope

    def of_person(self, own: OwnAdapters, person: str) -> Tensor:
        """The mean over a person's adapters: [a]."""
        return self.values[own.rows[person]].mean(0)

    def put(self, z: Tensor, values: Tensor) -> Tensor:
        """Points z [n, m] with these values [n, a] at their places."""
        z = z.clone()
        z[:, self.places] = values.to(z)
        return z


def part(values: Tensor) -> Callable[[slice], Tensor]:
    """Rows of a tensor, for `Ridge.fit`."""
    return lambda s: values[s]


def rows_of(photos: PersonPhotos, own: OwnAdapters, people: Sequence[str]) -> tuple[Tensor, list[int]]:
    """The mean description of the person of each of these people's adapters, [n, f], and the adapters' rows."""
    pairs = sorted((row, person) for person in people for row in own.rows[person])  # in their order, each shard is read once
    return torch.stack([photos.described[person].mean(0) for _, person in pairs]), [row for row, _ in pairs]
