"""From the bytes of a picture to its pixels, with the decoders named here and no others.

Pillow would hand PostScript to Ghostscript, which runs it, and knows dozens of formats that no photo has. What a decoder
raises, whatever it is, is one error here: the picture cannot be read.
"""

import io
import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from w2wpp.common.errors import W2WError
from w2wpp.common.storage import Address, Anywhere, place

Image = NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # of a GIF or TIFF of several pictures, the first
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
LARGEST = 2**29  # bytes of a file
MOST_PIXELS = 150_000_000  # 450 MB as RGB
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def picture_bytes(path: Anywhere) -> bytes:
    """The bytes of a file, or of an object at an address.

    Raises W2WError unless it is a plain file of half a GiB at most: a pipe would be waited on for ever.
    """
    if isinstance(path := place(path), Address):
        if (path.size() or 0) > LARGEST:
            raise W2WError(f"{path} has {path.size():,} bytes; a picture of at most {LARGEST:,} was expected. Take it out.")
        return path.read_bytes()
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise W2WError(f"{path} is no plain file. Replace it by a picture or take it out.")
        if about.st_size > LARGEST:
            raise W2WError(f"{path} has {about.st_size:,} bytes; a picture of at most {LARGEST:,} was expected. Take it out.")
        return Path(path).read_bytes()
    except (OSError, ValueError, MemoryError) as error:  # a name that holds a NUL is a ValueError
        raise W2WError(f"cannot read {path}: {getattr(error, 'strerror', None) or error or 'too little memory'}.") from error


def decode(data: bytes, who: str, behind: tuple[int, int, int] = WHITE) -> Image:
    """A picture's bytes as [h, w, 3] uint8 RGB, turned as its EXIF tag says; 16 bits of grey are brought to 8.

    behind: the colour that shows where the picture is transparent. Raises W2WError with `who` it was if it is of none of
    `FORMATS`, cut short, larger than `MOST_PIXELS`, or not to be decoded for any other reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd tags, and on sizes that are looked at here
            with PILImage.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(f"{picture.width}x{picture.height} pixels are more than {MOST_PIXELS:,}")
                return rgb(ImageOps.exif_transpose(picture), behind)  # phones turn pictures by a tag
    except Exception as error:  # decoders raise nearly everything: struct.error, KeyError, MemoryError, RecursionError
        why = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            why = f"none of {', '.join(FORMATS)}"
        raise W2WError(f"{who} is not a readable picture ({why}). Replace it or take it out.") from error


def rgb(picture: PILImage.Image, behind: tuple[int, int, int] = WHITE) -> Image:
    """A picture of Pillow as [h, w, 3] uint8 RGB. Raises ValueError for grey that is neither of 8 nor of 16 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.repeat(_grey_8(picture)[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        below = PILImage.new("RGBA", layer.size, (*behind, 255))
        picture = PILImage.alpha_composite(below, layer)
    return np.array(picture.convert("RGB"))


def _grey_8(picture: PILImage.Image) -> Image:
    """Grey of more than 8 bits as [h, w] uint8; Pillow's own conversion makes everything above 255 white."""
    values = np.asarray(picture)
    if values.dtype.kind == "f" or (values.size and not 0 <= values.min() <= values.max() < 2**16):
        raise ValueError(f"its numbers are {values.dtype}; whole ones of 8 or 16 bits were expected")
    return np.round(values / 257).astype(np.uint8)
