"""Is a base model good enough to carry identity? The three bars of `tiny-faces`, measured."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2wpp.alignment import AlignedFaces
from w2wpp.base_model import BaseModel
from w2wpp.captions import full_name
from w2wpp.faces import FaceJudge, default_judge, embed_pictures
from w2wpp.images import Image, to_tensor

PROMPTS = ("photo of a person", "photo of a man", "photo of a woman", "photo of a smiling man", "photo of a smiling woman")


def check_base(
    base: BaseModel, faces: AlignedFaces, *, samples: int = 200, names: int = 60, guidance: float = 2.0, judge: FaceJudge | None = None
) -> tuple[dict[str, Any], list[list[Image]]]:
    """Measure a base; returns the figures, and rows of pictures to look at (a row a prompt).

    faces_found: share of `samples` pictures in which the judge finds a face. autoencoder_cosine: of val photos and
    their reconstructions. name_id, name_floor: ID Score of pictures drawn for the names of train people with 10 or
    more photos, against their own photos and against those of the others.
    """
    judge = judge or default_judge()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(samples)]
    pictures = base.generate(prompts, range(samples), guidance=guidance)
    found = [vector is not None for vector in embed_pictures(pictures, judge)]

    photos = [photo for person in faces.of_split("val") for photo in faces.photos(person)]
    rebuilt = base.decode_latents(base.encode_images(to_tensor(photos)))
    pairs = zip(embed_pictures(photos, judge), embed_pictures(rebuilt, judge), strict=True)
    kept = [float(a @ b) for a, b in pairs if a is not None and b is not None]

    people = [person for person in faces.of_split("train") if len(faces.people[person]) >= 10][:names]
    figures: dict[str, Any] = {
        "samples": samples,
        "guidance": guidance,
        "faces_found": float(np.mean(found)),
        "autoencoder_cosine": float(np.mean(kept)),
        "autoencoder_n": len(kept),
    }
    rows = [pictures[i :: len(PROMPTS)][:8] for i in range(len(PROMPTS))]
    if people:
        named = base.generate([f"photo of {full_name(p)}" for p in people for _ in range(4)], range(4 * len(people)), guidance=guidance)
        of_person = [_mean([v for v in embed_pictures(named[4 * i : 4 * i + 4], judge) if v is not None]) for i in range(len(people))]
        real = [_mean([v for v in embed_pictures(faces.photos(p)[:10], judge) if v is not None]) for p in people]
        # The mean over pairs of a cosine is the product of the mean vectors.
        scores = np.array([[float(a @ b) for b in real] for a in of_person])
        own = np.eye(len(people), dtype=bool)
        figures |= {"name_id": float(scores[own].mean()), "name_floor": float(scores[~own].mean()), "name_people": len(people)}
        rows += [named[4 * i : 4 * i + 4] for i in range(min(8, len(people)))]
    return figures, rows


def _mean(vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.mean(vectors, axis=0) if vectors else np.zeros(512, np.float32)
