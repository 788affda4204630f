"""Pictures in and out: a file or folder of them, PNG files, grids, and tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from w2wpp.common.files import replacing
from w2wpp.common.names import file_names
from w2wpp.common.storage import Anywhere
from w2wpp.photos.decoding import WHITE, decode, picture_bytes
from w2wpp.photos.decoding import Image as Image
from w2wpp.photos.listing import pictures_in


def read_image(path: Anywhere, behind: tuple[int, int, int] = WHITE) -> Image:
    """Read one picture as [h, w, 3] uint8 RGB. behind: the colour that shows where it is transparent.

    Raises W2WError if it is missing, unreadable or truncated, or no plain file.
    """
    return decode(picture_bytes(path), str(path), behind)


def read_folder(folder: str | Path) -> list[Image]:
    """All pictures of a folder, sorted by name. Raises W2WError if there is none, or one is unreadable."""
    return [read_image(path) for path in pictures_in(folder)]


def write_image(path: str | Path, image: Image) -> None:
    """Write [h, w, 3] uint8 as JPEG where the path ends so, else as PNG, whole or not at all."""
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


def write_rows(folder: Path, ids: Sequence[str], rows: Sequence[Sequence[Image]], seeds: Sequence[int]) -> Path:
    """Write each picture as `folder`/pictures/<id>/<seed>.png, and all of them as one sheet; returns the sheet's path.

    An id names its folder as `names.file_name` writes it. Raises W2WError if it cannot, or two ids name one folder.
    """
    for key, row in zip(file_names(ids), rows, strict=True):
        for seed, picture in zip(seeds, row, strict=True):
            write_image(folder / "pictures" / key / f"{seed}.png", picture)
    write_image(folder / "pictures.png", grid(rows))
    return folder / "pictures.png"
