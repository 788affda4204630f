"""One piece of work for each of many things, in a process a core."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from w2wpp.common.errors import W2WError

WORTH_A_PROCESS = 32  # things; a process takes longer to start than fewer take

T = TypeVar("T")
R = TypeVar("R")


def in_processes(work: Callable[[T], R], things: Sequence[T], what: str, processes: int | None = None) -> Iterator[R]:
    """Yield what `work` makes of each thing, in their order; here if they are few. processes: one a core unless given.

    what: they are called in an error, in the plural. Raises W2WError if a process is killed, and what `work` raises.
    """
    workers = min(processes or os.cpu_count() or 1, max(1, len(things) // WORTH_A_PROCESS))
    if workers == 1:
        yield from map(work, things)
        return
    # A forked process that changes OpenCV's number of threads waits for ever for those that it has not: changed before, it has one.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ProcessPoolExecutor(workers, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
            yield from pool.map(work, things, chunksize=WORTH_A_PROCESS // 2)
    except BrokenProcessPool as error:
        found = f"a process that worked on {what} was killed, perhaps for memory"
        raise W2WError(f"{found}. Free some and run it again, with fewer --processes if it takes that.") from error
    finally:
        cv2.setNumThreads(threads)


def _begin_worker(parent: int) -> None:
    """No worker outlives a parent that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
