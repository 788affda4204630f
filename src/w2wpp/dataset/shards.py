"""One shard of a weight dataset: some rows as a safetensors file or object, of which any part is read, with a checksum a row."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.memory import GIB
from w2wpp.common.storage import Address, size_of
from w2wpp.dataset.quantised import restored

# As torch and as safetensors call them. Rows of int8 have one scale per matrix beside them (`quantised.py`).
PRECISIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
LONGEST_HEADER = 2**20  # bytes; that of a shard has some 100
FIRST = 2**11  # bytes that are read from storage to see the header in one request
PIECE = 2**22  # numbers that are read at a time where their precision changes


class OpenShard:
    """A shard's `weights` on disk or in storage, read by position without mapping the file; its errors name the file."""

    def __init__(self, path: Path | Address, rows: int, d: int, dtype: str, widths: Sequence[int] = ()) -> None:
        """widths: numbers in each matrix of a row, in order; needed for int8."""
        self.path, self.shape, self.dtype = path, [rows, d], dtype
        self.widths = torch.tensor(widths, dtype=torch.long)
        self._starts: dict[str, int] = {}  # where each part begins; known once the header was read

    def __enter__(self) -> Self:
        if isinstance(self.path, Address) and self._starts:
            return self
        try:
            self._file = self.path if isinstance(self.path, Address) else self.path.open("rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._check_header()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.__exit__()
            raise self._unreadable(error) from error
        except W2WError:
            self.__exit__()
            raise
        return self

    def _check_header(self) -> None:
        """Find where the numbers begin. By hand: safetensors would map the file, which counts as memory."""
        first = self._begin(FIRST)
        length = int.from_bytes(first[:8], "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        first = first if len(first) >= 8 + length else self._begin(8 + length)
        header, found = json.loads(first[8 : 8 + length]), size_of(self.path)
        parts = {"weights": (self.shape, self.dtype)}
        if self.dtype == "int8":
            parts["scales"] = ([self.shape[0], len(self.widths)], "float32")
        starts = {name: 8 + length + _offset(header[name], *part, self.path) for name, part in parts.items()}
        expected = 8 + length + sum(math.prod(shape) * getattr(torch, dtype).itemsize for shape, dtype in parts.values())
        if found != expected:
            raise ValueError(f"{found or 0:,} bytes instead of {expected:,}")
        self._starts = starts

    def _begin(self, length: int) -> bytes:
        """The first bytes of the file, as many as there are."""
        if isinstance(self._file, Address):
            return self._file.read_bytes(0, length)
        self._file.seek(0)
        return self._file.read(length)

    def _unreadable(self, error: Exception) -> W2WError:
        return W2WError(f"{self.path} does not read ({error}). Was it cut short? Run `w2w dataset info --verify`.")

    def __exit__(self, *_: object) -> None:
        if not isinstance(self._file, Address):
            self._file.close()

    def read(self, row: int, out: Tensor) -> None:
        """Fill `out` [k, d] with the rows from `row` on, in out's precision."""
        if self.dtype == "int8":
            self._restore(row, 0, out)
        else:
            self._fill(row * self.shape[1], out)

    def read_columns(self, row: int, column: int, out: Tensor) -> None:
        """Fill `out` [k, width] with the columns from `column` on of the rows from `row` on, in out's precision."""
        if self.dtype == "int8":
            self._restore(row, column, out)
            return
        kept, width = getattr(torch, self.dtype), out.shape[1]
        if out.dtype == kept:
            self._beginnings(row * self.shape[1] + column, out)
            return
        for s in batches(len(out), max(1, PIECE // max(1, width))):
            raw = torch.empty(s.stop - s.start, width, dtype=kept)
            self._beginnings((row + s.start) * self.shape[1] + column, raw)
            out[s] = raw

    def _beginnings(self, number: int, out: Tensor) -> None:
        """Fill `out` [k, width], of the weights' own precision, with the numbers from `number` on, and as far on in each next row."""
        raw, size = out.view(torch.uint8).numpy() if out.numel() else (), out.element_size()
        at, step = self._starts["weights"] + number * size, self.shape[1] * size
        if isinstance(self._file, Address):
            self._file.read_into(list(raw), at, step)
            return
        for i, piece in enumerate(raw):  # thousands of short reads: nothing else a row
            if _read_at(self._file, piece, at + i * step) != len(piece):
                raise W2WError(f"{self.path} became shorter while it was read. Run `w2w dataset info --verify`.")

    def row_sum(self, row: int) -> int:
        """The checksum of a row as it stands on disk now, to compare with that of `row_sums`."""
        kept = torch.empty(1, self.shape[1], dtype=getattr(torch, self.dtype))
        self._bytes("weights", row * self.shape[1], kept.view(-1))
        if self.dtype != "int8":
            return row_sums(kept)[0]
        scales = torch.empty(1, len(self.widths))
        self._bytes("scales", row * len(self.widths), scales.view(-1))
        return row_sums(kept, scales)[0]

    def _restore(self, row: int, column: int, out: Tensor) -> None:
        """Fill `out` [k, width] from rows of int8 and their scales, some rows at a time."""
        (_, d), width = self.shape, out.shape[1]
        for s in batches(len(out), max(1, PIECE // max(1, width))):
            k = s.stop - s.start
            numbers, scales = torch.empty(k, width, dtype=torch.int8), torch.empty(k, len(self.widths))
            first = row + s.start
            if width == d:
                self._bytes("weights", first * d, numbers.view(-1))
            else:
                self._beginnings(first * d + column, numbers)
            self._bytes("scales", first * len(self.widths), scales.view(-1))
            out[s] = restored(numbers, scales, self.widths, column)

    def _fill(self, number: int, out: Tensor) -> None:
        """Fill `out`, contiguous, with what stands from this number of the weights on."""
        kept = getattr(torch, self.dtype)
        flat = out.view(-1)
        if out.dtype == kept:
            self._bytes("weights", number, flat)
            return
        for piece in flat.split(PIECE):
            raw = torch.empty(len(piece), dtype=kept)
            self._bytes("weights", number, raw)
            piece.copy_(raw)
            number += len(piece)

    def _bytes(self, part: str, number: int, out: Tensor) -> None:
        """Fill `out`, flat and of the part's own precision, with what stands from this number of a part of the file on."""
        left, at = out.view(torch.uint8).numpy().data, self._starts[part] + number * out.element_size()
        if isinstance(self._file, Address):
            self._file.read_whole_into(left, at)
            return
        while left:
            got = _read_at(self._file, left, at)
            if not got:
                raise W2WError(f"{self.path} became shorter while it was read. Run `w2w dataset info --verify`.")
            left, at = left[got:], at + got


def _offset(about: dict[str, Any], shape: list[int], dtype: str, path: Path | Address) -> int:
    """Where a part begins after the header that describes it so. Raises W2WError if it is of another shape or precision."""
    first, last = about["data_offsets"]
    if (about["shape"], about["dtype"]) != (shape, PRECISIONS[dtype]):
        raise W2WError(f"{path} holds weights {about['shape']} {about['dtype']}; the manifest expects {shape} {PRECISIONS[dtype]}.")
    size = math.prod(shape) * getattr(torch, dtype).itemsize
    if first < 0 or last - first != size:
        raise ValueError(f"{last - first:,} bytes instead of {size:,}")
    return int(first)


def _read_at(file: FileIO, piece: Any, at: int) -> int:
    """Read bytes from a place into `piece`, in one call where the system has one; returns how many."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [piece], at)
    file.seek(at)
    return file.readinto(piece)


def row_sums(weights: Tensor, scales: Tensor | None = None) -> list[int]:
    """One checksum per row of weights [n, d], and of its scales [n, matrices] where it has some, over the bytes on disk."""
    sums = [zlib.crc32(row.numpy()) for row in weights.contiguous().view(torch.uint8)]
    if scales is None:
        return sums
    return [zlib.crc32(row.numpy(), before) for row, before in zip(scales.contiguous().view(torch.uint8), sums, strict=True)]


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


def sha256(path: Path | Address) -> str:
    """The checksum of a whole file or object, read piece by piece."""
    if isinstance(path, Address):
        digest, size = hashlib.sha256(), path.size() or 0
        for s in batches(size, 2**25):
            part = bytearray(s.stop - s.start)
            path.read_whole_into(part, s.start)
            digest.update(part)
        return digest.hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def rows_within(memory: float, d: int, copies: int = 4) -> int:
    """How many rows of d numbers to hold at a time, so that `copies` of them in float32 take `memory` GiB at most; at least 1."""
    return max(1, int(memory * GIB / (4 * d * copies)))
