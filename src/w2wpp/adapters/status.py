"""How far a training of adapters is: a small file beside the dataset, which any process may read while it runs."""

import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from w2wpp.adapters.shares import Share
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json

FILE = "progress.json"
HOUR = 3600.0


@dataclass
class Status:
    """Where a training stands. Times are seconds since 1970."""

    total: int = 0  # adapters that are to be there at the end
    people: int = 0
    done: int = 0  # of them, in the dataset
    trained: int = 0  # of those, by this run
    failed: dict[str, str] = field(default_factory=dict)  # id -> why
    running: list[str] = field(default_factory=list)  # ids
    again: dict[str, int] = field(default_factory=dict)  # what was tried again, and how often
    group: int = 0
    shard: list[int] = field(default_factory=list)  # i, n; empty for everyone
    started: float = 0.0
    updated: float = 0.0
    ended: bool = False
    host: str = ""
    pid: int = 0

    @classmethod
    def load(cls, out: Path) -> "Status | None":
        """What the last run in a folder wrote; None if there was none. Raises W2WError if it does not read."""
        if not (out / FILE).is_file():
            return None
        try:
            told = read_json(out / FILE)
            return cls(**{entry.name: type(getattr(cls(), entry.name))(told[entry.name]) for entry in fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise W2WError(f"{out / FILE} is damaged ({error!r}). Delete it; the adapters stay as they are.") from error

    def save(self, out: Path) -> None:
        """Write it, whole or not at all."""
        self.updated = time.time()
        write_json(out / FILE, vars(self))

    def begin(self, share: Share | None) -> None:
        """Note who runs, and since when."""
        self.shard = [share.i, share.n] if share else []
        self.started, self.host, self.pid = time.time(), socket.gethostname(), os.getpid()

    def end(self, out: Path, well: bool) -> None:
        """Note that the run is over; a full disk is not told of a second time."""
        self.running, self.ended = [], well
        with suppress(W2WError):
            self.save(out)

    @property
    def state(self) -> str:
        """`ended`, `running`, or `stopped`: over before its end. Of a run on another machine, running is what it said last."""
        if self.ended:
            return "ended"
        return "running" if self.running and (self.host != socket.gethostname() or _lives(self.pid)) else "stopped"

    @property
    def per_hour(self) -> float:
        """Adapters an hour in this run."""
        return self.trained * HOUR / max(1e-9, self.updated - self.started)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_status(out: str | Path) -> dict[str, Any]:
    """How far the training in a folder is, or those in its folders of shards together, as plain values.

    Raises W2WError if no training wrote there.
    """
    out = Path(out)
    places = [out] if (out / FILE).is_file() else sorted(path.parent for path in out.glob(f"*/{FILE}"))
    found = {place: status for place in places if (status := Status.load(place))}
    if not found:
        raise W2WError(f"{out} holds no training of adapters: it has no {FILE}. Name the --out of `w2w adapters train`.")
    parts = list(found.values())
    states = {part.state for part in parts}
    total, done = sum(part.total for part in parts), sum(part.done for part in parts)
    failed = {name: why for part in parts for name, why in part.failed.items()}
    left = total - done - len(failed)
    rate = sum(part.per_hour for part in parts if part.state == "running")
    people = sum(part.people for part in parts)
    again: dict[str, int] = {}
    for part in parts:
        for what, count in part.again.items():
            again[what] = again.get(what, 0) + count
    about: dict[str, Any] = {
        "state": next(state for state in ("running", "stopped", "ended") if state in states),
        "adapters": total,
        "people": people,
        "done": done,
        "running": [name for part in parts if part.state == "running" for name in part.running],
        "left": left,
        "failed": failed,
        "people_per_hour": round(rate * people / max(1, total), 1),
        "minutes_left": math.ceil(600 * left / rate) / 10 if rate else None,  # 0 only when nothing is left
    }
    if again:
        about["tried_again"] = again
    if found.keys() != {out}:
        about["shards"] = {place.name: f"{part.state}, {part.done} of {part.total}" for place, part in found.items()}
    return about


def whole_shards(folders: Sequence[str]) -> list[str]:
    """Folders to merge, shards of one training in their order.

    Raises W2WError if some are shards and another of these is missing or has not ended, or if they had groups of other sizes.
    """
    told = {folder: status for folder in folders if (status := Status.load(Path(folder))) and status.shard}
    if len(told) < len(folders):
        return list(folders)
    n, group = (max(found) for found in zip(*((part.shard[1], part.group) for part in told.values()), strict=True))
    for place, part in told.items():
        if not part.ended:
            raise W2WError(f"{place} has {part.done} of {part.total} adapters: its training has not ended. Run that shard again.")
        if (part.shard[1], part.group) != (n, group):
            raise W2WError(f"{place} is shard {part.shard[0]}/{part.shard[1]} with --group {part.group}; /{n} and {group} were expected.")
    numbers = {part.shard[0]: place for place, part in told.items()}
    missing = sorted(set(range(1, n + 1)) - numbers.keys())
    if missing:
        raise W2WError(f"shard {missing[0]}/{n} is not among these {len(folders)} folders. Train it, or name its folder.")
    return [numbers[i] for i in sorted(numbers)]
