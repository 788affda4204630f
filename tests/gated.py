"""Training that waits: a worker trains a group only once a file of its first person's name is there. Workers import this."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2wpp.common.mapping import Work
from w2wpp.scale.training import TrainingRecipe


@dataclass(frozen=True)
class GatedRecipe(TrainingRecipe):
    """What a worker loads, and the folder where the files appear."""

    gates: Path = Path()

    def open(self, cores: int) -> Work:
        """What trains a group that may begin."""
        work = super().open(cores)

        def gated(members: Any, shared: Any) -> Any:
            while not (self.gates / members[0].id).exists():
                time.sleep(0.02)
            return work(members, shared)

        return gated
