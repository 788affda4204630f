"""Files in object storage, by address: `s3://bucket/key`, `gs://...`, `hf://...`, through fsspec, which only an address imports.

Protocols of storage only: fsspec has others that run code, and chains (`::`) of them. What is read is checked as a file from
a stranger is; what is written is one object, whole or absent.
"""

import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, TypeVar

from w2wpp.common.errors import Unreached, W2WError

# Each with what brings it. `memory` is fsspec's own, of one process: for trying things out.
PROTOCOLS = {"s3": "'w2wpp[storage]'", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs", "az": "adlfs"}
PROTOCOLS |= {"memory": "fsspec"}
SAME = {"gcs": "gs", "az": "abfs"}  # two names of one storage
# A Path makes one slash of two; what has one is an address only where no folder of that name is here.
ADDRESS = re.compile(r"(?P<protocol>[A-Za-z][\w.+-]+(?:::.*)?):(?P<slashes>//?)(?P<path>.*)", re.DOTALL)
PIECE = 2**22  # bytes of one request
GAP = 2**16  # bytes that are read in vain rather than ask again
AT_ONCE = 8  # requests
Given = TypeVar("Given")


@dataclass(frozen=True)
class Address:
    """An object in storage, or a folder of them, in the words of `pathlib`: nothing opens one by mistake as a path here."""

    protocol: str
    path: str  # bucket/key

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    def __truediv__(self, name: str | PurePath) -> "Address":
        return Address(self.protocol, f"{self.path}/{name if isinstance(name, str) else name.as_posix()}")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What the name ends with, such as `.safetensors`."""
        return PurePosixPath(self.name).suffix

    def size(self) -> int | None:
        """Bytes of the object; None where there is none. Raises W2WError if the storage, or the bucket, is out of reach."""
        with reached(self):
            about = _or_nothing(lambda: _filesystem(self).info(self.path))
        return int(about["size"] or 0) if about and about["type"] == "file" else None

    def is_file(self) -> bool:
        """Whether an object is there."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether objects lie below it."""
        with reached(self):
            return bool(_filesystem(self).isdir(self.path))

    def files(self) -> dict[str, int]:
        """The objects below it, by their paths from here, sorted: bytes of each."""
        with reached(self):
            found = _or_nothing(lambda: _filesystem(self).find(self.path, detail=True)) or {}
        start = f"{self.path}/"
        names = {name.lstrip("/"): about["size"] for name, about in found.items()}
        return {name.removeprefix(start): int(names[name] or 0) for name in sorted(names) if name.startswith(start)}

    def read_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """The object's bytes, or those from `start` on and before `stop`, in one request."""
        with reached(self):
            return bytes(_filesystem(self).cat_file(self.path, start=start or None, end=stop))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def read_into(self, pieces: Sequence[Any], at: int, step: int = 0) -> None:
        """Fill pieces (buffers of one size) from the bytes at `at`, `at + step`, ...: many at once, together where little lies between.

        Raises W2WError if the object ends before.
        """
        if not len(pieces):
            return
        size = memoryview(pieces[0]).nbytes
        several = max(1, PIECE // max(1, step)) if step - size <= GAP else 1
        groups = [range(first, min(first + several, len(pieces))) for first in range(0, len(pieces), several)]

        def fill(group: range) -> None:
            start = at + group[0] * step
            got = self.read_bytes(start, start + (len(group) - 1) * step + size)
            for place, i in enumerate(group):
                part = got[place * step : place * step + size]
                if len(part) != size:
                    raise W2WError(f"{self} became shorter while it was read.")
                memoryview(pieces[i]).cast("B")[:] = part

        at_once(fill, groups)

    def read_whole_into(self, out: Any, at: int) -> None:
        """Fill a buffer from the bytes at `at`, in many requests at once. Raises W2WError if the object ends before."""
        left = memoryview(out).cast("B")
        full = len(left) // PIECE
        self.read_into([left[i * PIECE : (i + 1) * PIECE] for i in range(full)], at, PIECE)
        if len(left) > full * PIECE:
            self.read_into([left[full * PIECE :]], at + full * PIECE)

    def write(self, content: Path | bytes, *, new: bool = False) -> None:
        """Make the object, whole or not at all, from a file or bytes, in place of what is there.

        new: refuse where one is there, also if it came at the same moment (on a storage that can tell). Raises W2WError.
        """
        with reached(self):
            system = _filesystem(self)
            if new and system.exists(self.path):
                raise FileExistsError
            if isinstance(content, bytes):
                system.pipe_file(self.path, content, **({"mode": "create"} if new else {}))
            else:
                system.put_file(str(content), self.path)

    def remove(self) -> None:
        """Delete the object."""
        with reached(self):
            _filesystem(self).rm_file(self.path)


Anywhere = str | Path | Address


def place(source: Anywhere) -> Path | Address:
    """What a path or an address names. Raises W2WError for an address that is no storage's, or a chain of them."""
    if isinstance(source, Address):
        return source
    found = ADDRESS.fullmatch(str(source))
    if not found or (found["slashes"] == "/" and Path(f"{found['protocol']}:").exists()):
        return Path(source)
    protocol, path = found["protocol"].lower(), found["path"].strip("/")
    if protocol not in PROTOCOLS or "::" in path:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise W2WError(f"{protocol}://{path} is no address that w2w reads or writes. Give a path, or an address of {known}.")
    if not path or {"..", "."} & set(path.split("/")):
        raise W2WError(f"{protocol}://{path} names no object. Give a bucket and a name, such as {protocol}://bucket/name.")
    return Address(protocol, path)


def here(source: Anywhere, todo: str = "Copy it here, or choose another place.") -> Path:
    """A path on this machine. Raises W2WError with `todo` for an address."""
    found = place(source)
    if isinstance(found, Address):
        raise W2WError(f"{found} is an address; a path on this machine was expected. {todo}")
    return found


def size_of(found: Path | Address) -> int | None:
    """Bytes of a file or an object; None where there is none."""
    if isinstance(found, Address):
        return found.size()
    return found.stat().st_size if found.is_file() else None


@contextmanager
def on_disk(source: Anywhere) -> Iterator[Path]:
    """Where a file lies on this machine: itself, or for an address a copy that goes with the block. What is mapped stays mapped."""
    found = place(source)
    if isinstance(found, Path):
        yield found
        return
    with TemporaryDirectory(prefix="w2w-") as folder:
        copy = Path(folder) / "copy"
        with reached(found):
            _filesystem(found).get_file(found.path, str(copy))
        yield copy


MARK = ".w2w-unfinished.json"  # below an address: what a run is writing there, or was when it was killed


def fill(folder: Address, what: Mapping[str, Any], files: Iterable[tuple[str, Path | bytes]]) -> None:
    """Write files below an address, in order, each whole; readers look for the last one first, so it makes all of them whole.

    what: says of what they are made, so that a run that was killed is gone on with: tensors of the same size stay. Raises
    W2WError if anything else lies there, or another run began there.
    """
    there, mark, told = folder.files(), folder / MARK, json.dumps(dict(what), sort_keys=True).encode()
    if MARK in there:
        if mark.read_bytes() != told:
            raise W2WError(f"{folder} is being written by another run, or was when that was killed. Choose another, or delete it.")
    elif there:
        raise W2WError(f"{folder} is not empty: it holds {next(iter(there))}. Choose another place; nothing is replaced there.")
    else:
        mark.write(told, new=True)
    for name, content in files:
        if not (isinstance(content, Path) and name.endswith(".safetensors") and there.get(name) == content.stat().st_size):
            (folder / name).write(content)
    mark.remove()


def at_once(work: Callable[[Given], None], given: Iterable[Given]) -> None:
    """Do the same with all that is given, some at a time; the first error ends it."""
    todo = list(given)
    if len(todo) == 1:
        work(todo[0])
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for done in [pool.submit(work, one) for one in todo]:
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # without it, the rest would be done before the error is told


@contextmanager
def reached(address: Address) -> Iterator[None]:
    """Raise whatever goes wrong with a storage as W2WError, in one line that says what to do: Unreached unless it said what is there."""
    try:
        yield
    except W2WError:
        raise
    except Exception as error:  # fsspec's, its protocol's, its HTTP library's, and the system's
        kind = W2WError if isinstance(error, FileNotFoundError | FileExistsError) else Unreached
        raise kind(f"{address} {_why(address, error)}") from error


def _why(address: Address, error: Exception) -> str:
    kind, said = type(error).__name__, " ".join(str(error).split())[:200].rstrip(".")
    if isinstance(error, ImportError):
        return f"needs pip install {PROTOCOLS[address.protocol]} ({said})."
    if isinstance(error, FileNotFoundError):
        return "is not there" + (f" ({said})." if "bucket" in said.lower() else ".") + " Check the bucket and the name."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"does not fit on this machine ({error.strerror}). Free some space in {gettempdir()}, or set TMPDIR to another folder."
    if isinstance(error, FileExistsError):
        return "is there already: another run writes there, or was killed. Choose another place, or delete it."
    if "credential" in f"{kind} {said}".lower():
        return f"needs credentials ({said}). Set them as {address.protocol}'s own tools expect them."
    if isinstance(error, PermissionError):
        return f"is refused with your credentials ({said or kind}). Check them, and what they may do there."
    return f"is out of reach ({said or kind}). Check the address and the network, and try again."


def _or_nothing(ask: Callable[[], Any]) -> Any:
    """What a storage answers; None where the object is not there. Raises FileNotFoundError where the bucket is not."""
    try:
        return ask()
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error).lower():
            raise
        return None


def _filesystem(address: Address) -> Any:
    """fsspec's for this protocol, one for each process; it asks the storage every time, as others write there too."""
    import fsspec

    return fsspec.filesystem(address.protocol, use_listings_cache=False)
