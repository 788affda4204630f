"""Adapters of a population by workers: the engine that `train_population` takes in place of its own process."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from w2wpp.adapters.group_training import Group, GroupTrainer, Outcome
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.assets import TINY_FACES
from w2wpp.common.errors import W2WError
from w2wpp.common.precision import VARIABLE
from w2wpp.inversion.encoder import PhotoEncoder, encoder_start
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.scale.in_order import Pool, in_order
from w2wpp.scale.schedule import Schedule, Terms
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
    precision: str = os.environ.get(VARIABLE, "")

    def placed(self, device: str) -> "TrainingRecipe":
        """The same for workers in other folders: with absolute paths, and on a device."""
        paths = {name: _absolute(getattr(self, name)) for name in ("faces", "start_space", "encoder")}
        return replace(self, base=str(_absolute(self.base)), device=device, **paths)

    def open(self, cores: int) -> Callable[[Group | None], Any]:
        """Load base and faces; what trains a group, or says how many people one should have when it is given none."""
        if self.precision:
            os.environ[VARIABLE] = self.precision
        torch.set_num_threads(cores)
        base = BaseModel.load(self.base, self.device, self.dtype, self.low_memory)
        if base.id != self.base_id:
            raise W2WError(f"its {self.base} is base {base.id}, this process has {self.base_id}. Give all machines the same files.")
        start = None
        if self.start_space:
            space = Space.from_pretrained(self.start_space, device=base.device)
            start = encoder_start(space, PhotoEncoder.from_pretrained(self.encoder or self.start_space))
        trainer = GroupTrainer(base, AlignedFaces.load(self.faces), self.options, start)
        prior = trainer.prior()
        return lambda members: trainer.group_size() if members is None else trainer.train(members, prior)


def _absolute(source: str | Path | None) -> Any:
    """Where a file lies; what is no file, such as a hub id, stays as it is."""
    return Path(source).resolve() if source and str(source) != TINY_FACES and Path(source).exists() else source


@dataclass
class Workers:
    """The engine that gives groups to a pool of workers."""

    pool: Pool[Group | None, Any]
    terms: Terms = field(default_factory=Terms)
    again: Counter[str] = field(default_factory=Counter)
    _idle: list[str] = field(default_factory=list)

    def group_size(self) -> int:
        """What a worker finds: as many people as fit into its memory."""

        def refuse(_: Group | None, why: str) -> Any:
            raise W2WError(f"no worker could say how many people fit into its memory: {why}. Give --group.")

        [size] = self._done([None], lambda schedule: None, refuse)  # to the end, which says who is idle
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

        yield from self._done(groups, changed, failed)

    def told(self) -> dict[str, Any]:
        """What was tried again, and how often."""
        return dict(self.again)

    def _done(
        self, tasks: Sequence[Group | None], changed: Callable[[Schedule], None], given_up: Callable[[Group | None, str], Any]
    ) -> Iterator[Any]:
        schedule = Schedule(len(tasks), self.terms)
        schedule.again = self.again
        for worker in self._idle:
            schedule.join(worker)
        yield from in_order(tasks, self.pool, schedule, lambda: changed(schedule), given_up)
        self._idle = schedule.idle


@contextmanager
def ray_workers(address: str, recipe: TrainingRecipe, cores: int, workers: int | None = None) -> Iterator[Workers]:
    """An engine whose workers are on the Ray cluster at an address: one for each GPU, or for `cores` cores where there is none.

    recipe: its `device` may be `auto`. Raises W2WError without Ray, without a cluster, or where it has no room for a worker.
    """
    from w2wpp.scale.ray_pool import RayPool, connected  # imports Ray

    with connected(address) as has_gpus:
        gpu = has_gpus if recipe.device == "auto" else recipe.device.startswith("cuda")
        yield Workers(RayPool(recipe.placed("cuda" if gpu else "cpu"), cores, gpu, workers, grows=address != "local"))
