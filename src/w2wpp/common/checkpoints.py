"""Where a long training stands, so that it can be interrupted and resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from w2wpp.common.errors import W2WError
from w2wpp.common.files import replacing


class Stateful(Protocol):
    """Anything with PyTorch's pair of state methods."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def save_checkpoint(path: Path, parts: Mapping[str, Stateful], step: int) -> None:
    """Write the state of every part and the number of finished steps, whole or not at all."""
    with replacing(path) as aside:
        try:
            torch.save({"step": step, "parts": {name: part.state_dict() for name, part in parts.items()}}, aside)
        except RuntimeError as error:  # how torch.save reports a full disk
            raise W2WError(f"cannot write {path}: {str(error).splitlines()[0]}. Nothing was changed.") from error


def load_checkpoint(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore every part; returns the number of finished steps, 0 without a checkpoint.

    Raises W2WError if the file is unreadable or belongs to other parts.
    """
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # it may be larger than what is free
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        return int(saved["step"])
    except Exception as error:  # torch reports a bad file with many exceptions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = f"checkpoint {path} does not fit this training ({reason})"
        raise W2WError(f"{found}. Give another file, or delete it to start anew.") from error
