"""One shard of a weight dataset: some rows as a safetensors file, of which any part is read, with a checksum a row."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from w2wpp.errors import W2WError

PRECISIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as torch and as safetensors call them
GIB = 2**30
LONGEST_HEADER = 2**20  # bytes; that of a shard has some 100
PIECE = 2**22  # numbers that are read at a time where their precision changes


class OpenShard:
    """A shard's `weights` on disk, read by position without mapping the file; its errors name the file."""

    def __init__(self, path: Path, rows: int, d: int, dtype: str) -> None:
        self.path, self.shape, self.dtype = path, [rows, d], dtype

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._check_header()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._file.close()
            raise self._unreadable(error) from error
        except W2WError:
            self._file.close()
            raise
        return self

    def _check_header(self) -> None:
        """Find where the numbers begin. By hand: safetensors would map the file, which counts as memory."""
        length = int.from_bytes(self._file.read(8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        about = json.loads(self._file.read(length))["weights"]
        shape, dtype, (first, last) = about["shape"], about["dtype"], about["data_offsets"]
        if (shape, dtype) != (self.shape, PRECISIONS[self.dtype]):
            raise W2WError(f"{self.path} holds weights {shape} {dtype}; the manifest expects {self.shape} {PRECISIONS[self.dtype]}.")
        size, found = shape[0] * shape[1] * getattr(torch, self.dtype).itemsize, os.fstat(self._file.fileno()).st_size
        self._start = 8 + length + first
        if first < 0 or last - first != size or self._start + size != found:
            raise ValueError(f"{found:,} bytes instead of {self._start + size:,}")

    def _unreadable(self, error: Exception) -> W2WError:
        return W2WError(f"{self.path} does not read ({error}). Was it cut short? Run `w2w dataset info --verify`.")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, row: int, out: Tensor) -> None:
        """Fill `out` [k, d] with the rows from `row` on, in out's precision."""
        self._fill(row * self.shape[1], out)

    def read_columns(self, row: int, column: int, out: Tensor) -> None:
        """Fill `out` [k, width] with the columns from `column` on of the rows from `row` on, in out's precision."""
        if out.dtype != getattr(torch, self.dtype):
            for i in range(len(out)):
                self._fill((row + i) * self.shape[1] + column, out[i])
            return
        raw, size = out.view(torch.uint8).numpy() if out.numel() else (), out.element_size()
        at, step = self._start + (row * self.shape[1] + column) * size, self.shape[1] * size
        descriptor = self._file.fileno()
        for i, piece in enumerate(raw):  # thousands of short reads: nothing else a row
            if os.preadv(descriptor, [piece], at + i * step) != len(piece):
                raise W2WError(f"{self.path} became shorter while it was read. Run `w2w dataset info --verify`.")

    def _fill(self, number: int, out: Tensor) -> None:
        """Fill `out`, contiguous, with what stands from this number on."""
        kept = getattr(torch, self.dtype)
        flat = out.view(-1)
        if out.dtype == kept:
            self._bytes(number * kept.itemsize, flat)
            return
        for piece in flat.split(PIECE):
            raw = torch.empty(len(piece), dtype=kept)
            self._bytes(number * kept.itemsize, raw)
            piece.copy_(raw)
            number += len(piece)

    def _bytes(self, at: int, out: Tensor) -> None:
        left = out.view(torch.uint8).numpy().data
        while left:
            got = os.preadv(self._file.fileno(), [left], self._start + at)
            if not got:
                raise W2WError(f"{self.path} became shorter while it was read. Run `w2w dataset info --verify`.")
            left, at = left[got:], at + got


def row_sums(weights: Tensor) -> list[int]:
    """A checksum a row of weights [n, d], over the bytes on disk."""
    return [zlib.crc32(row.numpy()) for row in weights.contiguous().view(torch.uint8)]


def runs(indices: Sequence[int], starts: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """What to read for these positions: (shard, row in it, place in the result, length), each one read, shard by shard.

    starts: the position of each shard's first row.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    shards = np.searchsorted(starts, wanted, side="right") - 1
    breaks = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(shards) != 0)) + 1
    firsts = np.concatenate([[0], breaks]) if len(wanted) else breaks
    lengths = np.diff([*firsts, len(wanted)])
    for i in np.argsort(shards[firsts], kind="stable"):
        place, shard = int(firsts[i]), int(shards[firsts[i]])
        yield shard, int(wanted[place]) - starts[shard], place, int(lengths[i])


def sha256(path: Path) -> str:
    """The checksum of a whole file, read piece by piece."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def rows_within(memory: float, d: int, copies: int = 4) -> int:
    """How many rows of d numbers to hold at a time, so that `copies` of them in float32 take `memory` GiB at most; at least 1."""
    return max(1, int(memory * GIB / (4 * d * copies)))
