"""What a base model is, and is it good enough to carry identity? The three bars of `tiny-faces`, measured."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2wpp.base.captions import full_name
from w2wpp.base.model import BaseModel
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import FaceRecogniser, default_recogniser, embed_pictures
from w2wpp.photos.images import Image, to_tensor

PROMPTS = ("photo of a person", "photo of a man", "photo of a woman", "photo of a smiling man", "photo of a smiling woman")


def describe_base(base: BaseModel) -> dict[str, Any]:
    """What a base model is: its digest, the sizes of pictures [pixels] and latents, numbers of parameters, and every word it knows."""
    parts = {name: getattr(base.pipeline, name) for name in ("unet", "vae", "text_encoder")}
    words = sorted(base.pipeline.tokenizer.get_vocab())
    return {
        "id": base.id,
        "image_size": base.image_size,
        "latent_shape": list(base.latent_shape),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "prediction": base.noise_scheduler.config.prediction_type,
        "vocabulary": len(words),
        "words": words,
    }


def check_base(
    base: BaseModel,
    faces: AlignedFaces,
    *,
    samples: int = 200,
    names: int = 60,
    guidance: float = 2.0,
    recogniser: FaceRecogniser | None = None,
) -> tuple[dict[str, Any], list[list[Image]]]:
    """Measure a base; returns the figures, and rows of pictures (one row per prompt).

    faces_found: share of `samples` pictures in which the face recogniser finds a face. autoencoder_cosine: of val photos and
    their reconstructions. name_id, name_floor: ID Score of pictures drawn for the names of train people with 10 or
    more photos, against their own photos and against those of the others.
    """
    recogniser = recogniser or default_recogniser()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(samples)]
    pictures = base.generate(prompts, range(samples), guidance=guidance)
    found = [vector is not None for vector in embed_pictures(pictures, recogniser)]

    photos = [photo for person in faces.of_split("val") for photo in faces.photos(person)]
    rebuilt = base.decode_latents(base.encode_images(to_tensor(photos)))
    pairs = zip(embed_pictures(photos, recogniser), embed_pictures(rebuilt, recogniser), strict=True)
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
        of_person = [_mean([v for v in embed_pictures(named[4 * i : 4 * i + 4], recogniser) if v is not None]) for i in range(len(people))]
        real = [_mean([v for v in embed_pictures(faces.photos(p)[:10], recogniser) if v is not None]) for p in people]
        # The mean over pairs of a cosine is the product of the mean vectors.
        scores = np.array([[float(a @ b) for b in real] for a in of_person])
        own = np.eye(len(people), dtype=bool)
        figures |= {"name_id": float(scores[own].mean()), "name_floor": float(scores[~own].mean()), "name_people": len(people)}
        rows += [named[4 * i : 4 * i + 4] for i in range(min(8, len(people)))]
    return figures, rows


def _mean(vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.mean(vectors, axis=0) if vectors else np.zeros(512, np.float32)
