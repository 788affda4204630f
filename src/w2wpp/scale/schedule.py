"""Which task goes to which worker: a state that events change and a clock is read for, without processes or network."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import takewhile
from statistics import median
from typing import Any

REMEMBERED = 101  # durations of tasks that their median is taken over
KNOWN = 3  # durations that make a median
LOST, SLOW, STUCK, GONE = "a worker was lost", "a slow worker's group went to another", "a worker was stuck", "a result was lost"


@dataclass(frozen=True)
class Terms:
    """When a task is given to another worker, and when it is given up."""

    slow: float = 2.0  # times the median duration of a task: an idle worker takes it too, and the first result counts
    stuck: float = 20.0  # times the median: its worker is replaced
    least: float = 5.0  # seconds; a median that is shorter counts as so long
    ahead: int = 4  # tasks for each worker that may be done or under way before the first that is missing
    tries: int = 5  # workers that a task may take with it


class Schedule:
    """Tasks 0 to n - 1, whose results are taken in that order; each is done by a worker, or by another if that one fails."""

    def __init__(self, n: int, terms: Terms) -> None:
        self.n, self.terms = n, terms
        self.taken = 0  # results that were taken
        self.done: dict[int, Any] = {}  # by task: the result that counts, not yet taken
        self.hopeless: dict[int, str] = {}  # tasks that are given up, and why
        self.again: Counter[str] = Counter()  # what was tried again, by reason
        self.busy: dict[str, tuple[int, float]] = {}  # by worker: its task, and since when
        self._idle: dict[str, None] = {}  # in the order in which they became idle
        self._workers: dict[int, set[str]] = {}  # on each task that is under way
        self._waiting = list(range(n))  # a heap
        self._deaths: Counter[int] = Counter()
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._median = 0.0

    @property
    def over(self) -> bool:
        """Whether every result was taken."""
        return self.taken == self.n

    @property
    def next(self) -> bool:
        """Whether the result whose turn it is can be taken."""
        return self.taken in self.done or self.taken in self.hopeless

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._idle) + len(self.busy)

    @property
    def idle(self) -> list[str]:
        """Workers with nothing to do."""
        return list(self._idle)

    @property
    def useful(self) -> int:
        """How many workers could have something to do."""
        return self.workers + len(self._waiting)

    @property
    def under_way(self) -> list[int]:
        """Tasks that somebody works on, in order."""
        return sorted(task for task in self._workers if self._open(task))

    def has(self, worker: str) -> bool:
        """Whether a worker has joined, and not left."""
        return worker in self._idle or worker in self.busy

    def join(self, worker: str) -> None:
        """A worker is there, with nothing to do."""
        self._idle[worker] = None

    def leave(self, worker: str, why: str, reason: str = LOST) -> None:
        """A worker is gone. What it worked on is given to another, unless somebody else has it already."""
        self._idle.pop(worker, None)
        task, _ = self.busy.pop(worker, (None, 0.0))
        if task is None or not self._off(task, worker):
            return
        self._deaths[task] += 1
        if self._deaths[task] >= self.terms.tries:
            self.hopeless[task] = f"its worker was lost {self._deaths[task]} times, the last time because: {why}"
            return
        self.again[reason] += 1
        heappush(self._waiting, task)

    def finish(self, worker: str, result: Any, now: float) -> None:
        """A worker has a result; it counts unless another worker had one first."""
        task, since = self.busy.pop(worker)
        self._idle[worker] = None
        self._durations.append(now - since)
        self._median = median(self._durations)
        if self._open(task):
            self.done[task] = result
        self._off(task, worker)

    def forget(self, task: int) -> None:
        """The result of a task was lost before it was taken: it is done again."""
        del self.done[task]
        self.again[GONE] += 1
        if not self._workers.get(task):
            heappush(self._waiting, task)

    def take(self) -> None:
        """The result whose turn it is was taken."""
        self.done.pop(self.taken, None)
        self.hopeless.pop(self.taken, None)
        self.taken += 1

    def hand_out(self, now: float) -> Iterator[tuple[str, int]]:
        """Pairs of worker and task that begin now: what waits, in order, then what a slow worker has."""
        limit = self.taken + max(1, self.terms.ahead * self.workers)
        while self._idle and self._waiting and self._waiting[0] < limit:
            yield self._begin(heappop(self._waiting), now)
        if self._idle and self.busy:
            for task in sorted({self.busy[worker][0] for worker in self._late(now, self.terms.slow)}):
                if self._idle and len(self._workers[task]) == 1 and self._open(task):
                    self.again[SLOW] += 1
                    yield self._begin(task, now)

    def stuck(self, now: float) -> list[str]:
        """Workers that have had one task for so long that they should be replaced."""
        return self._late(now, self.terms.stuck)

    def _begin(self, task: int, now: float) -> tuple[str, int]:
        worker = next(iter(self._idle))
        del self._idle[worker]
        self.busy[worker] = (task, now)
        self._workers.setdefault(task, set()).add(worker)
        return worker, task

    def _open(self, task: int) -> bool:
        """Whether a task has no result yet."""
        return task >= self.taken and task not in self.done

    def _off(self, task: int, worker: str) -> bool:
        """Take a worker off a task; whether it is open and nobody else works on it."""
        self._workers[task].discard(worker)
        if self._workers[task]:
            return False
        del self._workers[task]
        return self._open(task)

    def _late(self, now: float, times: float) -> list[str]:
        """Workers that have had one task for longer than so many medians of those before; the longest first."""
        if len(self._durations) < KNOWN:
            return []
        since = now - times * max(self.terms.least, self._median)
        return list(takewhile(lambda worker: self.busy[worker][1] < since, self.busy))  # in the order in which they began
