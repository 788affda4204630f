"""A share of a population for one of n processes that know nothing of each other: tasks of a cluster's scheduler."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from w2wpp.common.errors import W2WError

T = TypeVar("T")
SHARE = re.compile(r"([0-9]{1,7})/([0-9]{1,7})")


@dataclass(frozen=True)
class Share:
    """The i-th of n shares, from 1 to n."""

    i: int
    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.i <= self.n:
            raise W2WError(f"shard {self.i}/{self.n} is not one of {self.n}. Number them from 1/{self.n} to {self.n}/{self.n}.")

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Share":
        """The share that `i/n` names, or that the scheduler names for `auto`. Raises W2WError where there is none.

        Read are SLURM_ARRAY_TASK_ID, _COUNT, _MIN and _STEP, else RANK and WORLD_SIZE, which count from 0.
        """
        if text != "auto":
            found = SHARE.fullmatch(text)
            if not found:
                raise W2WError(f"--shard {text} is not of the form i/n, such as 1/4. Write it so, or auto.")
            return cls(int(found[1]), int(found[2]))

        def number(name: str, otherwise: str = "") -> int:
            value = environment.get(name, otherwise)
            if not re.fullmatch(r"[0-9]{1,9}", value):
                raise W2WError(f"--shard auto: {name} is {value!r}; a whole number was expected. Write --shard i/n, such as 1/4.")
            return int(value)

        if "SLURM_ARRAY_TASK_ID" in environment:
            first, step = number("SLURM_ARRAY_TASK_MIN", "0"), number("SLURM_ARRAY_TASK_STEP", "1")
            return cls((number("SLURM_ARRAY_TASK_ID") - first) // max(1, step) + 1, number("SLURM_ARRAY_TASK_COUNT"))
        if "RANK" in environment:
            return cls(number("RANK") + 1, number("WORLD_SIZE"))
        raise W2WError("--shard auto: neither SLURM_ARRAY_TASK_ID nor RANK is set. Write --shard i/n, such as 1/4.")

    def of_list(self, items: list[T]) -> list[T]:
        """This share of a list: a run of neighbours; all shares together, in order, are the list."""
        return items[(self.i - 1) * len(items) // self.n : self.i * len(items) // self.n]

    def folder(self, out: Path) -> Path:
        """Where its rows go, so that names in their order are shares in theirs: out/0001-of-0004."""
        width = max(4, len(str(self.n)))
        return out / f"{self.i:0{width}}-of-{self.n:0{width}}"
