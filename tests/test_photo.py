"""One photo made ready for a base: the face found, the size right, grey only where the base draws in grey."""

from pathlib import Path

import numpy as np
import pytest
import torch

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.inversion.photo import grey, ready_mask, ready_photo
from w2wpp.photos.images import Image, write_image


@pytest.fixture
def grey_base(pico: Path) -> BaseModel:
    """A pico pipeline whose decoder gives all three channels the same values, as one trained on grey photos does."""
    base = BaseModel.load(pico, device="cpu")
    last = base.pipeline.vae.decoder.layers[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.mean(0, keepdim=True).expand_as(last.weight))
        last.bias.copy_(last.bias.mean().expand_as(last.bias))
    return base


@pytest.fixture
def colourful() -> Image:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def test_a_grey_base_gets_a_grey_photo_and_others_do_not(base: BaseModel, grey_base: BaseModel, colourful: Image) -> None:
    assert (base.draws_grey, grey_base.draws_grey) == (False, True)
    assert (ready_photo(colourful, base, align_face=False) == colourful).all()
    assert (ready_photo(colourful, grey_base, align_face=False) == grey(colourful)).all()
    assert np.ptp(grey(colourful), axis=-1).max() == 0


def test_astronaut_is_found_and_brought_to_size(base: BaseModel) -> None:
    import skimage.data

    photo = ready_photo(skimage.data.astronaut(), base)
    assert photo.shape == (16, 16, 3)
    # Skin in the middle, hair at the upper edge: brighter inside than on top.
    assert photo[6:12, 5:11].mean() > photo[:2].mean() + 10


def test_no_face_and_a_wrong_size_are_refused(base: BaseModel, tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 127, np.uint8)
    with pytest.raises(W2WError, match="no face"):
        ready_photo(flat, base)
    with pytest.raises(W2WError, match=r"64x64; .* expects 16x16"):
        ready_photo(flat, base, align_face=False)


def test_mask_lies_on_the_latents(base: BaseModel, tmp_path: Path) -> None:
    left = np.zeros((32, 32, 3), np.uint8)
    left[:, :16] = 255
    write_image(tmp_path / "left.png", left)
    mask = ready_mask(tmp_path / "left.png", base)
    assert mask.shape == (1, 1, 8, 8)
    assert mask[..., :4].eq(1).all() and mask[..., 4:].eq(0).all()
    write_image(tmp_path / "black.png", 0 * left)
    with pytest.raises(W2WError, match="black all over"):
        ready_mask(tmp_path / "black.png", base)
