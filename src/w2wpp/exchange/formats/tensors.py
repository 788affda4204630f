"""Numbers out of other people's safetensors files: only those that are numbers, and every error names file and key.

A file is an eight-byte length, a JSON header of that length, and the numbers. The header is read by hand: it says what a
file is without reading its numbers, and a damaged file can be named for what it is.
"""

import json
import math
import stat
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.lora.layout import Layout

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
FLOATS = tuple(DTYPES)
LONGEST_HEADER = 100 * 2**20  # bytes, as in safetensors itself
MOST_SIDES = 8  # of a tensor: no factor of any adapter has more than four
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor: type, shape, and where its bytes lie behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    file: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]
    start: int  # of the numbers, bytes from the beginning of the file

    def read(self, keys: Iterable[str], *, integers: Container[str] = ()) -> dict[str, Tensor]:
        """The tensors of these keys, float32. Raises W2WError naming all keys that hold anything but finite numbers.

        integers: the keys that may be whole numbers, as kohya's alpha. The part of the file that holds the keys is read once.
        """
        wanted = {key: self.entries[key] for key in keys}
        if not wanted:
            return {}
        known = DTYPES | INTEGERS
        if wrong := [
            f"{key} is of type {entry.dtype}" for key, entry in wanted.items() if entry.dtype not in (known if key in integers else DTYPES)
        ]:
            raise W2WError(f"{self.file}: {few(wrong)}; {', '.join(FLOATS)} were expected. Save it in one of them.")
        first, last = min(entry.begin for entry in wanted.values()), max(entry.end for entry in wanted.values())
        buffer = torch.empty(last - first, dtype=torch.uint8)
        with self.file.open("rb") as handle:
            handle.seek(self.start + first)
            if handle.readinto(buffer.numpy().data) != len(buffer):
                raise W2WError(f"{self.file} became shorter while it was read. Is it still being written?")
        tensors: dict[str, Tensor] = {}
        for name in {entry.dtype for entry in wanted.values()}:
            tensors |= _numbers(buffer, {key: entry for key, entry in wanted.items() if entry.dtype == name}, first, known[name])
        if torch.isfinite(torch.stack([tensor.sum() for tensor in tensors.values()])).all():  # NaN or infinity would be in the sum
            return tensors
        bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if bad:  # a sum may also be too large for finite numbers
            every = "every number" if all(tensors[key].isnan().all() for key in bad) and len(bad) == len(tensors) else "numbers"
            raise W2WError(f"{self.file}: {few(bad)} hold {every} that are not finite (NaN or infinity). Train or download it again.")
        return tensors


