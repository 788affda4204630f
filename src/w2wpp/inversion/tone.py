"""The tone of pictures: how light they are, and how much they vary at each scale, from fine detail to the whole.

The network that describes faces hears nothing of it. Pictures that have only to look like a person to that network got darker and
blurred, so that the teacher `likeness` asks for the tone of the person's photos too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.images import to_tensor

OCTAVES = 3  # of detail, each of half the resolution of the one before; what is left is the fourth scale
LEAST = 1e-2  # deviation of brightness, of 1: less is no detail, but rounding
LEAST_SPREAD = 0.02  # of a tone over photos


def tones_of(pixels: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in [-1, 1] -> tones [n, 7] float32, with gradients.

    They are the mean of each colour, in 0..1, and the logarithms of the deviations of brightness at four scales (a Laplacian pyramid).
    """
    light = (pixels.float().clamp(-1, 1) + 1) / 2
    found, grey = [light.mean((2, 3))], light.mean(1, keepdim=True)
    for _ in range(OCTAVES):
        coarse = F.avg_pool2d(grey, 2, ceil_mode=True)
        detail = grey - F.interpolate(coarse, size=grey.shape[-2:], mode="bilinear", align_corners=False)
        found.append(_deviation(detail))
        grey = coarse
    found.append(_deviation(grey - grey.mean((2, 3), keepdim=True)))
    return torch.cat(found, 1)


def _deviation(detail: Tensor) -> Tensor:
    return (detail.square().mean((1, 2, 3)) + LEAST**2).log()[:, None] / 2


def check_size(faces: AlignedFaces, size: int) -> None:
    """Raise W2WError if aligned photos are smaller than pictures, of `size` pixels, that are to have their tone."""
    if faces.size < size:
        found = f"{faces.folder} holds photos of {faces.size}x{faces.size}, and pictures are {size}x{size}"
        raise W2WError(f"{found}: they would learn to be blurred. Align the photos again with `w2w faces align --size {size}`.")


@dataclass(frozen=True)
class Tones:
    """The tones of people's photos: what those of pictures of these people are compared with."""

    people: Mapping[str, Tensor]  # person -> the mean over the photos, [7]
    spread: Tensor  # the deviation over all photos, [7]

    @classmethod
    def of(cls, faces: AlignedFaces, people: Sequence[str], size: int) -> Self:
        """Those of a faces folder, of photos reduced to `size` pixels. Raises W2WError where they are smaller than that."""
        check_size(faces, size)
        photos = {}
        for person in track(people, "look at photos", "people"):
            pixels = to_tensor(faces.photos(person))
            photos[person] = tones_of(F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False))
        return cls.among(photos)

    @classmethod
    def among(cls, photos: Mapping[str, Tensor]) -> Self:
        """Those of each person's photos, [p, 7]."""
        spread = torch.cat(list(photos.values())).std(0, correction=0).clamp_min(LEAST_SPREAD)
        return cls({person: own.mean(0) for person, own in photos.items()}, spread)

    def off(self, tones: Tensor, people: Sequence[str]) -> tuple[Tensor, Tensor]:
        """By how much pictures' tones [n, 7] are off those of these people's photos: for each person [k], and all together, a number.

        Each person has n / k pictures. Differences are in deviations. A person's is the mean square over pictures and tones. All
        together it is the square of the expected mean, estimated without bias, so that it asks the same of few pictures and of many:
        single pictures may be lighter or darker, as photos are. One picture alone says nothing of it, which is 0.
        """
        draws = len(tones) // len(people)
        wanted = torch.stack([self.people[person] for person in people]).to(tones).repeat_interleave(draws, 0)
        difference = (tones - wanted) / self.spread.to(tones)
        common = difference.mean(0).square() - difference.var(0) / len(tones) if len(tones) > 1 else 0 * difference.sum(0)
        return difference.square().mean(1).unflatten(0, (-1, draws)).mean(1), common.mean()
