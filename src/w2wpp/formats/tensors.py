"""Numbers out of other people's safetensors files: only those that are numbers, and every error names file and key."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2wpp.errors import W2WError

FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "I16", "I8", "U8")


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, its numbers unread. Raises W2WError if it is none, or cut short."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError, ValueError) as error:
        pickled = file.with_suffix(".bin")
        such = f"{pickled.name} is a pickle, and not opened: convert it." if pickled.exists() else "Is it a whole safetensors file?"
        raise W2WError(f"cannot read {file}: {error}. {such}") from error


def finite_floats(tensors: Any, key: str, file: Path, *, integers: bool = False) -> Tensor:
    """The tensor of a key, float32. Raises W2WError if it holds anything but finite numbers.

    integers: allow them, as for kohya's alpha.
    """
    found = tensors.get_slice(key)
    dtype, dimensions = found.get_dtype(), len(found.get_shape())
    if dtype not in FLOATS + (INTEGERS if integers else ()):
        raise W2WError(f"{file}: {key} is of type {dtype}; {', '.join(FLOATS)} were expected. Save it in one of them.")
    if dimensions > 4:  # a convolution has four
        raise W2WError(f"{file}: {key} has {dimensions} dimensions; a matrix was expected. Is it a LoRA?")
    tensor: Tensor = tensors.get_tensor(key).float()
    if not torch.isfinite(tensor).all():
        raise W2WError(f"{file}: {key} holds numbers that are not finite. Train or download it again.")
    return tensor
