"""What a benchmark ran on: beside its figures, for which the processor's instructions count as much as its name."""

import os
from pathlib import Path
from typing import Any

import torch

from w2wpp.common.precision import fast_dtype, processor_features


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The processor or GPU, its cores, threads and GiB, its instructions, and the precision that products were taken in."""
    kind = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    return {
        "cpu": torch.cuda.get_device_name(kind) if kind.type == "cuda" else cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_gib(), 1),
        "features": processor_features(),
        "products": str(fast_dtype(kind)).removeprefix("torch."),
    }


def cpu() -> str:
    """The processor's name."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown"


def memory_gib() -> float:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
