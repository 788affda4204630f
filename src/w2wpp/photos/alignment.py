"""From photos to aligned faces: a folder of `person/photo.png` and `faces.jsonl`, one line per photo.

A photo without a face, or unreadable for whatever reason, is listed and left out; one with several faces is listed and its
most prominent face kept. Neither ends the run. An interrupted run resumes where it stopped: a photo's line holds the
checksum of its bytes, so that one that was replaced is seen.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from w2wpp.common.errors import Unreached, W2WError
from w2wpp.common.files import apart, write_text
from w2wpp.common.locks import owned
from w2wpp.common.processes import in_processes
from w2wpp.common.progress import track
from w2wpp.common.storage import Address, here, place
from w2wpp.common.tables import rows_by
from w2wpp.photos.decoding import decode
from w2wpp.photos.faces import align, default_recogniser
from w2wpp.photos.images import Image, read_image, write_image
from w2wpp.photos.listing import Found, Photo, face_file, find_photos

INDEX = "faces.jsonl"
FIELDS = {"person": str, "photo": str, "size": int, "status": str}  # of each line
FACE = ("ok", "several")  # the states of a photo whose face is there


@dataclass(frozen=True)
class AlignedFaces:
    """The aligned photos of many people, read from a folder that `align_photos` made."""

    folder: Path | Address
    size: int
    people: dict[str, list[str]] = field(repr=False)  # person -> photo names without suffix, sorted
    labels: dict[tuple[str, str], dict[str, str]] = field(repr=False)  # (person, photo) -> labels

    @classmethod
    def load(cls, folder: str | Path) -> "AlignedFaces":
        """Read the index of a faces folder, also at an address of a storage. Raises W2WError if it is none, or holds no face."""
        return cls._of_index(place(folder))

    @classmethod
    def _of_index(cls, folder: Path | Address) -> "AlignedFaces":
        if not (folder / INDEX).is_file():
            raise W2WError(f"{folder} has no {INDEX}. Make it with `w2w faces align PHOTOS --out {folder}`.")
        people: dict[str, list[str]] = {}
        labels = {}
        size = 0
        for line in read_index(folder):
            if line["status"] not in FACE:
                continue
            name = Path(line["photo"]).stem
            people.setdefault(line["person"], []).append(name)
            labels[line["person"], name] = line.get("labels", {})
            size = line["size"]
        if not people:
            raise W2WError(f"{folder} holds no face: none was found in its photos.")
        return cls(folder, size, {person: sorted(people[person]) for person in sorted(people)}, labels)

    def photos(self, person: str) -> list[Image]:
        """The aligned photos of a person, [size, size, 3] uint8 each, in the order of their names."""
        return [read_image(file) for file in self.files(person)]

    def files(self, person: str) -> list[Path | Address]:
        """Where the aligned photos of a person lie, in the order of their names. Raises W2WError if there is no such person."""
        if person not in self.people:
            raise W2WError(f"{self.folder} has no person {person!r}; it has {len(self.people)} such as {next(iter(self.people))!r}.")
        return [self.folder / face_file(person, name) for name in self.people[person]]

    def split(self, person: str) -> str:
        """The split that a person's labels name, or "" without labels."""
        return self.labels[person, self.people[person][0]].get("split", "")

    def of_split(self, split: str) -> list[str]:
        """The people of one split, sorted. Raises W2WError if there is none."""
        found = [person for person in self.people if self.split(person) == split]
        if not found:
            splits = sorted({self.split(person) for person in self.people})
            raise W2WError(f"{self.folder} has nobody in split {split!r}; its splits are {splits}. Align with --labels.")
        return found

    def choose(self, split: str = "", n: int | None = None, *, most_photos: bool = False) -> list[str]:
        """The people of a split, of all splits if it is "", in the order of their names; at most `n` of them.

        most_photos: those with the most photos first. Raises W2WError for a split of nobody.
        """
        found = self.of_split(split) if split else list(self.people)
        if most_photos:
            found = sorted(found, key=lambda person: -len(self.people[person]))
        return found[:n]


def read_index(folder: Path | Address) -> list[dict[str, Any]]:
    """The lines of a faces folder's index; a last line cut short by a kill is left out.

    Raises W2WError if another line is no JSON, or says nothing of a photo.
    """
    try:
        path = folder / INDEX
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        index = [json.loads(line) for line in lines if line.endswith("\n")]
        for line in index:
            if not all(isinstance(line[key], kind) for key, kind in FIELDS.items()):
                raise ValueError(f"a line says {str(line)[:80]}")
        return index
    except (ValueError, KeyError, TypeError) as error:
        raise W2WError(f"{folder / INDEX} is damaged ({error}). Delete it and align the photos again.") from error


def align_photos(
    source: str | Path, out: str | Path, *, size: int = 64, labels: str | Path | None = None, processes: int | None = None
) -> dict[str, Any]:
    """Align every photo of a folder or zip of `person/photo.jpg` to size x size pixels; returns the counts and lists.

    Faces that `out` holds already are kept where the photo is the same, byte by byte; those of photos that changed are made
    again (`renewed`), those of photos that are gone are taken out (`removed`).
    Raises W2WError if the source holds no photo, if `out` holds faces of another size or of other photos only, or for labels
    that `labels_of` refuses; Unreached if the storage where the photos lie stops answering.
    """
    out = here(out)
    apart(out, source, labels)
    found = find_photos(source)
    known = labels_of(labels, found) if labels else None
    with owned(out):
        done = _kept(read_index(out), out, found, size)
        todo = [photo for photo in found.photos if (photo.person, photo.name) not in done.lines]
        kept = list(done.lines.values())
        if known is not None:  # labels may come, or change, after the photos were aligned
            kept = [{**line, "labels": known.get((line["person"], line["photo"]), {})} for line in kept]
        write_text(out / INDEX, "".join(json.dumps(line) + "\n" for line in kept))
        for file in done.stale:  # behind the index, which no longer names them
            file.unlink(missing_ok=True)
        made = in_processes(partial(_align_one, out=out, size=size), todo, "photos", processes)
        with (out / INDEX).open("a", encoding="utf-8") as index:
            for line in track(made, "align", "photos", total=len(todo)):
                line["labels"] = (known or {}).get((line["person"], line["photo"]), {})
                index.write(json.dumps(line) + "\n")
                index.flush()
        lines = read_index(out)
    return _summary(lines, found, done, size)


