"""How points and faces that a prior draws are held against those of real people: nearest rows, a classifier, PRDC, KID."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from w2wpp.evaluation.distinctness import likeness_of
from w2wpp.evaluation.id_score import score_embedded
from w2wpp.photos.faces import Embedding
from w2wpp.spaces.points import nearest

NEIGHBOURS = 5  # of Kynkäänniemi et al. 2019 and Naeem et al. 2020


def nearest_distance(drawn: Tensor, rows: Tensor) -> float:
    """The distance to the nearest of `rows` [n, m], averaged over drawn points [k, m]."""
    return float(nearest(drawn, rows)[0].mean())


def two_sample_auc(drawn: Tensor, real: Tensor) -> float:
    """How well an SVM (RBF kernel) tells drawn points [k, m] from real ones [n, m], cross-validated: 0.5 is not at all."""
    x = torch.cat([drawn, real]).numpy()
    y = np.concatenate([np.ones(len(drawn)), np.zeros(len(real))])
    model = make_pipeline(StandardScaler(), SVC(kernel="rbf", gamma="scale"))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="decision_function")))


def scores_of_faces(
    faces: Sequence[Sequence[Embedding]], real: Sequence[Sequence[Embedding]], training: Sequence[Sequence[Embedding]]
) -> dict[str, Any]:
    """Drawn models' faces, one row per model and one column per image seed, against those of real people's models.

    training: of people whom the prior was fitted to; `max_id` is the highest ID Score of a model to one of them.
    """
    alike = likeness_of(faces)
    x, y = stacked(faces), stacked(real)
    scores = [max(score_embedded(row, person).mean for person in training if shown(person)) for row in faces if shown(row)]
    return {
        **prdc(x, y),
        "kid": kid(x, y),
        "no_face": alike["missed"],
        "pictures": alike["pictures"],
        "same": alike["within"],
        "different": alike["between"],
        "max_id": max(scores),
        "mean_max_id": float(np.mean(scores)),
    }


def shown(faces: Sequence[Embedding]) -> bool:
    """Whether there is a face in any of the pictures."""
    return any(face is not None for face in faces)


def stacked(rows: Sequence[Sequence[Embedding]]) -> NDArray[np.float64]:
    """All faces that were found: [n, 512]."""
    return np.array([face for row in rows for face in row if face is not None], dtype=np.float64)


def kid(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The unbiased squared MMD of two sets of unit vectors [n, f] under the kernel (x.y + 1)^3 (Binkowski et al. 2018)."""
    own = [((a @ a.T + 1) ** 3, len(a)) for a in (x, y)]
    within = [(kernel.sum() - np.trace(kernel)) / (n * (n - 1)) for kernel, n in own]
    return float(sum(within) - 2 * ((x @ y.T + 1) ** 3).mean())


def prdc(drawn: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of drawn against real faces."""
    between = distances(real, drawn)
    reach, drawn_reach = ball(real), ball(drawn)
    inside = between < reach[:, None]  # [real, drawn]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between < drawn_reach[None]).any(1).mean()),
        "density": float(inside.sum(0).mean() / NEIGHBOURS),
        "coverage": float((between.min(1) < reach).mean()),
    }


def distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between unit vectors: [n, k]."""
    return np.sqrt(np.clip(2 - 2 * x @ y.T, 0, None))


def ball(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each one's distance to its `NEIGHBOURS`-th neighbour, itself left out: [n]."""
    own = distances(x, x)
    np.fill_diagonal(own, 0)
    return np.sort(own, axis=1)[:, NEIGHBOURS]