def _numbers(buffer: Tensor, entries: Mapping[str, Entry], first: int, kept: torch.dtype) -> dict[str, Tensor]:
    """Tensors of one type, float32: converted together where they lie together. first: where the buffer begins in the file."""
    begin, end = min(entry.begin for entry in entries.values()), max(entry.end for entry in entries.values())
    stretch = buffer[begin - first : end - first]
    if (begin - first) % kept.itemsize or any((entry.begin - begin) % kept.itemsize for entry in entries.values()):
        found = {key: buffer[entry.begin - first : entry.end - first].clone().view(kept).float() for key, entry in entries.items()}
    elif sum(entry.end - entry.begin for entry in entries.values()) == end - begin:
        whole = stretch.view(kept).float()
        places = {key: ((entry.begin - begin) // kept.itemsize, (entry.end - begin) // kept.itemsize) for key, entry in entries.items()}
        found = {key: whole[at:to] for key, (at, to) in places.items()}
    else:
        found = {key: buffer[entry.begin - first : entry.end - first].view(kept).float() for key, entry in entries.items()}
    return {key: numbers.view(entries[key].shape) for key, numbers in found.items()}


def few(things: list[str], most: int = 3) -> str:
    """The first of these, and how many more there are."""
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")


def read_header(file: Path) -> Header:
    """What a file holds, its numbers unread. Raises W2WError that names what it is, if it is no whole safetensors file."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
            raise W2WError(f"{file} is a folder, a pipe or a device; a file was expected. Leave it out.")
        size = status.st_size
        with file.open("rb") as handle:
            begin = handle.read(8)
            length = int.from_bytes(begin, "little")
            first = handle.read(1)
            if first != b"{" or length > LONGEST_HEADER:
                raise W2WError(_not_safetensors(file, begin + first + handle.read(64), size))
            handle.seek(8)
            text = handle.read(length)
    except OSError as error:
        pickled = file.with_suffix(".bin")
        such = f" {pickled.name} is a pickle, and not opened: convert it." if pickled.exists() else ""
        raise W2WError(f"cannot read {file}: {error.strerror}.{such}") from error
    if len(text) < length:
        raise W2WError(f"{file} was cut short: it ends within its header, after {size:,} bytes. Download it again.")
    try:
        described = json.loads(text)
        metadata = described.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
        entries = {key: _entry(value) for key, value in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise W2WError(f"cannot read {file}: its header is damaged ({error!r:.80}). Is it a whole safetensors file?") from error
    if size < (whole := 8 + length + max((entry.end for entry in entries.values()), default=0)):
        raise W2WError(f"{file} was cut short: it has {size:,} of {whole:,} bytes. Is it a whole safetensors file? Download it again.")
    if size > whole:
        raise W2WError(f"{file} has {size - whole:,} bytes more than its header says. Is it a whole safetensors file? Download it again.")
    return Header(file, metadata, entries, 8 + length)


def _entry(value: Mapping[str, Any]) -> Entry:
    shape, (begin, end) = tuple(int(side) for side in value["shape"]), value["data_offsets"]
    dtype = str(value["dtype"])
    known = (DTYPES | INTEGERS).get(dtype)
    if len(shape) > MOST_SIDES:
        raise ValueError(f"a tensor of {len(shape)} sides")
    if not all(type(edge) is int for edge in (begin, end)) or not 0 <= begin <= end or any(side < 0 for side in shape):
        raise ValueError(f"offsets {begin!r:.20} to {end!r:.20}")
    if known is not None and end - begin != math.prod(shape) * known.itemsize:
        raise ValueError(f"shape {list(shape)} in {end - begin} bytes")
    return Entry(dtype, shape, begin, end)


def _not_safetensors(file: Path, begin: bytes, size: int) -> str:
    """What a file that is no safetensors file is, and what to do."""
    if begin.startswith(LFS):
        return f"{file} is a Git LFS pointer, not the file itself. Run `git lfs pull` where it was cloned, or download it again."
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return f"{file} is a web page that was saved under this name. Download the file itself; a login may be needed."
    if begin.startswith((b"PK\x03\x04", b"\x80")):
        return f"{file} is a pickle under another name, and may hold code; it was not opened. Convert it to safetensors."
    if size < 8:
        return f"{file} was cut short: it has {size} bytes. Is it a whole safetensors file? Download it again."
    return f"cannot read {file}: it does not begin as a safetensors file does. Is it a whole safetensors file?"


def checked_matrices(layout: Layout, weights: Tensor) -> dict[str, Tensor]:
    """The matrices of an adapter, weights [d], by name, a convolution's in four dimensions. Raises W2WError for NaN or infinity."""
    if not torch.isfinite(weights).all():
        raise W2WError(
            f"the adapter has {int((~torch.isfinite(weights)).sum())} weights that are not numbers. Train it again at a lower --lr."
        )
    return full_shapes(layout, layout.unflatten(weights))


def full_shapes(layout: Layout, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same matrices of one adapter, those of a convolution as other tools write them: [r, c, kh, kw] and [out, r, 1, 1]."""
    kernels = {m.module for m in layout.matrices if m.kernel}
    shapes = {m.name: m.full_shape if m.kernel else (*m.shape, 1, 1) if m.module in kernels else m.shape for m in layout.matrices}
    return {name: matrix.reshape(shapes[name]) for name, matrix in matrices.items()}
