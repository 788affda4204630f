"""Tasks in, results out in their order: done by this process, or by workers elsewhere that a recipe tells how."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from w2wpp.common.assets import TINY_FACES
from w2wpp.common.precision import VARIABLE

Work = Callable[[Any, Any], Any]  # a task, and what all tasks share -> its result


class Mapper(Protocol):
    """Who does tasks."""

    def __call__(self, tasks: Sequence[Any], shared: Any = None) -> Iterator[Any]:
        """The result of each task, in their order, to be taken to the end. shared: what all of them need, and is sent once.

        Raises W2WError if a task did, or could not be done.
        """


class Recipe(Protocol):
    """What a worker needs to know to do tasks, as plain data: files are read where the worker is."""

    @property
    def device(self) -> str:
        """Where it would work: `auto`, `cpu` or `cuda`."""

    def placed(self, device: str) -> "Recipe":
        """The same for workers in other folders: with absolute paths, and on a device."""

    def open(self, cores: int) -> Work:
        """What does a task, loaded once. Raises W2WError."""


def in_this_process(work: Work) -> Mapper:
    """The mapper of one process, which does task after task."""
    return lambda tasks, shared=None: (work(task, shared) for task in tasks)


def absolute(source: str | Path | None) -> Any:
    """Where a file lies; what is no file, such as a hub id, stays as it is."""
    return Path(source).resolve() if source and str(source) != TINY_FACES and Path(source).exists() else source


def asked_precision() -> str:
    """The precision that this process was told to take products in, for its workers; "" if none."""
    return os.environ.get(VARIABLE, "")


def begin_work(cores: int, precision: str) -> None:
    """Make a worker's process compute as the process that sent it does."""
    from torch import set_num_threads

    if precision:
        os.environ[VARIABLE] = precision
    set_num_threads(cores)
