"""Files that appear whole or not at all: write aside, fsync, rename; at an address of a storage, one object."""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.storage import SAME, Address, Anywhere, here, on_disk, place

ASIDE = ".w2w-"  # in the name of what is written aside; a kill may leave such a file or folder


@contextmanager
def replacing(path: Anywhere) -> Iterator[Path]:
    """Yield a path aside to write to; on success it replaces `path`, on any failure it is removed.

    Raises W2WError where the file cannot be written (a full disk, no permission, a storage out of reach).
    """
    path = place(path)
    if isinstance(path, Address):
        with tempfile.TemporaryDirectory(prefix="w2w-") as folder:
            aside = Path(folder) / "aside"
            aside.touch()
            yield aside
            path.write(aside)
        return
    try:
        _plain(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_aside(path), dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise W2WError(f"cannot write {path}: {error.strerror}. Choose another place or free some space.") from error
    aside = Path(name)
    try:
        yield aside
        # mkstemp makes files private; a result should be as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened to be synced
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        raise W2WError(f"cannot write {path}: {error.strerror or error}. Nothing was changed.") from error
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


@contextmanager
def new_folder(path: Anywhere) -> Iterator[Path]:
    """Yield a folder aside to fill; on success it becomes `path`, on any failure it is removed.

    Raises W2WError if `path` holds something already, or cannot be made.
    """
    path = here(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise W2WError(f"{path} is there already, and not empty. Choose another place.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=_aside(path), dir=path.parent))
    except OSError as error:
        raise W2WError(f"cannot write {path}: {error.strerror}. Choose another place or free some space.") from error
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o777 & ~umask)
        os.rename(aside, path)  # over an empty folder, too
    except OSError as error:
        raise W2WError(f"cannot write {path}: {error.strerror or error}. Nothing was changed.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path | Address) -> str:
    """How the name of what is written aside begins: hidden, known as ours (`ASIDE`), and never too long for a file system."""
    return f".{path.name.encode()[:100].decode(errors='ignore')}{ASIDE}"


def apart(out: Anywhere, *inputs: Anywhere | None, option: str = "--out") -> None:
    """Raise W2WError if `out` is, contains or lies in an input, links resolved: a verb could overwrite what it reads.

    Inputs that are not there, such as the name of a model on a hub, do not count. option: what names `out`.
    """
    goal = place(out)
    result = _resolved(goal)
    for given in inputs:
        if given is None:
            continue
        read = place(given)
        source, away = _resolved(read), isinstance(read, Address)
        if away != isinstance(goal, Address):
            continue
        if result == source or (result.exists() and source.exists() and result.samefile(source)):
            raise W2WError(f"{option} {goal} is the input {read} itself, which would be overwritten. Choose another {option}.")
        if not source.exists() and not away:
            continue
        if result.is_relative_to(source):
            raise W2WError(f"{option} {goal} lies in {read}, whose files are to be read. Choose another {option}.")
        if source.is_relative_to(result):
            raise W2WError(f"{option} {goal} contains the input {read}. Choose another {option}.")


def _resolved(found: Path | Address) -> Path:
    """With links resolved; an address as a path of its own, to compare with another."""
    return Path(f"/{SAME.get(found.protocol, found.protocol)}:", found.path) if isinstance(found, Address) else found.resolve()


def replaceable(path: Anywhere, overwrite: bool, option: str = "--out") -> None:
    """Raise W2WError where a file cannot be written (a folder is there, or a file in place of one), or is there and may not be replaced.

    overwrite: whether it may be. option: what names it.
    """
    there = place(path)
    if there.is_dir():
        raise W2WError(f"{option} {there} is a folder, and the result is one file. Give its name too.")
    if isinstance(there, Path):
        _plain(there)
        if blocked := next((parent for parent in there.parents if os.path.lexists(parent) and not parent.is_dir()), None):
            raise W2WError(f"{option} {there} cannot be there: {blocked} is no folder. Choose another {option}.")
    if (os.path.lexists(there) if isinstance(there, Path) else there.is_file()) and not overwrite:
        raise W2WError(f"{option} {there} is there already. Choose another {option}, or give --overwrite to replace it.")


def _plain(path: Path) -> None:
    """Raise W2WError for a device, pipe or socket, which a file would take the place of."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise W2WError(f"{path} is a device, pipe or socket, and no file. Choose another place.")


def write_text(path: Anywhere, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Anywhere, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Anywhere) -> Any:
    """Read a JSON file. Raises W2WError naming the path if it is missing or not JSON."""
    try:
        return json.loads(place(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise W2WError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits, or brackets without end
        raise W2WError(f"{path} is not readable JSON ({error}). Was it cut short?") from error


def write_tensors(path: Anywhere, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors to `path`, whole or not at all."""
    path = place(path)
    with replacing(path) as aside, tempfile.TemporaryDirectory(prefix=_aside(path), dir=aside.parent) as own:
        whole = Path(own) / "tensors"  # safetensors writes aside too, under a name that nobody would know again after a kill
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, whole, metadata)
        except Exception as error:
            # safetensors reports a full disk as its own SafetensorError.
            raise W2WError(f"cannot write {path}: {error}. Nothing was changed.") from error
        os.replace(whole, aside)


def write_checked(path: Anywhere, tensors: dict[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and a header as safetensors to `path`, whole or not at all, with a checksum of both."""
    write_tensors(path, tensors, {**about, "checksum": checksum(tensors, about)})


def read_checked(path: Anywhere, what: str, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, mapped from the file, and the header of what `write_checked` wrote; `what` it is, for errors.

    Raises W2WError if the file is cut short, if a number or the header was altered since it was written with a checksum, or if a
    number is NaN or infinity.
    """
    try:
        with on_disk(path) as file_here, safe_open(file_here, "pt", device=str(device)) as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise W2WError(f"cannot read {what} {path}: {error}. Was it cut short?") from error
    written = about.pop("checksum", None)  # files of early versions have none
    if written is not None and written != checksum(tensors, about):
        raise W2WError(f"{what} {path} was altered: its checksum differs. Take it from a copy, or make it again.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not all(torch.isfinite(edge) for edge in torch.aminmax(tensor)):
            raise W2WError(f"{what} {path} holds NaN or infinity in {name!r}. Take it from a copy, or make it again.")
    return tensors, about


def checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Of every number and its name, and of what the header says."""
    found = zlib.crc32(json.dumps(dict(about), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        shape = f"{name} {tensor.dtype} {list(tensor.shape)}"
        found = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(shape.encode(), found))
    return str(found)
