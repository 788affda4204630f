"""A small table 1 on noise for workers: few steps, and a face recogniser that needs no network. Workers import this."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from w2wpp.common.mapping import Work
from w2wpp.evaluation import table1_methods as ways
from w2wpp.evaluation.table1_methods import Table1Options
from w2wpp.evaluation.table1_parts import Table1Recipe
from w2wpp.inversion.gradient import PUBLISHED, InversionOptions
from w2wpp.photos.faces import Face, Image
from w2wpp.spaces.vae_options import VaeOptions

SMALL = Table1Options(
    ms=(2, 3), pictures=2, solver_steps=2, group=2, inversion=InversionOptions(steps=2), vae=VaeOptions(widths=(8,), epochs=1)
)
SHORT = replace(PUBLISHED, steps=3)  # of 400


class ColourRecogniser:
    """A face is a picture with a pixel that is not black, its embedding the mean colour."""

    def detect(self, image: Image) -> list[Face]:
        points = np.zeros((5, 2), np.float32)
        return [Face((0, 0, *image.shape[:2]), 1.0, points)] if image.any() else []

    def embed(self, image: Image, face: Face) -> NDArray[np.float32]:
        colour = image.astype(np.float32).mean((0, 1))
        return colour / np.linalg.norm(colour)


class QuickTable(Table1Recipe):
    """What a worker needs to know, where the published recipe is short."""

    def open(self, cores: int) -> Work:
        """What makes a part."""
        ways.PUBLISHED = SHORT
        return super().open(cores)
