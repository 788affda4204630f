"""Work handed out to workers: the engine behind every verb that takes `--ray`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Recipe
from w2wpp.scale.in_order import Pool, in_order
from w2wpp.scale.schedule import Schedule, Terms

Task = TypeVar("Task")


@dataclass
class Workers(Generic[Task]):
    """The engine that gives tasks to a pool of workers, who stay from one list of tasks to the next."""

    pool: Pool[Task, Any]
    terms: Terms = field(default_factory=Terms)
    again: Counter[str] = field(default_factory=Counter)  # what was tried again, and how often
    _idle: list[str] = field(default_factory=list)

    def __call__(self, tasks: Sequence[Task], shared: Any = None) -> Iterator[Any]:
        """The result of each task, in their order: a `Mapper`. Raises W2WError if a task did, or its workers were lost each time."""

        def refuse(_: Task, why: str) -> Any:
            raise W2WError(f"a part of the work could not be done: {why}. Run the same command again.")

        self.pool.share(shared)
        try:
            yield from self.results(tasks, lambda schedule: None, refuse)
        finally:
            self.pool.share(None)

    def results(self, tasks: Sequence[Task], changed: Callable[[Schedule], None], given_up: Callable[[Task, str], Any]) -> Iterator[Any]:
        """The result of each task, in their order. changed: called on every round. given_up: see `in_order`."""
        schedule = Schedule(len(tasks), self.terms)
        schedule.again = self.again
        for worker in self._idle:
            schedule.join(worker)
        try:
            yield from in_order(tasks, self.pool, schedule, lambda: changed(schedule), given_up)
        finally:  # also where the last result was taken, and nobody asked for more
            for worker in schedule.busy:  # nobody waits for what they do now
                self.pool.drop(worker)
            self._idle = schedule.idle


@contextmanager
def ray_pool(address: str, recipe: Recipe, cores: int, workers: int | None = None) -> Iterator[Pool[Any, Any]]:
    """Workers on the Ray cluster at an address: one for each GPU, or for `cores` cores where there is none.

    recipe: its `device` may be `auto`. workers: how many to ask for, as many as there is room for unless given.
    Raises W2WError without Ray, without a cluster, or where it has no room for a worker.
    """
    from w2wpp.scale.ray_pool import RayPool, connected  # imports Ray

    with connected(address) as has_gpus:
        gpu = has_gpus if recipe.device == "auto" else recipe.device.startswith("cuda")
        pool = RayPool(recipe.placed("cuda" if gpu else "cpu"), cores, gpu, workers, grows=address != "local")
        try:
            yield pool
        finally:
            pool.end()
