"""Hand tasks out to a pool of workers and take their results in order: the loop between a schedule and real workers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from w2wpp.common.errors import W2WError
from w2wpp.common.progress import note
from w2wpp.scale.schedule import STUCK, Schedule

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
WAIT = 0.5  # seconds to listen before the clock is looked at again
STARTS = 3  # workers in a row that may fail to start before no other is started for a while
PAUSE = 60.0  # seconds
ALONE = 120.0  # seconds without a worker that is ready, after which each time the user is told


@dataclass(frozen=True)
class Event:
    """What was heard of a worker: it is `ready` for its first task, has `done` its task, or is `gone`."""

    worker: str
    what: Literal["ready", "done", "gone"]
    result: Any = None  # where a pool finds what was done
    why: str = ""  # it is gone


class ResultLost(Exception):
    """A result that was there is not there any more."""


class Pool(Protocol[T, R]):
    """Workers somewhere, each with one task at a time, which it may take with it when it dies."""

    def now(self) -> float:
        """Seconds on the pool's clock."""

    def grow(self, most: int) -> None:
        """Start workers where there is room for them, up to `most` in all."""

    def share(self, what: Any) -> None:
        """What all tasks need that are given from now on."""

    def give(self, worker: str, task: T) -> None:
        """Let a worker that has nothing to do begin."""

    def heard(self, patience: float) -> Sequence[Event]:
        """What happened since; waits for at most `patience` seconds if nothing did."""

    def fetch(self, result: Any) -> R:
        """What an event's `result` stands for. Raises ResultLost, or the W2WError that the task ended in."""

    def drop(self, worker: str) -> None:
        """End a worker at once."""


def in_order(
    tasks: Sequence[A],
    pool: Pool[A, B],
    schedule: Schedule,
    changed: Callable[[], None],
    given_up: Callable[[A, str], B],
) -> Iterator[B]:
    """Yield the result of every task, in their order.

    changed: called on every round. given_up: what stands for a task whose workers were lost each time, and why.
    Raises W2WError if workers do not start, and none is there.
    """
    failed = list[str]()  # starts in a row
    pause, alone, told = -1.0, pool.now(), pool.now()
    while not schedule.over:
        if pool.now() > pause:
            pool.grow(schedule.useful)
        for worker in schedule.stuck(pool.now()):
            pool.drop(worker)
            schedule.leave(worker, "it took too long", STUCK)
        for worker, task in schedule.hand_out(pool.now()):
            pool.give(worker, tasks[task])
        changed()
        for event in pool.heard(0.0 if schedule.next else WAIT):
            if event.what == "gone" and not schedule.has(event.worker):
                failed.append(event.why)
                pause = pool.now() + PAUSE if len(failed) % STARTS == 0 else pause
            elif event.what == "ready":
                failed.clear()
            _note(schedule, event, pool.now())
        if schedule.workers:
            alone = told = pool.now()
        elif pool.now() - told > ALONE:
            told = pool.now()
            note(f"no worker has been ready for {told - alone:.0f} seconds: they are starting, or the cluster has no room for one.")
        if len(failed) >= STARTS and not schedule.workers:
            raise W2WError(f"{len(failed)} workers did not start, the last because: {failed[-1]}")
        if schedule.next:
            yield from _taken(tasks, pool, schedule, given_up)
    for worker in list(schedule.busy):  # slow ones, whose tasks others have done
        pool.drop(worker)
        schedule.leave(worker, "it was not waited for")


def _note(schedule: Schedule, event: Event, now: float) -> None:
    if event.what == "ready":
        schedule.join(event.worker)
    elif event.what == "done":
        schedule.finish(event.worker, event.result, now)
    elif schedule.has(event.worker):
        note(f"a worker was lost: {event.why}")
        schedule.leave(event.worker, event.why)


def _taken(tasks: Sequence[A], pool: Pool[A, B], schedule: Schedule, given_up: Callable[[A, str], B]) -> Iterator[B]:
    """The result whose turn it is; nothing if it was lost."""
    task = schedule.taken
    if task in schedule.done:
        try:
            result = pool.fetch(schedule.done[task])
        except ResultLost:
            schedule.forget(task)
            return
    else:
        result = given_up(tasks[task], schedule.hopeless[task])
    schedule.take()
    yield result
