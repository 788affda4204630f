"""Pictures in: named decoders only, every kind of pixel read right, and what cannot be read listed, counted and left out."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import PngImagePlugin
from skimage import data

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.inversion.photo import ready_mask
from w2wpp.photos.alignment import AlignedFaces, align_photos
from w2wpp.photos.decoding import decode, picture_bytes
from w2wpp.photos.images import read_folder, write_image
from w2wpp.photos.listing import find_photos

W2w = Callable[..., Ended]
GHOST = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/w2w-ran) (w) file closefile\nshowpage\n"


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    """A picture file of these pixels."""
    picture, file = PILImage.fromarray(pixels), io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def odd_pictures() -> dict[str, bytes]:
    """Files that are no readable picture, whatever they are called."""
    square = np.zeros((40, 40, 3), np.uint8)
    png, jpeg = encoded(square), encoded(square, "JPEG")
    head = png[:8]
    return {
        "empty": b"",
        "text": b"not a picture",
        "postscript": GHOST,
        "pdf": b"%PDF-1.4\n" + GHOST,
        "cut png": png[: len(png) // 2],
        "cut jpeg": jpeg[:200],
        "bomb": head + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)) + png[33:],
        "no pixels": head + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)) + png[33:],
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
        "dds": b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44) + struct.pack("<8I", 32, 4, 0x30315844, 0, 0, 0, 0, 0),
        "blp": b"BLP2" + bytes(160),
        "xbm": b"#define x_width 4\n#define x_height 4\nstatic char x_bits[] = {0};",
        "text of a png as large as memory": head + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))) + png[8:],
        "float tiff": encoded(np.ones((4, 4), np.float32), "TIFF"),
    }


@pytest.mark.parametrize("kind", odd_pictures())
def test_a_file_that_is_no_picture_is_one_clear_line_and_runs_nothing(kind: str) -> None:
    Path("/tmp/w2w-ran").unlink(missing_ok=True)
    with pytest.raises(W2WError, match=r"x\.jpg"):
        decode(odd_pictures()[kind], "x.jpg")
    assert not Path("/tmp/w2w-ran").exists()


@settings(max_examples=50)
@given(st.binary(max_size=60), st.integers(0, 10**6), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
@example(b"", 0, "TIFF")
def test_a_damaged_picture_is_read_or_refused_and_never_anything_else(damage: bytes, place: int, form: str) -> None:
    good = encoded(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3), form)
    place %= len(good)
    try:
        assert decode(good[:place] + damage + good[place + len(damage) :], "x").ndim == 3
    except W2WError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), struct.error("short"), KeyError(3), ZeroDivisionError()])
def test_whatever_a_decoder_raises_is_a_picture_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(W2WError, match="not a readable picture"):
        decode(encoded(np.zeros((2, 2, 3), np.uint8)), "x")


def test_every_kind_of_pixel_is_read_right() -> None:
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0], colour[..., 1] = 200, 90
    grey = np.full((8, 8), 120, np.uint8)
    deep = (grey.astype(np.uint16) * 257).astype(np.uint16)
    clear = np.concatenate([colour, np.full((8, 8, 1), 255, np.uint8)], 2)
    clear[:, :4, 3] = 0
    palette = np.asarray(PILImage.fromarray(colour).quantize(4).convert("RGB"))
    file = io.BytesIO()
    PILImage.fromarray(colour).quantize(4).save(file, "PNG")
    assert np.array_equal(decode(file.getvalue(), "x"), palette)
    assert np.array_equal(decode(encoded(grey), "x"), np.repeat(grey[..., None], 3, 2))
    for form in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(deep, form), "x"), np.repeat(grey[..., None], 3, 2)), form
    assert np.abs(decode(encoded(colour, "JPEG", mode="CMYK", quality=95), "x").astype(int) - colour).max() < 12
    assert np.array_equal(decode(encoded(colour, "TIFF", mode="CMYK"), "x"), colour)
    seen = decode(encoded(clear), "x")
    assert np.array_equal(seen[:, 4:], colour[:, 4:]) and (seen[:, :4] == 255).all()  # white shows through
    frames = io.BytesIO()
    PILImage.fromarray(colour).save(frames, "GIF", save_all=True, append_images=[PILImage.fromarray(255 - colour)])
    assert np.abs(decode(frames.getvalue(), "x").astype(int) - colour).max() < 30


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zero.jpg", "folder.jpg", "missing.jpg", "nul\0.jpg", "n" * 300):
        with pytest.raises(W2WError):
            picture_bytes(tmp_path / name)


def folder_of_oddities(folder: Path) -> int:
    """Photos of Ada, one of which shows a face, beside everything else; returns how many."""
    (folder / "Ada").mkdir(parents=True)
    write_image(folder / "Ada" / "good.png", data.astronaut()[:256, 100:356])
    for kind, content in odd_pictures().items():
        (folder / "Ada" / f"{kind}.jpg").write_bytes(content)
    os.mkfifo(folder / "Ada" / "pipe.jpg")
    (folder / "Ada" / "zero.jpg").symlink_to("/dev/zero")
    (folder / "Ada" / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "Ada" / ("n" * 246 + ".jpg")).write_bytes((folder / "Ada" / "good.png").read_bytes())
    write_image(folder / "Ada" / "line.png", np.zeros((1, 4000, 3), np.uint8))
    write_image(folder / "Ada" / "dot.png", np.zeros((1, 1, 3), np.uint8))
    return len(list((folder / "Ada").iterdir()))


def test_oddities_are_listed_and_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    n = folder_of_oddities(tmp_path / "photos")
    (tmp_path / "photos" / "Ada" / "phone.HEIC").write_bytes(b"x")
    write_image(tmp_path / "photos" / "alone.png", np.zeros((9, 9, 3), np.uint8))
    write_image(tmp_path / "photos" / "Ada" / "holiday" / "1.png", np.zeros((9, 9, 3), np.uint8))
    found = align_photos(tmp_path / "photos", tmp_path / "faces", size=32)
    assert found["photos"] == n and found["counts"]["left_out"] == 3
    assert found["counts"]["unreadable"] >= len(odd_pictures()) + 4 and "Ada/pipe.jpg" in found["unreadable"]
    assert {"Ada/phone.HEIC", "alone.png", "Ada/holiday/1.png"} == found["left_out"].keys()
    assert AlignedFaces.load(tmp_path / "faces").people == {"Ada": ["good"]}
    assert align_photos(tmp_path / "photos", tmp_path / "faces", size=32) == found


def test_faces_follow_their_photos(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "faces"
    whole = data.astronaut()
    write_image(photos / "Ada" / "1.png", whole[:256, 100:356])
    write_image(photos / "Ada" / "2.png", whole[:240, 110:350])
    align_photos(photos, out, size=32)
    before = AlignedFaces.load(out).photos("Ada")
    write_image(photos / "Ada" / "1.png", np.ascontiguousarray(whole[:256, 100:356][:, ::-1]))  # replaced
    (photos / "Ada" / "2.png").unlink()
    found = align_photos(photos, out, size=32)
    assert (found["renewed"], found["removed"]) == (["Ada/1.png"], ["Ada/2.png"])
    after = AlignedFaces.load(out)
    assert after.people == {"Ada": ["1"]} and not (out / "Ada" / "2.png").exists()
    assert not np.array_equal(after.photos("Ada")[0], before[0])
    (out / "Ada" / "1.png").unlink()  # a face that was lost is made again
    align_photos(photos, out, size=32)
    assert (out / "Ada" / "1.png").is_file()
    write_image(tmp_path / "others" / "Grace" / "1.png", whole[:256, 100:356])
    with pytest.raises(W2WError, match="other photos"):
        align_photos(tmp_path / "others", out, size=32)
    assert AlignedFaces.load(out).people == {"Ada": ["1"]}


def zipped(path: Path, members: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    return path


def test_namesakes_of_a_zip_are_two_people_and_nothing_leaves_it(tmp_path: Path) -> None:
    names = ["set1/John/1.jpg", "set2/John/1.jpg", "set2/Ada/1.jpg", "/x.jpg", "/y/x.jpg", "a/../../b.jpg", "top.jpg", "c:\\x.jpg"]
    found = find_photos(zipped(tmp_path / "photos.zip", names))
    assert [photo.person for photo in found.photos] == ["Ada", "set1/John", "set2/John", "y"]
    assert set(found.left_out) == {"/x.jpg", "a/../../b.jpg", "top.jpg", "c:\\x.jpg"}
    for photo in found.photos:
        assert len(photo.file().parts) == 2 and ".." not in photo.file().parts


PART = st.sampled_from(["Ada", "ada", "..", ".", "", "John", "C:", "~", "a\\b", "é", ".hidden", "NUL", "x" * 250])
MEMBER = st.builds(
    lambda parts, name: "/".join([*parts, name]), st.lists(PART, max_size=3), st.sampled_from(["1.jpg", "1.PNG", ".jpg", "a.txt"])
)


@settings(max_examples=50)
@given(st.lists(MEMBER, max_size=5, unique=True))
def test_photos_of_any_zip_stay_below_the_faces(tmp_path_factory: pytest.TempPathFactory, members: list[str]) -> None:
    path = zipped(tmp_path_factory.mktemp("zip") / "photos.zip", members)
    try:
        found = find_photos(path)
    except W2WError:
        return
    for photo in found.photos:
        try:
            inside = photo.file()
        except W2WError:  # too long: listed as unreadable
            continue
        assert (path.parent / "faces" / inside).resolve().is_relative_to(path.parent / "faces")
        assert len(inside.parts) == 2
    assert len({str(photo.file()).casefold() for photo in found.photos if len(photo.person) < 99}) == len(
        [photo for photo in found.photos if len(photo.person) < 99]
    )


def test_masks_of_all_kinds_lie_on_the_photo(base: BaseModel, tmp_path: Path) -> None:
    side = base.image_size
    painted = np.zeros((side, side), np.uint8)
    painted[:, : side // 2] = 255
    clear = np.full((side, side, 4), 255, np.uint8)
    clear[..., 3] = painted
    for name, pixels in (("grey", painted), ("deep", (painted.astype(np.uint16) * 257).astype(np.uint16)), ("clear", clear)):
        PILImage.fromarray(pixels).save(tmp_path / f"{name}.png")
        mask = ready_mask(tmp_path / f"{name}.png", base)[0, 0]
        half = mask.shape[1] // 2
        assert mask[:, :half].eq(1).all() and mask[:, half:].eq(0).all(), name
    for shape in ((side, side * 2), (side - 1, side - 1)):
        PILImage.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / "other.png")
        with pytest.raises(W2WError, match="lies over the aligned photo"):
            ready_mask(tmp_path / "other.png", base)


def test_pictures_that_are_left_out_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "1.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "2.heic").write_bytes(b"x")
    assert len(read_folder(tmp_path)) == 1
    assert "2.heic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,split\nAda/9.png,train\n", "line 2 .* names Ada/9.png"),
        ("file,split\nAda/1.png,train\n\nAda/1.png,train\n", "line 4 .* twice"),
        ("file,split\nAda/1.png,train\nAda/2.png,test\n", "line 3 .* Ada .*'test'.* line 2 .*'train'"),
        ("file,split\nAda/1.png\n", "line 2 .* 1 cells"),
        ("file,split\nAda/1.png,train,more\n", "line 2 .* 3 cells"),
        ("file;split\nAda/1.png;train\n", "semicolons"),
        ("file,split,split\nAda/1.png,a,b\n", "no name twice"),
        ('file,split\n"Ada/1.png,train\n', "quotes"),
        (",split\nAda/1.png,a\n", "each needs a name"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    for i in (1, 2):
        write_image(tmp_path / "photos" / "Ada" / f"{i}.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(W2WError, match=words):
        align_photos(tmp_path / "photos", tmp_path / "faces", labels=tmp_path / "labels.csv")
    assert not (tmp_path / "faces").exists()


def test_labels_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "Ada" / "1.png", data.astronaut()[:256, 100:356])
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffile, split \r\nAda/1.png, train\r\n\r\n")
    align_photos(tmp_path / "photos", tmp_path / "faces", size=32, labels=tmp_path / "labels.csv")
    assert AlignedFaces.load(tmp_path / "faces").of_split("train") == ["Ada"]