def _summary(lines: list[dict[str, Any]], found: Found, done: "_Done", size: int) -> dict[str, Any]:
    counts = Counter(line["status"] for line in lines) + Counter({"left_out": len(found.left_out)})
    listed = {
        status: sorted(f"{ln['person']}/{ln['photo']}" for ln in lines if ln["status"] == status)
        for status in ("none", "several", "unreadable")
    }
    changed = {name: paths for name, paths in (("renewed", done.renewed), ("removed", done.removed)) if paths}
    about = {"photos": len(lines), "people": len({ln["person"] for ln in lines}), "size": size}
    return {**about, "counts": dict(counts), **listed, **changed, **({"left_out": found.left_out} if found.left_out else {})}


@dataclass(frozen=True)
class _Done:
    """What a faces folder holds already: the lines to keep, by person and photo, and what became of the others."""

    lines: dict[tuple[str, str], dict[str, Any]]
    renewed: list[str]  # photos that changed since
    removed: list[str]  # photos that are gone
    stale: list[Path]  # faces of those


def _kept(index: list[dict[str, Any]], out: Path, found: Found, size: int) -> _Done:
    """Which lines of an index still hold: their photo is there, with the bytes that it had, and so is its face.

    Raises W2WError if the faces are of another size, or none of the photos is there.
    """
    if index and index[0]["size"] != size:
        raise W2WError(f"{out} holds faces of {index[0]['size']} pixels, not {size}. Choose another --out.")
    photos = {(photo.person, photo.name): photo for photo in found.photos}
    lines = {(line["person"], line["photo"]): line for line in index}
    if lines and not lines.keys() & photos.keys():
        first = "/".join(next(iter(lines)))
        raise W2WError(f"{out} holds faces of other photos, such as {first}, which is not among these. Choose another --out.")
    kept, stale = {}, []
    renewed, removed = list[str](), list[str]()
    for key, line in lines.items():
        there = line["status"] in FACE
        if key in photos and line.get("sha256") == _digest(photos[key]):
            if not there or (out / photos[key].file()).is_file():
                kept[key] = line
            continue
        (renewed if key in photos else removed).append("/".join(key))
        if there:
            stale.append(out / face_file(line["person"], Path(line["photo"]).stem))
    return _Done(kept, renewed, removed, stale)


def _digest(photo: Photo) -> str:
    """Which bytes a photo has; "" where they cannot be read. Raises Unreached if the storage does not say."""
    try:
        return hashlib.sha256(photo.bytes()).hexdigest()
    except Unreached:
        raise
    except W2WError:
        return ""


def labels_of(path: str | Path, found: Found) -> dict[tuple[str, str], dict[str, str]]:
    """Read a csv with a column `file` (person/photo.jpg) and any others -> {(person, photo): {column: value}}.

    Raises W2WError naming the line for one that names no photo, a photo named before, or a person in a second split.
    """
    photos = {f"{photo.person}/{photo.name}": photo for photo in found.photos}
    labels: dict[tuple[str, str], dict[str, str]] = {}
    splits: dict[str, tuple[str, int]] = {}
    for file, row in rows_by(path, "file").items():
        if file in found.left_out:
            continue
        if file not in photos:
            raise W2WError(f"line {row.line} of {path} names {file}, which is no photo; {next(iter(photos))} is one. Mend the line.")
        person = photos[file].person
        split, first = splits.setdefault(person, (row.cells.get("split", ""), row.line))
        if row.cells.get("split", "") != split:
            told = f"line {row.line} of {path} puts {person} in split {row.cells['split']!r}; line {first} says {split!r}"
            raise W2WError(f"{told}. All photos of a person belong in one split.")
        labels[person, photos[file].name] = {key: value for key, value in row.cells.items() if key != "identity"}
    return labels


def _align_one(photo: Photo, *, out: Path, size: int) -> dict[str, Any]:
    line: dict[str, Any] = {"person": photo.person, "photo": photo.name, "size": size, "sha256": ""}
    try:
        data = photo.bytes()
        line["sha256"] = hashlib.sha256(data).hexdigest()
        file = photo.file()
        image = decode(data, photo.shown)
        faces = default_recogniser().detect(image)
        aligned = align(image, faces[0], size) if faces else None
    except Unreached:  # all others would be out of reach, too
        raise
    except W2WError as error:
        return {**line, "status": "unreadable", "why": str(error)}
    except (cv2.error, ValueError, ArithmeticError, MemoryError) as error:  # a picture of one pixel, or of a hundred million
        return {**line, "status": "unreadable", "why": f"no face can be looked for in {photo.shown}: {' '.join(str(error).split())[:200]}"}
    if aligned is None:
        return {**line, "status": "none"}
    write_image(out / file, aligned)
    return {**line, "status": "ok" if len(faces) == 1 else "several"}
