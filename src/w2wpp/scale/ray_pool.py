"""Workers on a Ray cluster: one actor for each GPU, or for a number of cores, that opens what it works with once."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from w2wpp import __version__
from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Recipe
from w2wpp.scale.in_order import Event, ResultLost

# Ray gives its own processes 30 seconds to start, which a busy machine does not keep, and tells its makers who uses it.
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray.exceptions import RayActorError, RayError
except ModuleNotFoundError as missing:
    raise W2WError("--ray needs Ray. pip install 'w2wpp[scale]', or use --shard.") from missing

LOOKED = 5.0  # seconds for which what the cluster holds is believed
GONE = "it is not there any more"


class Worker:
    """What runs on the cluster. Errors come back as text: no exception travels, and none is lost on the way."""

    def __init__(self, recipe: Recipe, cores: int, version: str) -> None:
        self.recipe, self.cores, self.version = recipe, cores, version

    def open(self) -> str:
        """Load what the work needs; "" or why that does not go."""
        try:
            if self.version != __version__:
                raise W2WError(f"it has w2wpp {__version__}, this process {self.version}. Install the same on all machines.")
            self.work = self.recipe.open(self.cores)
        except Exception as error:
            return f"{os.uname().nodename}: {error if isinstance(error, W2WError) else repr(error)}"
        return ""

    def do(self, task: Any, shared: Any) -> tuple[tuple[bool, str], Any]:
        """Whether the worker can go on, and what the task was refused for; and its result."""
        try:
            return (True, ""), self.work(task, shared)
        except W2WError as error:
            return (True, str(error)), None
        except Exception as error:
            return (False, f"{os.uname().nodename}: {error!r}"), None


class RayPool:
    """Workers that are Ray actors. The cluster says how many there is room for, also while it grows and shrinks."""

    def __init__(self, recipe: Recipe, cores: int, gpu: bool, workers: int | None = None, grows: bool = True) -> None:
        """workers: how many to ask the cluster for; as many as it has room for unless given. grows: whether it may start machines.

        Raises W2WError if no machine of the cluster has room for one, and none may come that has.
        """
        self._recipe, self._needs, self._asked = recipe, {"CPU": float(cores)} | ({"GPU": 1.0} if gpu else {}), workers
        self._actors: dict[str, Any] = {}
        self._pending: dict[Any, tuple[str, Any]] = {}  # by the reference that is waited for: a worker, and its result's reference
        self._begun, self._looked, self._room, self._shared = 0, 0.0, 0, None
        if not self.room() and not (workers and grows):
            needs = " and ".join(f"{int(n)} {what}" for what, n in self._needs.items())
            raise W2WError(f"no machine of the Ray cluster has {needs} for a worker. Give fewer --cores, or add machines.")

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def room(self) -> int:
        """How many workers the machines that are there could hold."""
        if time.monotonic() - self._looked > LOOKED or not self._looked:
            have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._room = sum(int(min(node.get(what, 0.0) // n for what, n in self._needs.items())) for node in have)
            self._looked = time.monotonic()
        return self._room

    def grow(self, most: int) -> None:
        """Start workers where there is room for them, up to `most` in all."""
        for _ in range(min(self._asked or self.room(), most) - len(self._actors)):
            name, self._begun = f"worker {self._begun + 1}", self._begun + 1
            resources = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs.get("GPU", 0.0)}
            remote = ray.remote(Worker).options(**resources, max_restarts=0, scheduling_strategy="SPREAD")
            self._actors[name] = remote.remote(self._recipe, int(self._needs["CPU"]), __version__)
            self._pending[self._actors[name].open.remote()] = (name, None)

    def share(self, what: Any) -> None:
        """Keep what all tasks need where every machine takes it once."""
        self._shared = None if what is None else ray.put(what)

    def give(self, worker: str, task: Any) -> None:
        """Let a worker begin."""
        told, result = self._actors[worker].do.options(num_returns=2).remote(task, self._shared)
        self._pending[told] = (worker, result)

    def heard(self, patience: float) -> Sequence[Event]:
        """What happened since. Results stay where they were made until `fetch`."""
        if not self._pending:
            time.sleep(patience)
            return []
        there, _ = ray.wait(list(self._pending), num_returns=1, timeout=patience, fetch_local=False)
        if there:
            there, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0, fetch_local=False)
        return [self._event(told) for told in there]

    def fetch(self, result: Any) -> Any:
        """What a task gave. Raises ResultLost, or the W2WError that the task ended in."""
        refused, at = result
        if refused:
            raise W2WError(refused)
        try:
            return ray.get(at)
        except RayError as error:
            raise ResultLost from error

    def drop(self, worker: str) -> None:
        """End a worker at once; nothing where all have ended."""
        if worker in self._actors:
            ray.kill(self._actors.pop(worker))
        self._pending = {told: about for told, about in self._pending.items() if about[0] != worker}

    def end(self) -> None:
        """Forget all workers, who end with the connection: a call of Ray's after that would start another Ray."""
        self._actors.clear()
        self._pending.clear()

    def _event(self, told: Any) -> Event:
        worker, result = self._pending.pop(told)
        try:
            said = ray.get(told)
        except RayError as error:
            self._actors.pop(worker)
            return Event(worker, "gone", why=_line(error))
        if result is None and not said:
            return Event(worker, "ready")
        well, why = (False, said) if result is None else said
        if well:
            return Event(worker, "done", (why, result))
        self.drop(worker)
        return Event(worker, "gone", why=why)


def _line(error: RayError) -> str:
    """What Ray says first of a worker's death; what follows are guesses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1].split(". ")[0] if isinstance(error, RayActorError) and lines else repr(error))[:200]


@contextmanager
def connected(address: str) -> Iterator[bool]:
    """A connection to the Ray cluster at an address, `auto` for the one of this machine, or `local` to start one for this process.

    Yields whether the cluster has GPUs. Raises W2WError if there is none.
    """
    quiet = {"logging_level": "error", "log_to_driver": False}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, and a bare one where a start takes too long
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise W2WError(f"no Ray cluster at {address}: {reason} Start one with `ray start --head`, or give --ray local.") from error
    try:
        with redirect_stdout(sys.stderr):  # Ray says there that a worker died; results alone belong on stdout
            yield ray.cluster_resources().get("GPU", 0) >= 1
    finally:
        ray.shutdown()
