"""A folder of results appears whole, never mixes with what lies there, and replaces only what w2w made itself."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from shutil import rmtree

from w2wpp.common.errors import W2WError
from w2wpp.common.files import ASIDE, read_json, write_json
from w2wpp.common.locks import LOCK, owned, sweep
from w2wpp.common.storage import here

RECORD = ".w2w.json"  # in a folder of results: which files w2w made there, and whether all of them are there


@contextmanager
def results_in(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder aside to fill; on success what is in it goes to the folder `out`, on any failure it is removed.

    `out` may be new, empty, or hold what a run that was killed left of its results. overwrite: it may also hold results of
    earlier runs, which are then replaced; files that w2w did not make, or that changed since, stay as they are.
    Raises W2WError if it holds anything else, or a file that stays is in the way of a new one.
    """
    out = here(out)
    if out.exists() and not out.is_dir():
        raise W2WError(f"{out} is a file; the result is a folder. Choose another --out.")
    with owned(out):
        sweep(out, ASIDE)
        mine, whole = _recorded(out)
        others = sorted(set(_files(out)) - mine.keys())
        if not overwrite and (others or (whole and mine)):
            what = f"{out} is not empty: it holds {[*others, *mine][0]}"
            raise W2WError(f"{what}. Choose another --out, or --overwrite to replace what w2w made there.")
        aside = Path(tempfile.mkdtemp(prefix=f".new{ASIDE}", dir=out))
        try:
            yield aside
            _place(aside, out, mine, others)
        except OSError as error:
            raise W2WError(f"cannot write {out}: {error.strerror or error}. Run it again, or choose another place.") from error
        finally:
            rmtree(aside, ignore_errors=True)


def resumable(out: str | Path, sign: str) -> None:
    """Raise W2WError if a folder to go on with holds something, but not `sign`: the file or folder that its verb makes first."""
    out = Path(out)
    others = [] if not out.is_dir() or (out / sign).exists() else sorted(path.name for path in out.iterdir() if path.name != LOCK)
    if others:
        raise W2WError(f"{out} holds {others[0]} and no {sign}, so this command did not make it. Choose another --out.")


def _place(aside: Path, out: Path, mine: dict[str, str], others: list[str]) -> None:
    """Move new files from aside to `out`, in place of those that w2w made before. A kill leaves a record that says how far."""
    new = {name: digest(aside / name) for name in _files(aside)}
    places = {place for name in new for place in _with_folders(name)}
    if blocked := sorted(name for name in others if name in places or not new.keys().isdisjoint(_with_folders(name))):
        raise W2WError(f"{out / blocked[0]} was not made by w2w, or changed since. Move it away, or choose another --out.")
    write_json(out / RECORD, {"whole": False, "files": {**mine, **new}})
    for name in mine:
        (out / name).unlink(missing_ok=True)
    for folder in sorted((path for path in out.rglob("*") if path.is_dir() and not path.is_relative_to(aside)), reverse=True):
        with suppress(OSError):  # others' files are in it
            folder.rmdir()
    for name in new:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / name, out / name)
    write_json(out / RECORD, {"whole": True, "files": new})


def _recorded(out: Path) -> tuple[dict[str, str], bool]:
    """The files of `out` that are as w2w made them, by their checksums, and whether the run that made them ended well."""
    if not (out / RECORD).is_file():
        return {}, True
    record = read_json(out / RECORD)
    try:
        told, whole = {str(name): str(sum_) for name, sum_ in record["files"].items()}, bool(record["whole"])
    except (KeyError, TypeError, AttributeError) as error:
        raise W2WError(f"{out / RECORD} is damaged ({error!r}). Choose another --out.") from error
    there = set(_files(out))  # and no path of a record that leads elsewhere
    return {name: told[name] for name in told if name in there and digest(out / name) == told[name]}, whole


def _files(folder: Path) -> list[str]:
    """Every file below a folder by its path there, but for ours: the lock, the record, what is written aside."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name not in (LOCK, RECORD) and ASIDE not in name.split("/")[0]]


def _with_folders(name: str) -> list[str]:
    """A file's path below a folder, and those of the folders around it: a link or a file there leads elsewhere, or bars the way."""
    return [name, *(str(folder) for folder in PurePosixPath(name).parents if folder.name)]


def digest(path: Path) -> str:
    """The checksum of a file; "" for a link or anything else that is no plain file."""
    if path.is_symlink() or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()
