"""Train one group of people: the unit of work that a process does alone, and that many workers share out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from w2wpp.adapters.group import MOST, people_at_a_time
from w2wpp.adapters.portraits import Portrait, photo_latents, row_labels
from w2wpp.adapters.start import Start
from w2wpp.adapters.train import AdapterOptions, prior_latents, train_adapters
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import Unreached, W2WError
from w2wpp.common.memory import in_groups
from w2wpp.common.progress import note
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.images import Image, read_image

Group = list[Portrait]


@dataclass(frozen=True)
class Outcome:
    """What came of one group: rows in the order of its people, and why others have none."""

    weights: Tensor  # [k, d] float32
    ids: list[str] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # id -> why


class Engine(Protocol):
    """Who trains groups: this process, or workers."""

    def group_size(self) -> int:
        """How many people share a pass where the user does not say."""

    def outcomes(self, groups: Sequence[Group], running: Callable[[list[str]], None]) -> Iterator[Outcome]:
        """Train groups; yields what came of each, in their order. running: told the ids under way whenever they change."""

    def told(self) -> dict[str, Any]:
        """What the end of a run should say beyond the rows, such as what was tried again."""


@dataclass
class GroupTrainer:
    """The engine of one process: a base, loaded once, that trains group after group."""

    base: BaseModel
    faces: AlignedFaces
    options: AdapterOptions
    start: Start | None = None
    most: int = sys.maxsize  # people that memory was seen to hold

    @property
    def layout(self) -> Layout:
        """Where these adapters sit in the base."""
        return self.options.layout_of(self.base)

    def group_size(self) -> int:
        """As many people as fit into memory."""
        size = people_at_a_time(self.base, self.layout, self.options)
        if size < MOST:
            note(f"{size} people are trained at a time, as many as fit.")
        return size

    def prior(self) -> Tensor | None:
        """Latents [n, c, h, w] of the class, the same in every process, or None without prior preservation."""
        return prior_latents(self.base, self.options) if self.options.prior_weight > 0 else None

    def outcomes(self, groups: Sequence[Group], running: Callable[[list[str]], None]) -> Iterator[Outcome]:
        """Train group after group."""
        prior = self.prior() if groups else None
        for members in groups:
            running([member.id for member in members])
            yield self.train(members, prior)

    def told(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def train(self, members: Sequence[Portrait], prior: Tensor | None) -> Outcome:
        """Train one group. A person whose photos cannot be read is listed and left out; the others are trained.

        Raises W2WError if training diverges, or the storage where the photos lie does not answer.
        """
        able: list[Portrait] = []
        photos: list[list[Image]] = []
        labels: list[dict[str, Any]] = []
        failed: dict[str, str] = {}
        for member in members:
            try:
                own, told = self._photos(member), row_labels(self.faces, member)
            except Unreached:  # nobody's photos could be read
                raise
            except W2WError as error:
                failed[member.id] = str(error)
                continue
            able.append(member)
            photos.append(own)
            labels.append(told)
        ids = [member.id for member in able]
        if not able:
            return Outcome(torch.empty(0, self.layout.d), failed=failed)
        latents = [photo_latents(self.base, own, name, self.options.seed) for own, name in zip(photos, ids, strict=True)]
        begin = self.start.weights(photos) if self.start else None

        def trained(s: slice) -> Tensor:
            own = None if begin is None else begin[s]
            return train_adapters(self.base, self.layout, latents[s], ids[s], self.options, prior, start=own).weights

        weights = list(in_groups(len(ids), min(self.most, len(ids)), trained, "people"))
        if len(weights) > 1:  # memory ran out, and would again
            self.most = max(map(len, weights))
        return Outcome(torch.cat(weights), ids, labels, failed)

    def _photos(self, member: Portrait) -> list[Image]:
        files = self.faces.files(member.person)
        photos = [read_image(files[i]) for i in member.photos]
        for i, photo in zip(member.photos, photos, strict=True):
            if photo.shape[:2] != (self.faces.size, self.faces.size):
                found = f"{files[i]} has {photo.shape[1]}x{photo.shape[0]} pixels"
                raise W2WError(f"{found}; {self.faces.size}x{self.faces.size} were expected. Align the photos again.")
        return photos
