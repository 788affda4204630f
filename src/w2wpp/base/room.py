"""How many pictures go through a base at a time: by what one takes when it is tried, and the memory that is there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from w2wpp.common.memory import GIB, free_bytes, ran_out
from w2wpp.common.progress import note

if TYPE_CHECKING:  # the base asks how many
    from w2wpp.base.model import BaseModel

MOST = 64  # pictures; more at a time gain no speed
SMALL = 128  # pixels: of pictures of this side 64 fit everywhere, and none is tried
SHARE = 0.5  # of the free memory; the rest is for what the trial did not see
PAGE = 4096  # bytes, in which Linux counts


def pictures_at_a_time(base: "BaseModel", n: int) -> int:
    """How many of n pictures to draw, decode or encode at a time, from 1 to `MOST`; a line says so where it is not all of them."""
    if n == 1 or base.image_size <= SMALL:
        return min(n, MOST)
    free, one = free_bytes(base.device), base.picture_bytes
    size = max(1, min(MOST, int(SHARE * free / max(1, one))))
    if size < n:
        note(f"{size} of {n} pictures at a time: one takes {one / GIB:.1f} GiB, and {free / GIB:.1f} are free.")
    return size


@torch.no_grad()
def picture_bytes(base: "BaseModel") -> int:
    """What one picture takes at most: a pass of the UNet with guidance, or its decoding, whichever takes more; tried here.

    What does not even fit once counts as all there is.
    """
    latents = torch.zeros(2, *base.latent_shape, device=base.device)
    context = base.encode_text(["", ""])
    vae = base.pipeline.vae
    try:
        with peak(base.device) as taken:
            base.predict(latents, torch.zeros(2, dtype=torch.long, device=base.device), context)
            vae.decode(latents[:1].to(base.dtype))
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return free_bytes(base.device)
    return max(taken)


@contextmanager
def peak(device: torch.device) -> Iterator[list[int]]:
    """What is done within takes this many bytes at most beside what was taken before: in the list afterwards."""
    taken = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield taken
        taken.append(torch.cuda.max_memory_allocated(device) - before)
        return
    before, stop = _resident(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            taken[0] = max(taken[0], _resident() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield taken
    finally:
        stop.set()
        watcher.join()


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return 0
