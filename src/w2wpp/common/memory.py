"""The memory that is there, and what to do where it was less than was thought."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from w2wpp.common.errors import W2WError
from w2wpp.common.progress import note

GIB = 2**30
R = TypeVar("R")
# How torch says on a CPU that it got no memory; on a GPU it has an error of its own.
REFUSED = ("can't allocate memory", "DefaultCPUAllocator", "out of memory")


def free_bytes(device: str | torch.device = "cpu") -> int:
    """Bytes that a process may still take: of a GPU what it has free, of the machine what the system can give and a container may use."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or one without a limit ("max")
            continue
    return max(0, min(free))


def _available() -> int:
    """What the system says it can give; where it does not say, half of what there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):  # a system without sysconf
            return 8 * GIB


def check_room(needed: int, what: str) -> None:
    """Raise W2WError if `what` needs more bytes than a process may still take."""
    if needed > (free := free_bytes()):
        raise W2WError(f"{what} need {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free. Ask for fewer.")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in REFUSED)


def in_groups(n: int, size: int, work: Callable[[slice], R], unit: str) -> Iterator[R]:
    """`work` on slices that cover range(n), `size` at a time. Where memory runs out the rest goes on at half the size, and says so.

    unit: what is counted, in the plural. Raises W2WError where one alone is too much, and what else `work` raises.
    """
    at = 0
    while at < n:
        try:
            done = work(slice(at, min(at + size, n)))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if size == 1:
                raise W2WError(
                    f"memory ran out with one alone of {unit}. Free some, or give --low-memory where the verb has it."
                ) from error
            size = max(1, min(size, n - at) // 2)
        else:
            at += size
            yield done
            continue
        # Only here is the error gone, and with it the frames that hold what did not fit.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"memory ran out; the work goes on with {size} {unit} at a time.")
