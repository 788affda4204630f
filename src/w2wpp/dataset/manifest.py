"""An append-only file of JSON lines, each with its own checksum, that many processes may add to.

A kill while a line is written leaves a torn last line: readers leave it out, and the next writer cuts it off. A line
that was altered afterwards is refused.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from w2wpp.common.errors import W2WError
from w2wpp.common.storage import Address, here, size_of

SEAL = "crc32"


class Manifest:
    """The lines of one file, read once each: every call takes in what was added since."""

    def __init__(self, path: Path | Address) -> None:
        self.path = path
        self._read = 0  # bytes of the whole lines that were taken in
        self._lines = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """What was added since the last call. Raises W2WError if a line is damaged, or the file became shorter."""
        # Bytes: a kill may cut a line within a letter, and only b"\n" ends one (a name may hold U+2028).
        added = self._added().split(b"\n")
        torn = added.pop()
        taken = [self._parsed(line, self._lines + i) for i, line in enumerate(added)]
        self._refuse_unless_torn(torn, self._lines + len(added))
        self._read += sum(len(line) + 1 for line in added)
        self._lines += len(added)
        return taken

    def _added(self) -> bytes:
        """What stands behind the lines that were taken in."""
        size = size_of(self.path)
        if size is None or size == self._read:
            return b""
        if size < self._read:
            raise W2WError(f"{self.path} became shorter while it was open. Take it from a copy.")
        if isinstance(self.path, Address):
            return self.path.read_bytes(self._read)
        with self.path.open("rb") as handle:
            handle.seek(self._read)
            return handle.read()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line to those that were read, synced to disk. Raises W2WError if it cannot; the file is then as it was.

        Call it in one's `turn`, after `new_lines`.
        """
        text, path = json.dumps(sealed(line), ensure_ascii=False).encode() + b"\n", here(self.path)
        try:
            with path.open("ab") as handle:
                handle.truncate(self._read)  # what a kill left of an unfinished line
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            if path.exists():
                os.truncate(path, self._read)
            raise W2WError(f"cannot write {path}: {error.strerror}. Nothing was added.") from error
        self._read += len(text)
        self._lines += 1

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the folder's lock, which the system drops when a process dies. Raises W2WError where none can be made."""
        folder = here(self.path, "Copy the dataset here with `w2w dataset merge`, and change the copy.").parent
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire()
        except OSError as error:
            raise W2WError(f"cannot write in {folder}: {error.strerror}. Nothing was added.") from error
        try:
            yield
        finally:
            lock.release()

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            return unsealed(value)
        except (ValueError, RecursionError) as error:
            raise W2WError(f"{self.path} is damaged at line {number} ({error}). Take it from a copy.") from error

    def _refuse_unless_torn(self, tail: bytes, number: int) -> None:
        """A kill leaves the beginning of a line; a whole line with something behind it was altered."""
        try:
            _, end = json.JSONDecoder().raw_decode(tail.decode(errors="replace"))
        except (ValueError, RecursionError):
            return
        if end < len(tail.decode(errors="replace")):
            raise W2WError(f"{self.path} is damaged at line {number} (it does not end). Take it from a copy.")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON object with a checksum over what it says."""
    return {**value, SEAL: _checksum(value)}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """What `sealed` was given. Raises ValueError if it says something else; an object without a checksum is taken as it is."""
    rest = {key: found for key, found in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _checksum(rest):
        raise ValueError("its checksum differs")
    return rest


def _checksum(value: Mapping[str, Any]) -> int:
    # Over the values, not the bytes: spaces and the order of keys say nothing. JSON turns keys into text, so go through it.
    return zlib.crc32(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode())
