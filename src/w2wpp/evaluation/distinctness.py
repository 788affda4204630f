"""How alike the faces of different models are: the ID Score between samples, which is 1 where a space has collapsed to one face."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from torch import Tensor

from w2wpp.base.drawing import picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.photos.faces import Embedding, FaceRecogniser, embed_pictures
from w2wpp.spaces.base import Space


def likeness(
    base: BaseModel,
    layout: Layout,
    weights: Tensor,
    prompt: str,
    seeds: Sequence[int],
    *,
    guidance: float = 2.0,
    steps: int = 20,
    recogniser: FaceRecogniser | None = None,
) -> dict[str, Any]:
    """Draw each adapter of weights [k, d] at the same image seeds and compare their faces: see `likeness_of`."""
    rows = picture_rows(base, layout, weights, prompt, seeds, guidance=guidance, steps=steps)
    return likeness_of([embed_pictures(row, recogniser) for row in rows])


def likeness_of(faces: Sequence[Sequence[Embedding]]) -> dict[str, Any]:
    """Mean cosines of embedded faces, one row per model and one column per image seed.

    between: of different models at the same seed, 1 where all models draw one face. within: of one model at different
    seeds. None where no such pair has two faces. pictures, missed: how many there are, and how many have no face.
    """
    columns = list(zip(*faces, strict=True))
    embedded = [face for row in faces for face in row]
    return {
        "between": _mean_cosine(columns),
        "within": _mean_cosine(faces),
        "models": len(faces),
        "pictures": len(embedded),
        "missed": sum(face is None for face in embedded),
    }


def drawn_and_training(
    base: BaseModel,
    space: Space,
    dataset: WeightDataset,
    prompt: str,
    seeds: Sequence[int],
    *,
    models: int = 16,
    guidance: float = 2.0,
    steps: int = 20,
    recogniser: FaceRecogniser | None = None,
) -> dict[str, dict[str, Any]]:
    """The likeness of models drawn from a space, and of as many training adapters of different people."""
    first = {labels.get("person", name): i for i, (name, labels) in reversed([*enumerate(zip(dataset.ids, dataset.labels, strict=True))])}
    trained = dataset.rows(sorted(first.values())[:models])
    both = {"drawn": space.decode(space.sample(models)).cpu(), "training": trained}
    return {
        name: likeness(base, space.layout, weights, prompt, seeds, guidance=guidance, steps=steps, recogniser=recogniser)
        for name, weights in both.items()
    }


def _mean_cosine(groups: Sequence[Sequence[Embedding]]) -> float | None:
    pairs = (pair for group in groups for pair in combinations([face for face in group if face is not None], 2))
    cosines = [float(a @ b) for a, b in pairs]
    return fmean(cosines) if cosines else None
