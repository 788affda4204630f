"""Named random generators: what a draw is for decides its numbers, not when or beside whom it is made."""

import hashlib

import torch


def named_seed(seed: int, *keys: str | int) -> int:
    """A seed of 63 bits for the draw named by `keys` under `seed`."""
    name = "/".join(str(key) for key in (seed, *keys))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *keys: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the draw named by `keys` under `seed`; the same names give the same numbers on any CPU.

    device: where to draw. A GPU draws other numbers than a CPU, and needs no copy of them.
    """
    return torch.Generator(device).manual_seed(named_seed(seed, *keys))
