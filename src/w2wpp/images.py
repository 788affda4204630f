"""Pictures in: folders or zips of `person/photo.jpg`; pictures out: PNG files and grids."""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from w2wpp.errors import W2WError
from w2wpp.files import replacing

Image = NDArray[np.uint8]
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class Photo:
    """Where one photo of one person lies; its bytes are read only when asked for."""

    person: str
    name: str
    source: Path
    member: str | None = None

    def read(self) -> Image:
        """The picture [h, w, 3] uint8 RGB. Raises W2WError naming the file if it is unreadable or truncated."""
        if self.member is None:
            return read_image(self.source)
        try:
            with zipfile.ZipFile(self.source) as archive:
                data = archive.read(self.member)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise W2WError(f"cannot read {self.member} in {self.source}: {error}.") from error
        return _decode(data, f"{self.source}:{self.member}")


def list_photos(source: str | Path) -> list[Photo]:
    """List the photos of a folder or a zip of `person/photo.jpg`, sorted by person and name.

    Raises W2WError if there is none, or two photos of one person share a name.
    """
    source = Path(source)
    photos = []
    if source.is_dir():
        for path in source.glob("*/*"):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                photos.append(Photo(path.parent.name, path.name, path))
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for member in archive.namelist():
                inside = PurePosixPath(member)
                shown = ".." not in inside.parts and not inside.name.startswith(".")
                if shown and inside.suffix.lower() in SUFFIXES and len(inside.parts) >= 2:
                    photos.append(Photo(inside.parts[-2], inside.name, source, member))
    else:
        raise W2WError(f"{source} is neither a folder nor a zip. Give one that holds person/photo.jpg.")
    if not photos:
        raise W2WError(f"{source} holds no person/photo.jpg. Put each person's photos in a folder with the person's name.")
    counts = Counter((photo.person, Path(photo.name).stem) for photo in photos)
    (person, name), count = counts.most_common(1)[0]
    if count > 1:
        raise W2WError(f"{source} holds {count} photos of {person} named {name}. Give each photo of a person a name of its own.")
    return sorted(photos, key=lambda photo: (photo.person, photo.name))


def read_image(path: str | Path) -> Image:
    """Read one picture as [h, w, 3] uint8 RGB. Raises W2WError if it is missing, unreadable or truncated."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise W2WError(f"cannot read {path}: {error.strerror}.") from error
    return _decode(data, str(path))


def _decode(data: bytes, who: str) -> Image:
    try:
        with PILImage.open(io.BytesIO(data)) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))  # phones turn pictures by a tag
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        raise W2WError(f"{who} is not a readable picture ({error}). Replace it or take it out.") from error


def pictures_in(path: str | Path) -> list[Path]:
    """The pictures of a folder, sorted by name; a file is itself. Raises W2WError for a folder without a picture."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise W2WError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
    return found


def read_folder(folder: str | Path) -> list[Image]:
    """All pictures of a folder, sorted by name. Raises W2WError if there is none, or one is unreadable."""
    return [read_image(path) for path in pictures_in(folder)]


def write_image(path: str | Path, image: Image) -> None:
    """Write [h, w, 3] uint8 as a picture of the path's own suffix, whole or not at all."""
    with replacing(path) as aside:
        PILImage.fromarray(image).save(aside, format="JPEG" if Path(path).suffix.lower() in {".jpg", ".jpeg"} else "PNG")


def to_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures [h, w, 3] uint8 of one size -> [n, 3, h, w] float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image]:
    """[n, 3, h, w] in [-1, 1] -> pictures [h, w, 3] uint8."""
    bytes_ = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(bytes_.permute(0, 2, 3, 1).cpu().numpy())


def grid(rows: Sequence[Sequence[Image]], pad: int = 2) -> Image:
    """Lay rows of pictures of one size out as one picture on white; rows may differ in length."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + pad) - pad, columns * (width + pad) - pad, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            y, x = r * (height + pad), c * (width + pad)
            sheet[y : y + height, x : x + width] = image
    return sheet


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n) in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
