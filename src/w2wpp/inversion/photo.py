"""One photo, brought to what a base model expects: aligned, sized, and grey where the base draws in grey."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.photos.decoding import BLACK, WHITE, rgb
from w2wpp.photos.faces import align, default_recogniser
from w2wpp.photos.images import Image, read_image

Photo = str | Path | Image | PILImage.Image  # a file, or pixels [h, w, 3] uint8


def ready_photo(photo: Photo, base: BaseModel, *, align_face: bool = True) -> Image:
    """A photo as [size, size, 3] uint8 for `base`, in grey where the base's pictures are.

    align_face: find the most prominent face and bring it to the place of all aligned faces; else the photo is taken
    as it is and must have the base's size. Raises W2WError if there is no face, or another size.
    """
    name = str(photo) if isinstance(photo, str | Path) else "the photo"
    image = pixels_of(photo)
    if align_face:
        faces = default_recogniser().detect(image)
        if not faces:
            raise W2WError(f"no face was found in {name}. Give a photo that shows a face from the front, or --no-align.")
        image = align(image, faces[0], base.image_size)
    if image.shape[:2] != (base.image_size, base.image_size):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise W2WError(f"{name} is {found}; {base.source} expects {base.image_size}x{base.image_size}. Leave out --no-align.")
    return grey(image) if base.draws_grey else image


def ready_mask(mask: Photo, base: BaseModel) -> torch.Tensor:
    """A black and white picture over the aligned photo (white: look here) -> [1, 1, h, w] float32 in 0..1, on the latents.

    Where it is transparent it counts as black. Raises W2WError if it is no square, smaller than the photo, or black all over.
    """
    name = f"mask {mask}" if isinstance(mask, str | Path) else "the mask"
    pixels = pixels_of(mask, BLACK)
    if pixels.shape[0] != pixels.shape[1] or pixels.shape[0] < base.image_size:
        found, wanted = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{base.image_size}x{base.image_size}"
        raise W2WError(f"{name} is {found}; it lies over the aligned photo of {wanted}. Give one of that size, or a larger square.")
    painted = PILImage.fromarray(pixels).convert("L")
    painted = painted.resize((base.latent_shape[2], base.latent_shape[1]), PILImage.Resampling.BOX)
    values = torch.from_numpy(np.array(painted)).float() / 255
    if not values.any():
        raise W2WError(f"{name} is black all over. Paint white what the inversion should look at.")
    return values[None, None]


def pixels_of(photo: Photo, behind: tuple[int, int, int] = WHITE) -> Image:
    """A photo's pixels [h, w, 3] uint8 RGB. behind: the colour that shows where it is transparent.

    Raises W2WError for a file that is no picture, or an array of another kind.
    """
    if isinstance(photo, PILImage.Image):
        return rgb(ImageOps.exif_transpose(photo), behind)
    if isinstance(photo, str | Path):
        return read_image(photo, behind)
    found = f"{getattr(photo, 'dtype', type(photo).__name__)} {list(getattr(photo, 'shape', []))}"
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise W2WError(f"a photo is {found}; pixels [h, w, 3] of type uint8, a picture of PIL, or a path was expected.")
    return photo


def grey(image: Image) -> Image:
    """A picture [h, w, 3] uint8 with its luminance in all three channels."""
    return np.repeat(np.asarray(PILImage.fromarray(image).convert("L"))[..., None], 3, axis=-1)
