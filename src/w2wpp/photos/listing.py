"""Find photos: folders or zips of `person/photo.jpg`, and what lies there that is none, which is said and not passed over."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from w2wpp.common.errors import W2WError
from w2wpp.common.names import file_name, same_file
from w2wpp.common.progress import note
from w2wpp.common.storage import Address, here, place
from w2wpp.photos.decoding import LARGEST, SUFFIXES, Image, decode, picture_bytes

# Pictures of formats that are not read here.
OTHER_PICTURES = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".jpe", ".jfif", ".psd", ".svg", ".eps", ".ico", ".tga", ".ppm", ".pgm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"),
}
READ = ", ".join(sorted(SUFFIXES))


@dataclass(frozen=True)
class Photo:
    """Where one photo of one person lies; its bytes are read only when asked for."""

    person: str
    name: str
    source: Path | Address
    member: str | None = None  # of a zip, which is a file here

    @property
    def shown(self) -> str:
        """What it is called in messages."""
        return str(self.source) if self.member is None else f"{self.source}:{self.member}"

    def bytes(self) -> bytes:
        """What the file holds. Raises W2WError naming it if it cannot be read."""
        if self.member is None:
            return picture_bytes(self.source)
        try:
            with zipfile.ZipFile(here(self.source)) as archive:
                if archive.getinfo(self.member).file_size > LARGEST:
                    raise W2WError(f"{self.shown} says it has more than {LARGEST:,} bytes. Take it out.")
                return archive.read(self.member)
        except W2WError:
            raise
        except Exception as error:  # a damaged zip raises nearly everything
            raise W2WError(f"cannot read {self.member} in {self.source}: {error or type(error).__name__}.") from error

    def read(self) -> Image:
        """The picture [h, w, 3] uint8 RGB. Raises W2WError naming the file if it is unreadable or truncated."""
        return decode(self.bytes(), self.shown)

    def file(self) -> Path:
        """Where its face goes in a folder of faces: person/photo.png, each name as `names.file_name` writes it."""
        return face_file(self.person, Path(self.name).stem)


def face_file(person: str, name: str) -> Path:
    """Where a photo's face lies in a folder of faces, by its name without suffix. Raises W2WError for a name of no file."""
    return Path(file_name(person)) / f"{file_name(name)}.png"


@dataclass(frozen=True)
class Found:
    """The photos of a source, sorted by person and name, and what lies there that is not taken for one: its path, and why."""

    photos: list[Photo]
    left_out: dict[str, str] = field(default_factory=dict)


def find_photos(source: str | Path) -> Found:
    """The photos of a folder, also at an address, or a zip of `person/photo.jpg`, at any depth.

    Who is on one is said by the folder that it lies in. Two folders of one name, such as set1/John and set2/John, are two
    people, called by their paths. Hidden files are passed over; other pictures that are not taken are listed. Raises W2WError
    if there is no photo, or if two photos of one person share a name.
    """
    root = place(source)
    members: Iterable[tuple[str, PurePosixPath]]
    if isinstance(root, Address):
        members = [(name, PurePosixPath(name)) for name in root.files()]
    elif root.is_dir():
        members = ((str(path.relative_to(root)), PurePosixPath(path.relative_to(root).as_posix())) for path in walk(root))
    elif root.is_file() and zipfile.is_zipfile(root):
        members = _members(root)
    else:
        raise W2WError(f"{root} is neither a folder nor a zip. Give one that holds person/photo.jpg.")
    taken, left_out = [], {}
    for path, inside in members:
        parts, suffix = [part for part in inside.parts if part != "/"], inside.suffix.lower()
        if not parts or any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts):
            continue
        if suffix in OTHER_PICTURES:
            left_out[path] = f"{suffix} is not read; save it as one of {READ}"
        elif suffix in SUFFIXES and ".." in parts:
            left_out[path] = "its path leaves the zip"
        elif suffix in SUFFIXES and len(parts) < 2:
            left_out[path] = "it lies in no person's folder"
        elif suffix in SUFFIXES:
            taken.append((path, parts))
    folders = {tuple(parts[:-1]) for _, parts in taken}
    for path, parts in taken:
        if any(tuple(parts[:n]) in folders for n in range(1, len(parts) - 1)):
            left_out[path] = "it lies in a folder of a person's folder"
    taken = [(path, parts) for path, parts in taken if path not in left_out]
    if not taken:
        first = next(iter(left_out.items()), None)
        others = f" ({len(left_out)} other pictures lie there, such as {first[0]}: {first[1]})" if first else ""
        raise W2WError(f"{root} holds no person/photo.jpg{others}. Put each person's photos in a folder with the person's name.")
    return Found(_photos(root, taken), left_out)


def _photos(source: Path | Address, taken: list[tuple[str, list[str]]]) -> list[Photo]:
    folders = {tuple(parts[:-1]) for _, parts in taken}
    namesakes = Counter(folder[-1] for folder in folders)
    photos = []
    for path, parts in taken:
        person = parts[-2] if namesakes[parts[-2]] == 1 else "/".join(parts[:-1])
        lies = (source / path, None) if isinstance(source, Address) or source.is_dir() else (source, path)
        photos.append(Photo(person, parts[-1], *lies))
    counts = Counter((same_file(photo.person), same_file(Path(photo.name).stem)) for photo in photos)
    for photo in photos:
        count = counts[same_file(photo.person), same_file(Path(photo.name).stem)]
        if count > 1:
            told = f"{count} photos of {photo.person} named {Path(photo.name).stem}"
            raise W2WError(f"{source} holds {told}. Give each photo of a person a name of its own.")
    return sorted(photos, key=lambda photo: (photo.person, photo.name))


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links to folders followed once each, hidden folders left out."""
    been = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in been:
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(top) / name for name in sorted(files))


def _members(source: Path) -> Iterator[tuple[str, PurePosixPath]]:
    try:
        with zipfile.ZipFile(source) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise W2WError(f"cannot read {source}: {error}. Was it cut short?") from error
    yield from ((name, PurePosixPath(name)) for name in names)


def pictures_in(path: str | Path) -> list[Path]:
    """The pictures of a folder, sorted by name; a file is itself. Raises W2WError for a folder without a picture.

    Pictures of other formats are named on stderr.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    found, others = ([p for p in files if p.suffix.lower() in suffixes] for suffixes in (SUFFIXES, OTHER_PICTURES))
    if others:
        note(f"{len(others)} pictures of {path} are left out, such as {others[0].name}: only {READ} are read.")
    if not found:
        raise W2WError(f"{path} holds no pictures ({READ}).")
    return found
