"""ID Score (Dravid et al. 2024, section 4.3): MTCNN finds the face in both pictures, FaceNet embeds it, cosine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from w2wpp.photos.faces import Embedding, FaceRecogniser, embed_pictures
from w2wpp.photos.images import Image


@dataclass(frozen=True)
class IdScore:
    """How alike the faces of pictures and photos are."""

    mean: float  # cosine over all pairs with two faces; not a number where there is no such pair
    n_pairs: int
    missed: int  # pictures without a face
    photos_missed: int  # photos without a face


def id_score(pictures: Sequence[Image], photos: Sequence[Image], recogniser: FaceRecogniser | None = None) -> IdScore:
    """Score pictures [h, w, 3] uint8 against photos of one person; faces that are not found are counted, never fatal."""
    return score_embedded(embed_pictures(pictures, recogniser), embed_pictures(photos, recogniser))


def score_embedded(pictures: Sequence[Embedding], photos: Sequence[Embedding]) -> IdScore:
    """The ID Score of faces that were embedded before, as by `faces.embed_pictures`."""
    cosines = [float(a @ b) for a in pictures if a is not None for b in photos if b is not None]
    missed, photos_missed = (sum(face is None for face in faces) for faces in (pictures, photos))
    return IdScore(fmean(cosines) if cosines else math.nan, len(cosines), missed, photos_missed)
