"""One photo, brought to what a base model expects: aligned, sized, and grey where the base draws in grey."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from w2wpp.base_model import BaseModel
from w2wpp.errors import W2WError
from w2wpp.faces import align, default_judge
from w2wpp.images import Image, read_image, to_tensor

GREY_SPREAD = 6  # levels of 255 between a picture's channels


def ready_photo(photo: str | Path | Image, base: BaseModel, *, align_face: bool = True) -> Image:
    """A photo as [size, size, 3] uint8 for `base`.

    align_face: find the most prominent face and bring it to the place of all aligned faces; else the photo is taken
    as it is and must have the base's size. Raises W2WError if there is no face, or another size.
    """
    name = "the photo" if isinstance(photo, np.ndarray) else str(photo)
    image = photo if isinstance(photo, np.ndarray) else read_image(photo)
    if align_face:
        faces = default_judge().detect(image)
        if not faces:
            raise W2WError(f"no face was found in {name}. Give a photo that shows a face from the front, or --no-align.")
        image = align(image, faces[0], base.image_size)
    if image.shape[:2] != (base.image_size, base.image_size):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise W2WError(f"{name} is {found}; {base.source} expects {base.image_size}x{base.image_size}. Leave out --no-align.")
    return grey(image) if draws_grey(base) else image


def ready_mask(path: str | Path, base: BaseModel) -> torch.Tensor:
    """A black and white picture over the aligned photo (white: look here) -> [1, 1, h, w] float32 in 0..1, on the latents."""
    mask = PILImage.fromarray(read_image(path)).convert("L").resize((base.latent_shape[2], base.latent_shape[1]), PILImage.Resampling.BOX)
    values = torch.from_numpy(np.array(mask)).float() / 255
    if not values.any():
        raise W2WError(f"mask {path} is black all over. Paint white what the inversion should look at.")
    return values[None, None]


def draws_grey(base: BaseModel) -> bool:
    """Whether the base's pictures are grey: a colour photo is brought to grey for such a base."""
    hues = np.zeros((1, base.image_size, base.image_size, 3), np.uint8)
    hues[..., 0], hues[..., 2] = 200, 60  # a strong colour, which a grey decoder cannot give back
    decoded = base.decode_latents(base.encode_images(to_tensor(list(hues))))[0].astype(int)
    return bool(np.ptp(decoded, axis=-1).mean() < GREY_SPREAD)


def grey(image: Image) -> Image:
    """A picture [h, w, 3] uint8 with its luminance in all three channels."""
    return np.repeat(np.asarray(PILImage.fromarray(image).convert("L"))[..., None], 3, axis=-1)
