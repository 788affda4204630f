"""Named random generators: what a draw is for decides its numbers, not when or beside whom it is made."""

import hashlib

import torch


def generator(seed: int, *keys: str | int) -> torch.Generator:
    """A CPU generator for the draw named by `keys` under `seed`; the same names give the same numbers anywhere."""
    name = "/".join(str(key) for key in (seed, *keys))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)
