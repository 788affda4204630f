"""Workers on a simulated clock: a pool for `w2wpp.scale.in_order` without processes, whose workers may be slow, hang or die."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from w2wpp.scale.in_order import Event, ResultLost


@dataclass
class Luck:
    """What happens to a simulated worker's task, drawn anew for each: probabilities, and how much longer a slow one takes."""

    dies: float = 0.0
    hangs: float = 0.0
    slow: float = 0.0
    slower: float = 5.0  # times
    loses: float = 0.0  # the result, after it was done
    fails_to_start: float = 0.0


@dataclass
class SimulatedPool:
    """`room` workers. seconds: how long a task takes. start: seconds until a worker is ready.

    charged: the real time that the caller takes between two calls of `heard` passes on the simulated clock too, so that what the
    schedule and the writer cost slows the workers down as it would.
    """

    room: int
    seconds: Callable[[Any, random.Random], float]
    luck: Luck = field(default_factory=Luck)
    seed: int = 0
    start: float = 1.0
    charged: bool = False
    given: int = 0

    def __post_init__(self) -> None:
        self._draw, self._clock, self._events, self._made = random.Random(self.seed), 0.0, list[tuple[float, int, Event]](), 0
        self._alive: set[str] = set()
        self._left = time.perf_counter()

    def now(self) -> float:
        """Simulated seconds."""
        return self._clock

    def grow(self, most: int) -> None:
        """Start workers, up to `room`."""
        while len(self._alive) < min(self.room, most):
            name = f"w{self._made}"
            self._alive.add(name)
            what: Any = "gone" if self._draw.random() < self.luck.fails_to_start else "ready"
            self._later(self.start, Event(name, what, why="it did not start"))

    def share(self, what: Any) -> None:
        """Nothing: tasks are not done."""

    def give(self, worker: str, task: Any) -> None:
        """Draw what happens to the worker on this task, and when."""
        self.given += 1
        seconds = self.seconds(task, self._draw) * (self.luck.slower if self._draw.random() < self.luck.slow else 1.0)
        fate = self._draw.random()
        if fate < self.luck.dies:
            self._later(seconds * self._draw.random(), Event(worker, "gone", why="it was killed"))
        elif fate >= self.luck.dies + self.luck.hangs:
            self._later(seconds, Event(worker, "done", task))

    def heard(self, patience: float) -> Sequence[Event]:
        """Let the clock run to the next event, and give all until then."""
        if self.charged:
            self._clock += time.perf_counter() - self._left
        if self._events and self._events[0][0] <= self._clock + patience:
            self._clock = max(self._clock, self._events[0][0])
        else:
            self._clock += patience
        found = []
        while self._events and self._events[0][0] <= self._clock:
            event = heappop(self._events)[2]
            if event.worker in self._alive:
                found.append(event)
                if event.what == "gone":
                    self._alive.discard(event.worker)
        self._left = time.perf_counter()
        return found

    def fetch(self, result: Any) -> Any:
        """The task itself, as its result."""
        if self._draw.random() < self.luck.loses:
            raise ResultLost
        return result

    def drop(self, worker: str) -> None:
        """Forget a worker and what it was about to say."""
        self._alive.discard(worker)

    def _later(self, seconds: float, event: Event) -> None:
        self._made += 1
        heappush(self._events, (self._clock + seconds, self._made, event))
