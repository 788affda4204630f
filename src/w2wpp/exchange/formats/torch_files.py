"""PyTorch's .pt files without running code: plain values, and tables [n, d] block by block, however large.

A .pt file is a zip archive, uncompressed: `data.pkl` says what there is, `data/0` holds the numbers of the first tensor.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import replacing


def load_plain(path: Path, *, device: str = "cpu", allowed: Sequence[Any] = ()) -> Any:
    """What a .pt file holds: tensors and plain values only, and objects of the classes `allowed`.

    device: `meta` for shapes without numbers. Raises W2WError if it was altered, or would have to run code.
    """
    _check_archive(path)
    return _loaded(path, path, device, allowed)


def _loaded(path: Path, source: Any, device: str, allowed: Sequence[Any] = ()) -> Any:
    context: AbstractContextManager[Any] = torch.serialization.safe_globals(list(allowed)) if allowed else nullcontext()
    try:
        with context:
            return torch.load(source, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise W2WError(f"{path} holds more than tensors and would have to run code to load; it was not loaded.") from error
    except Exception as error:  # torch reports a bad file with many exceptions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise W2WError(f"cannot read {path}: {reason}. Is it a whole .pt file?") from error


def _check_archive(path: Path) -> None:
    """Compare every checksum, which torch writes and does not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
            altered = None if packed else archive.testzip()
    except Exception as error:  # zipfile reports damage as BadZipFile, struct.error, NotImplementedError, zlib.error, ...
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise W2WError(f"cannot read {path}: {reason}. Is it a whole .pt file, saved by torch 1.6 or later?") from error
    if packed or altered:
        raise W2WError(f"{path} was altered: {altered or 'a part'} in it is not as torch wrote it. Download it again.")


@dataclass(frozen=True)
class TableFile:
    """A table [n, d] in a .pt file whose numbers are read when asked for, into memory that is given back."""

    path: Path
    start: int  # of the numbers, bytes from the beginning of the file
    n: int
    d: int
    dtype: torch.dtype
    transposed: bool = False  # the file holds the table column by column: n and d are those of the transposed table
    opened: Callable[[], BinaryIO] | None = None  # in place of the path, for a file that lies elsewhere

    @classmethod
    def open(cls, path: Path, *, either_order: bool = False, opened: Callable[[], BinaryIO] | None = None) -> "TableFile":
        """Find the table. Raises W2WError if the file was altered, needs code to load, or holds anything else.

        either_order: also take a table that was saved column by column, as its transposed table. opened: opens the file where
        `path` is only its name; its checksum is then not compared, which would read all of it.
        """
        if opened is None:
            table = load_plain(path, device="meta")
        else:
            with opened() as elsewhere:
                table = _loaded(path, elsewhere, "meta")
        known = isinstance(table, Tensor) and table.dim() == 2 and table.is_floating_point()
        transposed = bool(known and either_order and not table.is_contiguous() and table.T.is_contiguous())
        if not known or not (transposed or table.is_contiguous()):
            found = list(table.shape) if isinstance(table, Tensor) else type(table).__name__
            raise W2WError(f"{path} holds {found}; a table [adapters, numbers] of floats was expected.")
        with opened() if opened else path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            names = archive.namelist()
            numbers = next((name for name in names if name.endswith("/data/0")), None)
            needed = (int(table.storage_offset()) + table.numel()) * table.element_size()
            if numbers is None or archive.getinfo(numbers).file_size < needed:
                raise W2WError(f"{path} holds no numbers for its table of {list(table.shape)}. Download it again.")
            order = next((name for name in names if name.endswith("/byteorder")), None)
            if order and archive.read(order) != b"little":
                raise W2WError(f"{path} was written on a machine of another byte order. Save it again on this one.")
            member = archive.getinfo(numbers)
            handle.seek(member.header_offset)
            header = handle.read(30)  # PKWARE's application note, 4.3.7: the lengths of name and extra field end it
            begin = member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        begin += int(table.storage_offset()) * table.element_size()
        n, d = table.T.shape if transposed else table.shape
        return cls(path, begin, n, d, table.dtype, transposed, opened)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [stop - start, d] in the file's own precision."""
        width = self.d * torch.empty((), dtype=self.dtype).element_size()
        buffer = bytearray((stop - start) * width)
        with self.opened() if self.opened else self.path.open("rb") as handle:
            handle.seek(self.start + start * width)
            if handle.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise W2WError(f"{self.path} ends within row {stop - 1}. Was it cut short?")
        return torch.frombuffer(buffer, dtype=self.dtype).view(-1, self.d)


def write_plain(path: Path, value: Any) -> None:
    """Write a tensor or plain values as torch.save does, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with replacing(path) as aside:
        aside.write_bytes(buffer.getbuffer())


def write_table(path: Path, n: int, d: int, blocks: Iterable[Tensor]) -> None:
    """Write a float32 table [n, d], given block by block, as `torch.save` would write it whole; `torch.load` reads it.

    Raises W2WError if the disk is full; there is then no file.
    """
    with replacing(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _table_pickle(n, d))
        archive.writestr("archive/byteorder", b"little")
        with archive.open("archive/data/0", "w", force_zip64=True) as numbers:
            for block in blocks:
                numbers.write(block.float().contiguous().numpy().tobytes())
        archive.writestr("archive/version", b"3\n")


class _Storage:
    """Stands for the numbers in the pickle; they lie beside it."""


class _Rebuilt:
    """Pickles as torch pickles a tensor: a call that puts shape and strides on a storage."""

    def __init__(self, n: int, d: int) -> None:
        self.shape = (n, d)

    def __reduce__(self) -> tuple[Any, ...]:
        n, d = self.shape
        return torch._utils._rebuild_tensor_v2, (_Storage(), 0, (n, d), (d, 1), False, OrderedDict())


def _table_pickle(n: int, d: int) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", n * d) if isinstance(value, _Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(_Rebuilt(n, d))
    return buffer.getvalue()
