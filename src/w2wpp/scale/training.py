"""Adapters of a population by workers: the engine that `train_population` takes in place of its own process."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from w2wpp.adapters.group_training import Group, GroupTrainer, Outcome
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Work, absolute, asked_precision, begin_work
from w2wpp.inversion.encoder import PhotoEncoder, encoder_start
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.scale.schedule import Schedule
from w2wpp.scale.workers import Workers, ray_pool
from w2wpp.spaces.base import Space

SAVED = 1.0  # seconds between two times that the ids under way are told


@dataclass(frozen=True)
class TrainingRecipe:
    """What a worker loads to train groups. Paths must mean the same files on every machine."""

    base: str
    base_id: str  # what the base must turn out to be
    faces: Path
    options: AdapterOptions
    start_space: Path | None = None
    encoder: Path | None = None  # of that space; its own unless given
    device: str = "cpu"
    dtype: torch.dtype | None = None  # of the base's networks
    low_memory: bool = False
    precision: str = field(default_factory=asked_precision)

    def placed(self, device: str) -> "TrainingRecipe":
        """The same for workers in other folders: with absolute paths, and on a device."""
        paths = {name: absolute(getattr(self, name)) for name in ("faces", "start_space", "encoder")}
        return replace(self, base=str(absolute(self.base)), device=device, **paths)

    def open(self, cores: int) -> Work:
        """Load base and faces; what trains a group, or says how many people one should have when it is given none."""
        begin_work(cores, self.precision)
        base = BaseModel.load(self.base, self.device, self.dtype, self.low_memory)
        if base.id != self.base_id:
            raise W2WError(f"its {self.base} is base {base.id}, this process has {self.base_id}. Give all machines the same files.")
        start = None
        if self.start_space:
            space = Space.from_pretrained(self.start_space, device=base.device)
            start = encoder_start(space, PhotoEncoder.from_pretrained(self.encoder or self.start_space))
        trainer = GroupTrainer(base, AlignedFaces.load(self.faces), self.options, start)
        prior = trainer.prior()
        return lambda members, _: trainer.group_size() if members is None else trainer.train(members, prior)


class Trainers(Workers[Group | None]):
    """The engine that gives groups to a pool of workers."""

    def group_size(self) -> int:
        """What a worker finds: as many people as fit into its memory."""

        def refuse(_: Group | None, why: str) -> Any:
            raise W2WError(f"no worker could say how many people fit into its memory: {why}. Give --group.")

        [size] = self.results([None], lambda schedule: None, refuse)  # to the end, which says who is idle
        return size

    def outcomes(self, groups: Sequence[Group], running: Callable[[list[str]], None]) -> Iterator[Outcome]:
        """Train groups, all workers at once; yields what came of each, in their order."""
        told: tuple[list[int], float] = ([], 0.0)

        def changed(schedule: Schedule) -> None:
            nonlocal told
            if time.monotonic() - told[1] > SAVED and (now := schedule.under_way) != told[0]:
                told = now, time.monotonic()
                running([member.id for i in now for member in groups[i]])

        def failed(members: Group | None, why: str) -> Outcome:
            return Outcome(torch.empty(0, 0), failed={member.id: why for member in members or []})

        yield from self.results(groups, changed, failed)

    def told(self) -> dict[str, Any]:
        """What was tried again, and how often."""
        return dict(self.again)


@contextmanager
def ray_workers(address: str, recipe: TrainingRecipe, cores: int, workers: int | None = None) -> Iterator[Trainers]:
    """An engine whose workers are on the Ray cluster at an address, as `ray_pool` places them. Raises W2WError as that does."""
    with ray_pool(address, recipe, cores, workers) as pool:
        yield Trainers(pool)
