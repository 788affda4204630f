"""From photos to aligned faces: a folder of `person/photo.png` and `faces.jsonl`, a line a photo.

A photo without a face, or unreadable, is listed and left out; one with several faces is listed and its most
prominent face kept. Neither ends the run. An interrupted run goes on where it stopped.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from w2wpp.errors import W2WError
from w2wpp.faces import align, default_judge
from w2wpp.files import write_text
from w2wpp.images import Image, Photo, list_photos, read_image, write_image
from w2wpp.progress import track

INDEX = "faces.jsonl"


@dataclass(frozen=True)
class AlignedFaces:
    """The aligned photos of many people, read from a folder that `align_photos` made."""

    folder: Path
    size: int
    people: dict[str, list[str]] = field(repr=False)  # person -> photo names without suffix, sorted
    labels: dict[tuple[str, str], dict[str, str]] = field(repr=False)  # (person, photo) -> labels

    @classmethod
    def open(cls, folder: str | Path) -> "AlignedFaces":
        """Read the index of a faces folder. Raises W2WError if it is none, or holds no face."""
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise W2WError(f"{folder} has no {INDEX}. Make it with `w2w faces align PHOTOS --out {folder}`.")
        people: dict[str, list[str]] = {}
        labels = {}
        size = 0
        for line in read_index(folder):
            if line["status"] not in ("ok", "several"):
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
        if person not in self.people:
            raise W2WError(f"{self.folder} has no person {person!r}; it has {len(self.people)} such as {next(iter(self.people))!r}.")
        return [read_image(self.folder / person / f"{name}.png") for name in self.people[person]]

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


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The lines of a faces folder's index; a last line cut short by a kill is left out.

    Raises W2WError if another line is no JSON.
    """
    lines = (folder / INDEX).read_text(encoding="utf-8").splitlines(keepends=True) if (folder / INDEX).is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise W2WError(f"{folder / INDEX} is damaged ({error}). Delete it and align the photos again.") from error


def read_labels(path: str | Path) -> dict[str, dict[str, str]]:
    """Read a csv with a column `file` (person/photo.jpg) and any others -> {file: {column: value}}."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise W2WError(f"cannot read labels {path}: {error}.") from error
    if not rows or "file" not in rows[0]:
        raise W2WError(f"{path} has no column `file`, which says whose labels a line holds: a path below the folder that is read.")
    return {row["file"]: {key: value for key, value in row.items() if key not in ("file", "identity")} for row in rows}


def align_photos(
    source: str | Path, out: str | Path, *, size: int = 64, labels: str | Path | None = None, processes: int | None = None
) -> dict[str, Any]:
    """Align every photo of a folder or zip of `person/photo.jpg` to size x size pixels; returns the counts and lists.

    Raises W2WError if the source holds no photo, or `out` holds faces of another size.
    """
    out = Path(out)
    photos = list_photos(source)
    known = read_labels(labels) if labels else {}
    done = read_index(out)
    if done and done[0]["size"] != size:
        raise W2WError(f"{out} holds faces of {done[0]['size']} pixels, not {size}. Choose another --out.")
    seen = {(line["person"], line["photo"]) for line in done}
    todo = [photo for photo in photos if (photo.person, photo.name) not in seen]
    if labels:  # labels may come, or change, after the photos were aligned
        done = [{**line, "labels": known.get(f"{line['person']}/{line['photo']}", {})} for line in done]
    write_text(out / INDEX, "".join(json.dumps(line) + "\n" for line in done))
    with (out / INDEX).open("a", encoding="utf-8") as index:
        for line in track(_align_all(todo, out, size, processes), "align", total=len(todo)):
            line["labels"] = known.get(f"{line['person']}/{line['photo']}", {})
            index.write(json.dumps(line) + "\n")
            index.flush()
    lines = read_index(out)
    counts = Counter(line["status"] for line in lines)
    listed = {
        status: [f"{ln['person']}/{ln['photo']}" for ln in lines if ln["status"] == status] for status in ("none", "several", "unreadable")
    }
    return {"photos": len(lines), "people": len({ln["person"] for ln in lines}), "size": size, "counts": dict(counts), **listed}


def _align_all(todo: list[Photo], out: Path, size: int, processes: int | None) -> Iterator[dict[str, Any]]:
    work = partial(_align_one, out=out, size=size)
    workers = min(processes or os.cpu_count() or 1, max(1, len(todo) // 32))
    if workers == 1:
        yield from map(work, todo)
        return
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(work, todo, chunksize=16)


def _align_one(photo: Photo, *, out: Path, size: int) -> dict[str, Any]:
    line: dict[str, Any] = {"person": photo.person, "photo": photo.name, "size": size}
    try:
        image = photo.read()
    except W2WError as error:
        return {**line, "status": "unreadable", "why": str(error)}
    faces = default_judge().detect(image)
    if not faces:
        return {**line, "status": "none"}
    write_image(out / photo.person / f"{Path(photo.name).stem}.png", align(image, faces[0], size))
    return {**line, "status": "ok" if len(faces) == 1 else "several"}
