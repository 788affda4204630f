"""How long a work has taken, over interruptions."""

import time


class Clock:
    """How long a training has taken, over interruptions."""

    def __init__(self) -> None:
        self.before, self.began = 0.0, time.monotonic()

    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.before + time.monotonic() - self.began

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Resume from a checkpoint."""
        self.before, self.began = state["seconds"], time.monotonic()
