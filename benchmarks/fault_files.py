"""Files and names from elsewhere, made hostile on purpose: pictures, names, tables of labels, and folders of killed runs.

Each function raises AssertionError where a promise of SECURITY.md does not hold, and returns how much was tried. `faults.py`
runs all of it.
"""

import csv
import io
import random
import signal
import struct
import time
import zipfile
import zlib
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_text
from w2wpp.common.names import file_name
from w2wpp.common.places import results_in
from w2wpp.common.tables import rows_by
from w2wpp.photos.decoding import FORMATS, decode
from w2wpp.photos.listing import find_photos

FORK = get_context("fork")
PARTS = ["..", ".", "/", "\\", "a", "Ada", "NUL", "con.txt", "%2F", "\0", "\n", "\u202e", "\ud800", "é", "e\u0301", " ", "~", ":", "x" * 90]


def bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 2.5 thousand million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def postscript(mark: Path) -> bytes:
    """A program that would leave a file behind if Ghostscript ran it."""
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({mark}) (w) file closefile\nshowpage\n".encode()


def read_odd_pictures(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """Damage pictures of every format n times, and give others' formats: each is read, or refused in one line, and runs nothing."""
    draw, counts, mark = random.Random(seed), {"pictures": 0, "refused": 0, "read": 0}, folder / "ran"
    pixels = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    good = []
    for form in FORMATS:
        file = io.BytesIO()
        PILImage.fromarray(pixels).save(file, form)
        good.append(file.getvalue())
    heads = [b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", b"DDS " + struct.pack("<I", 124), b"BLP2", b"%PDF-1.4\n", b"P6 9 9 255\n", b"SIMPLE  ="]
    others = [postscript(mark), bomb(), b"", *heads]
    for i in range(n):
        if i % 4 == 0:
            content = draw.choice(others) + draw.randbytes(draw.randrange(300))
        else:
            whole = draw.choice(good)
            place = draw.randrange(len(whole))
            content = whole[:place] + (b"" if i % 4 == 1 else draw.randbytes(draw.randrange(1, 9)) + whole[place + 1 :])
        counts["pictures"] += 1
        try:
            assert decode(content, "photo.jpg").dtype == np.uint8
            counts["read"] += 1
        except W2WError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
    assert not mark.exists(), "code of a picture was run"
    return counts


def name_files(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """Make n hostile names, of ids and of members of zips: each is a file below its folder, or refused."""
    draw, counts, seen = random.Random(seed), {"names": n, "refused": 0, "members": 0}, {}
    for _ in range(n):
        name = "".join(draw.choice(PARTS) for _ in range(draw.randrange(5)))
        try:
            file = file_name(name)
        except W2WError:
            counts["refused"] += 1
            continue
        assert Path(file).name == file and not set(file) & set("/\\:\0\n") and not file.startswith("."), (name, file)
        assert seen.setdefault(file, name) == name, f"{name!r} and {seen[file]!r} are one file"
    for i in range(n // 20):
        path = folder / "photos.zip"
        with zipfile.ZipFile(path, "w") as archive:
            members = {"/".join(draw.choices(PARTS, k=draw.randrange(1, 4))) + ".jpg" for _ in range(9)}
            for member in sorted(members, key=repr):
                archive.writestr(member.encode(errors="replace").decode().replace("\0", ""), b"x")
                counts["members"] += 1
        try:
            inside = [photo.file() for photo in find_photos(path).photos]
        except W2WError:
            continue
        assert all((folder / "out" / file).resolve().is_relative_to((folder / "out").resolve()) for file in inside), i
    return counts


def read_odd_labels(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """Damage a table of labels n times: what is read has each line once and whole, or the line is named and refused."""
    draw, counts = random.Random(seed), {"tables": n, "refused": 0, "read": 0}
    lines = ["file,split,age", *(f"Ada/{i}.jpg,train,{i}" for i in range(5))]
    for _ in range(n):
        altered = list(lines)
        for _ in range(draw.randrange(1, 3)):
            place = draw.randrange(len(altered))
            altered[place] = draw.choice(
                [
                    altered[place] + ",more",
                    altered[place].rsplit(",", 1)[0],
                    altered[0],
                    draw.choice(lines),
                    f'"{altered[place]}',
                    "\ufeff" + altered[place],
                    "",
                    "\0",
                ]
            )
        (folder / "labels.csv").write_text("\n".join(altered) + "\n", encoding="utf-8")
        try:
            found = rows_by(folder / "labels.csv", "file")
        except W2WError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
        else:
            told = [cells for cells in csv.reader(line.removeprefix("\ufeff") for line in altered) if cells][1:]
            assert len(found) == len(told) and all(
                len(row.cells) == 2 or len(found) == 0 or altered[0] != lines[0] for row in found.values()
            )
            counts["read"] += 1
    return counts


def fill(out: Path, files: int) -> None:
    """Results of so many files, written slowly."""
    with results_in(out) as aside:
        for i in range(files):
            write_text(aside / f"{i}.txt", str(i))


def kill_results(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill runs that write a folder of results, at random moments: the next run needs no option, and all of its files are there."""
    draw, counts = random.Random(seed), {"kills": 0, "ended_before": 0, "half": 0}
    for i in range(kills):
        out = folder / f"out-{i}"
        process = FORK.Process(target=fill, args=(out, 12))
        process.start()
        time.sleep(draw.uniform(0, 0.08))
        process.kill()
        process.join()
        counts["kills" if process.exitcode == -signal.SIGKILL else "ended_before"] += 1
        there = {path.name for path in out.glob("*.txt")}
        counts["half"] += 0 < len(there) < 12
        try:  # after a kill that came late, all may be there already, and is then not replaced unasked
            fill(out, 12)
        except W2WError:
            assert len(there) == 12
        assert {path.name for path in out.iterdir() if not path.name.startswith(".w2w")} == {f"{j}.txt" for j in range(12)}
    return counts
