"""A folder belongs to the run that writes in it until that run ends; the lock dies with its process."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from w2wpp.common.errors import W2WError
from w2wpp.common.storage import Anywhere, here

LOCK = ".w2w.lock"  # in the folder; it stays there, empty, as long as anything else does
_held: dict[tuple[int, str], int] = {}  # by process and folder: the thread that owns it, so that its own calls may nest


@contextmanager
def owned(folder: Anywhere) -> Iterator[None]:
    """Own a folder, made if need be, for as long as the block runs; blocks of one thread nest.

    Raises W2WError if another run owns it, or no lock can be made there.
    """
    folder = here(folder)
    key = (os.getpid(), os.path.realpath(folder))
    if _held.get(key) == threading.get_ident():
        yield
        return
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise W2WError(f"another run is writing in {folder}. Wait until it ends, or choose another --out.") from error
    except (OSError, NotImplementedError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise W2WError(f"cannot write in {folder}: {reason}. Choose another place.") from error
    _held[key] = threading.get_ident()
    try:
        yield
    finally:
        del _held[key]
        with suppress(OSError):  # the folder may be gone
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it: leave nothing
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


def sweep(folder: Path, ending: str) -> None:
    """Delete what killed runs left aside below a folder that one owns: hidden entries with `ending` in their names.

    Folders in it that have a lock of their own are left alone: another run may write there.
    """
    for place, folders, files in os.walk(folder):
        if LOCK in files and Path(place) != folder:
            folders.clear()
            continue
        for name in [name for name in (*folders, *files) if name.startswith(".") and ending in name]:
            path = Path(place) / name
            if name in folders and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                folders.remove(name)
            else:
                path.unlink(missing_ok=True)
