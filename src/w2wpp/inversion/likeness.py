"""The teacher `likeness`: what an adapter draws has to look like the person's photos, to the network that describes photos.

A picture is drawn in few steps of the solver, and gradients pass through its decoder and all of these steps (DRaFT, Clark et al.
2024). FaceNet takes no part: it only scores.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from w2wpp.base.model import BaseModel
from w2wpp.base.room import pictures_at_a_time
from w2wpp.common.batches import batches
from w2wpp.inversion.tone import tones_of
from w2wpp.lora.layout import Layout
from w2wpp.photos.descriptors import CHIP_PADDING, CHIP_SIDE, NETWORK, SIDE, face_models
from w2wpp.photos.face_network import FaceNetwork

# Pictures of 4 steps are described as those of 15 are: cosines to the photo, about the mean, are 0.54 and 0.52.
SOLVER_STEPS, GUIDANCE = 4, 2.0
# Where the landmarks of a face chip lie, as shares of its inner square (dlib's 5 points: outer and inner corners of both eyes, nose),
# and where they lie in an aligned photo, in pixels of SIDE: a mean, from which single photos differ by 1 to 4 (standard deviation).
IN_CHIP = ((0.8596, 0.2135), (0.6461, 0.2290), (0.1206, 0.2137), (0.3341, 0.2291), (0.4901, 0.6278))
IN_PHOTO = ((89.75, 50.65), (74.1, 50.95), (33.85, 50.05), (49.75, 50.65), (61.9, 80.6))


def describe_pixels(pixels: Tensor) -> Tensor:
    """Aligned pictures [n, 3, h, w] in [-1, 1] -> descriptions [n, 128], with gradients; near to those of `describe_faces`.

    Landmarks are not looked for: the face lies where aligned photos have it. Raises W2WError without the extra that describes faces.
    """
    network, chip = face_network(str(pixels.device)), _chip().to(pixels.device)
    enlarged = F.interpolate((pixels.float().clamp(-1, 1) + 1) * 127.5, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return network(F.grid_sample(enlarged, chip.expand(len(pixels), -1, -1, -1), align_corners=False).clamp(0, 255))


@cache
def face_network(device: str) -> FaceNetwork:
    """The network that describes, on a device. Raises W2WError without the extra that describes faces, or for a damaged file."""
    return FaceNetwork.load(face_models() / NETWORK).to(device)


@cache
def _chip() -> Tensor:
    """Where the pixels of a face chip lie in an aligned photo, [1, h, w, 2] as `grid_sample` counts: the similarity that fits best."""
    chip = (np.array(IN_CHIP) + CHIP_PADDING) @ (1, 1j) / (1 + 2 * CHIP_PADDING) * CHIP_SIDE
    photo = np.array(IN_PHOTO) @ (1, 1j)
    turn = np.vdot(chip - chip.mean(), photo - photo.mean()) / np.square(np.abs(chip - chip.mean())).sum()
    across = np.arange(CHIP_SIDE)
    at = turn * (across[None, :] + 1j * across[:, None] - chip.mean()) + photo.mean()
    return torch.from_numpy(np.stack([at.real, at.imag], -1)).float()[None].add(0.5).mul(2 / SIDE).sub(1)


def faces_drawn(base: BaseModel, layout: Layout, weights: Tensor, contexts: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """What adapters draw: the descriptions [n, f] and the tones [n, 7] of their pictures, with gradients to weights [k, d].

    contexts: [tokens, width] each, of the prompt and of the empty caption, which guidance leads away from. noise: [n, c, h, w], from
    which each adapter draws n / k pictures.
    Raises W2WError for a layout with a text encoder, and without the extra that describes faces.
    """
    layout.check_denoiser_alone()
    each = weights.repeat_interleave(len(noise) // len(weights), 0)

    def drawn(noise: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        captioned, empty = (context.expand(len(noise), -1, -1) for context in contexts)
        pictures = base.draw(noise, (captioned, empty), layout, weights, GUIDANCE, SOLVER_STEPS)
        return describe_pixels(pictures), tones_of(pictures)

    size = pictures_at_a_time(base, len(noise))
    if size >= len(noise):
        return drawn(noise, each)
    # What a group needs is computed again in the backward pass, so that memory holds one group.
    groups = [(noise[s], each[s]) for s in batches(len(noise), size)]
    found = [checkpoint(drawn, *group, use_reentrant=False, preserve_rng_state=False) for group in groups]
    described, tones = zip(*found, strict=True)
    return torch.cat(described), torch.cat(tones)


def unlikeness(found: Tensor, described: Sequence[Tensor] | Tensor, centre: Tensor) -> Tensor:
    """1 - the cosine, about `centre` [f], of the descriptions of pictures [n, f] and of their person's photos: [k] float32.

    described: each person's photos, [p, f]; their mean is what is wanted of each of the person's n / k pictures.
    """
    draws, centre = len(found) // len(described), centre.to(found)
    wanted = torch.stack([photos.mean(0) for photos in described]).to(found).repeat_interleave(draws, 0)
    return (1 - F.cosine_similarity(found - centre, wanted - centre)).unflatten(0, (-1, draws)).mean(1)
