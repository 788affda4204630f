"""Workers that wait: what tests of the engine itself send to Ray. Workers import this."""

from dataclasses import dataclass
from pathlib import Path

from nodes import until
from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Work


@dataclass(frozen=True)
class WaitingRecipe:
    """A worker that says which task it has, and begins once a file is there."""

    folder: Path
    device: str = "cpu"

    def placed(self, device: str) -> "WaitingRecipe":
        """As it is."""
        return self

    def open(self, cores: int) -> Work:
        """What adds what is shared to a number, and refuses negative ones."""

        def work(task: int, shared: int) -> int:
            (self.folder / f"begun-{task}").touch()
            until(lambda: (self.folder / "go").exists())
            if task < 0:
                raise W2WError(f"{task} is negative.")
            return task + shared

        return work
