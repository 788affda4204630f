"""Which device to compute on."""

import torch

from w2wpp.common.errors import W2WError


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. Raises W2WError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked).item()  # the meta device makes tensors and has no numbers
    except (RuntimeError, AssertionError) as error:
        raise W2WError(f"device {device} is not available here. Use --device auto or cpu.") from error
    return picked
