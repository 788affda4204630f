"""One shard of a weight dataset: some rows as a safetensors file, sliced lazily, with a checksum a row."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2wpp.errors import W2WError

PRECISIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as torch and as safetensors call them
GIB = 2**30


class OpenShard:
    """A shard's `weights`, sliced lazily; its errors name the file."""

    def __init__(self, path: Path, rows: int, d: int, dtype: str) -> None:
        self.path, self.shape, self.dtype = path, [rows, d], dtype

    def __enter__(self) -> Any:
        try:
            self._file = safe_open(self.path, framework="pt")
            tensor = self._file.get_slice("weights")
            shape, dtype = tensor.get_shape(), tensor.get_dtype()
        except (OSError, SafetensorError) as error:
            raise W2WError(f"{self.path} does not read ({error}). Was it cut short? Run `w2w dataset info --verify`.") from error
        if (shape, dtype) != (self.shape, PRECISIONS[self.dtype]):
            raise W2WError(f"{self.path} holds weights {shape} {dtype}; the manifest expects {self.shape} {PRECISIONS[self.dtype]}.")
        return tensor

    def __exit__(self, *_: object) -> None:
        del self._file


def row_sums(weights: Tensor) -> list[int]:
    """A checksum a row of weights [n, d], over the bytes on disk."""
    return [zlib.crc32(row.numpy()) for row in weights.contiguous().view(torch.uint8)]


def stretches(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int]]:
    """Runs of (place, row) in which both go up by one: their first pair and length. One read each."""
    first, length = 0, 0
    for i, (place, row) in enumerate(pairs):
        if length and (place, row) != (pairs[first][0] + length, pairs[first][1] + length):
            yield pairs[first], length
            first, length = i, 0
        length += 1
    if length:
        yield pairs[first], length


def sha256(path: Path) -> str:
    """The checksum of a whole file, read piece by piece."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def rows_within(memory: float, d: int, copies: int = 4) -> int:
    """How many rows of d numbers to hold at a time, so that `copies` of them in float32 take `memory` GiB at most; at least 1."""
    return max(1, int(memory * GIB / (4 * d * copies)))
