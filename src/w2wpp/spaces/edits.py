"""Edit points along attributes: directions fitted to labels, kept clear of other attributes, and composed.

An attribute's score of a point is linear in z, fitted by ridge regression (Dravid et al. 2024, section 4.2, fit a linear
classifier). Strength k moves the score by k of its standard deviations over the dataset. Of all steps that do so we
take the shortest, which in prior units is the most probable one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator
from w2wpp.common.tables import read_rows, rows_by
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.base import Space

FOLDS = 5
LEAST = 10  # rows with a value: two a fold
TELLING = 0.2  # correlation of label and score, for people who were held out
RIDGES = torch.logspace(-3, 3, 13, dtype=torch.float64)
SAME = 1e-3  # the part of a direction, in squared length, that others must leave of it
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
UNTOLD = ("", "person")  # "person" is what the gender label says where a first name does not tell


@dataclass(frozen=True, eq=False)
class Direction:
    """Where an attribute points in a space."""

    name: str
    gradient: Tensor  # [m] float64; z @ gradient is the predicted score in its standard deviations, up to a constant
    step: Tensor  # [m] float64; what strength 1 adds to z, so that gradient @ step = 1
    sd: float  # of the predicted score over the dataset, in the label's units
    n: int  # rows with a value
    ridge: float
    correlation: float  # of label and score predicted for people who were held out
    auc: float | None  # of a two-valued label, for the same people


def fit_direction(name: str, z: Tensor, scores: Tensor, people: Sequence[str], scale: Tensor | None = None) -> Direction:
    """The direction of an attribute: ridge regression of its scores [n] on points z [n, m]; rows with NaN are left out.

    people: whose row each is. The ridge is the one of `RIDGES` that predicts held-out people best, so `correlation` is
    that of the best of 13. scale [m]: how much each coordinate of z counts against the ridge (`decoded_scale`).
    Raises W2WError for too few rows or people, or an attribute that is constant or that nothing in z follows.
    """
    z, told = z.detach().double().cpu(), torch.isfinite(scores)
    given, who = scores[told].double(), [person for person, has in zip(people, told.tolist(), strict=True) if has]
    if len(given) < LEAST or len(set(who)) < FOLDS:
        found = f"{len(given)} rows of {len(set(who))} people"
        raise W2WError(f"attribute {name} has a value in {found}; {LEAST} of {FOLDS} are needed. Label more rows.")
    if given.min() == given.max():
        raise W2WError(f"attribute {name} is {float(given[0]):g} in all {len(given)} rows that have it. Give one that varies.")
    scale = torch.ones(z.shape[1], dtype=z.dtype) if scale is None else scale.detach().double().cpu()
    x = z[told] * scale
    ridge, predicted = cross_validated(x, given, who)
    gradient = ridge_weights(x, given, ridge[None])[0] * scale
    sd = float((z @ gradient).std())
    if not sd > 0:
        raise W2WError(f"no direction of this space follows attribute {name}. Fit a space with a larger --m, or check the labels.")
    gradient = gradient / sd
    step = gradient / gradient.square().sum()
    correlation = float(torch.corrcoef(torch.stack([predicted, given]))[0, 1])
    return Direction(name, gradient, step, sd, len(given), float(ridge), correlation, auc(predicted, given))


def cross_validated(x: Tensor, scores: Tensor, people: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The ridge that predicts held-out people best, and its predictions [n] for them. x [n, m], scores [n], float64.

    All rows of a person are held out together, a fifth of the people at a time.
    """
    names = sorted(set(people))
    order = torch.randperm(len(names), generator=generator(0, "folds")).tolist()
    fold_of = {name: place % FOLDS for name, place in zip(names, order, strict=True)}
    fold = torch.tensor([fold_of[person] for person in people])
    predicted = torch.empty(len(RIDGES), len(x), dtype=x.dtype)
    for k in range(FOLDS):
        out, rest = fold == k, fold != k
        weights = ridge_weights(x[rest], scores[rest], RIDGES)
        predicted[:, out] = weights @ (x[out] - x[rest].mean(0)).T + scores[rest].mean()
    best = (predicted - scores).square().mean(1).argmin()
    return RIDGES[best], predicted[best]


def ridge_weights(x: Tensor, scores: Tensor, ridges: Tensor) -> Tensor:
    """For each ridge the w that minimises |s - x w|^2 / n + ridge |w|^2 with s and x centred: [r, m], by one SVD."""
    u, d, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    filters = d / (d.square() + ridges[:, None] * len(x))
    return (filters * (u.T @ (scores - scores.mean()))) @ v


def auc(predicted: Tensor, scores: Tensor) -> float | None:
    """How often a row with the higher label is predicted higher than one with the lower; None unless there are two labels."""
    if len(scores.unique()) != 2:
        return None
    high, low = predicted[scores == scores.max()], predicted[scores == scores.min()]
    difference = high[:, None] - low[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def debias(direction: Direction, others: Sequence[Direction]) -> Direction:
    """The attribute's direction changed so that the shortest step along it leaves all other scores as they are.

    Raises W2WError if the others leave nothing of the direction.
    """
    if not others:
        return direction
    held = torch.stack([other.gradient for other in others])
    free = direction.gradient - held.T @ torch.linalg.lstsq(held.T, direction.gradient[:, None], driver="gelsd").solution[:, 0]
    reach = direction.gradient @ free
    if not reach > SAME * direction.gradient.square().sum():
        names = ", ".join(other.name for other in others)
        raise W2WError(f"attribute {direction.name} cannot be told from {names}: nothing is left of its direction. Debias against fewer.")
    return replace(direction, step=free / reach)


def compose(directions: Sequence[Direction], strengths: Sequence[float]) -> Tensor:
    """One step [m] of several edits at once; the score of each attribute moves by its own strength, whatever their order.

    The plain sum would not do that: men in the dataset smile less, so a step towards one moves the other's score too.
    Raises W2WError if two of the attributes cannot be told apart.
    """
    gradients, steps = (torch.stack([getattr(direction, part) for direction in directions]) for part in ("gradient", "step"))
    moved = gradients @ steps.T  # [i, j]: by how much step j moves score i; 1 on the diagonal
    if torch.linalg.cond(moved) > 1 / SAME:
        names = ", ".join(direction.name for direction in directions)
        raise W2WError(f"attributes {names} cannot be told apart, so they cannot be edited together. Leave one out.")
    return torch.linalg.solve(moved, torch.tensor(strengths, dtype=moved.dtype)) @ steps


def edit(z: Tensor, directions: Sequence[Direction], strengths: Sequence[float]) -> Tensor:
    """Points z [n, m] with each attribute's predicted score moved by its strength, in standard deviations: [n, m]."""
    return (z.double() + compose(directions, strengths).to(z.device)).to(z.dtype)


@torch.no_grad()
def encode_rows(space: Space, data: WeightDataset) -> Tensor:
    """Every row of a dataset as a point, z [n, m] float32 on the CPU. Raises W2WError if it is not of the space's layout and base."""
    space.check(data.layout, data.base_id, f"dataset {data.folder}")
    return torch.cat([space.encode(block).cpu() for block in data.blocks()])


def attribute_directions(
    space: Space, data: WeightDataset, names: Sequence[str], labels: Sequence[Labels] | None = None
) -> list[Direction]:
    """The direction of each named attribute in a space, fitted to a dataset's labels, or to labels given for each row.

    Raises W2WError for an attribute that is not there or cannot be fitted.
    """
    known = attributes(data.labels if labels is None else labels)
    for name in names:
        if name not in known:
            raise W2WError(f"there is no attribute {name!r}; the labels have {', '.join(sorted(known)) or 'none'}. Name one of them.")
    z, scale = encode_rows(space, data), decoded_scale(space)
    people = [labels.get("person", key) for key, labels in zip(data.ids, data.labels, strict=True)]
    return [fit_direction(name, z, known[name], people, scale) for name in names]


def telling_directions(space: Space, data: WeightDataset, z: Tensor, most: int | None = None) -> dict[str, Direction]:
    """The directions of those attributes of a dataset's labels that points tell of people who were held out, by name.

    z: the dataset's rows as points [n, m] (`encode_rows`). An attribute tells if its correlation is `TELLING` or more. Of two that are
    each other's opposite, such as man and woman, the first is taken, and of all only the first `most`.
    """
    found: dict[str, Direction] = {}
    scale, seen = decoded_scale(space), list[Tensor]()
    people = [labels.get("person", name) for name, labels in zip(data.ids, data.labels, strict=True)]
    for name, scores in attributes(data.labels).items():
        if len(found) == most or any(torch.equal((1 - scores).nan_to_num(-1), other) for other in seen):
            continue
        try:
            direction = fit_direction(name, z, scores, people, scale)
        except W2WError:  # constant, or of too few people
            continue
        if direction.correlation >= TELLING:
            found[name] = direction
            seen.append(scores.nan_to_num(-1))
    return found


@torch.no_grad()
def decoded_scale(space: Space) -> Tensor:
    """How far a unit of each coordinate of z moves the decoded weights from the mean point's: [m], its mean square 1.

    A ridge on z alone treats the last component, mostly noise, as it does the first: in a whitened space it would only
    shrink the direction and never turn it.
    """
    mean = space.decode(torch.zeros(1, space.m))
    unit = torch.eye(space.m)
    moved = torch.cat([(space.decode(part) - mean).norm(dim=1).cpu() for part in unit.split(64)])
    return moved / moved.square().mean().sqrt()


def attributes(rows: Sequence[Labels]) -> dict[str, Tensor]:
    """The attributes in labels, a dict a row: name -> scores [n] float64, NaN where a row says nothing.

    A column of numbers (or yes and no) is an attribute. So is each value of a column with two words: of `gender` with man
    and woman, `man` is 1 for a man and 0 for a woman.
    """
    found: dict[str, Tensor] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [_value(row.get(column)) for row in rows]
        words = sorted({value for value in values if isinstance(value, str)})
        if not words:
            found[column] = _scores(values)
        elif len(words) == 2 and not any(isinstance(value, float) for value in values):
            for word in words:
                found[word] = _scores([None if value is None else float(value == word) for value in values])
    return found


def _scores(values: Sequence[Any]) -> Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)


def _value(given: Any) -> float | str | None:
    """A label as a number, a word, or None where there is none."""
    word = "" if given is None else str(given).strip().lower()
    if word in UNTOLD:
        return None
    try:
        number = WORDS[word] if word in WORDS else float(word)
    except ValueError:
        return str(given).strip()
    return number if abs(number) < float("inf") else None


def read_labels(path: str | Path, data: WeightDataset) -> list[Labels]:
    """The labels of a csv for each row of a dataset, found by its column `id` or `person`; empty where it has none.

    Raises W2WError if the file is no such csv, names somebody twice, or nobody of the dataset.
    """
    people = [labels.get("person", name) for name, labels in zip(data.ids, data.labels, strict=True)]
    return labels_by_name(path, data.ids, people, str(data.folder))


def labels_by_name(path: str | Path, ids: Sequence[str], people: Sequence[str], whose: str) -> list[Labels]:
    """The same for rows of these ids and people; whose: what they are rows of, for errors."""
    columns, _ = read_rows(path)
    key = next((name for name in ("id", "person") if name in columns), None)
    if key is None or len(columns) < 2:
        raise W2WError(f"{path} has columns {', '.join(columns) or 'none'}; `id` or `person` and an attribute were expected.")
    by_name: dict[str, Labels] = {}
    for name, row in rows_by(path, key).items():
        by_name[name] = {column: text for column, text in row.cells.items() if column not in ("id", "person")}
    names = ids if key == "id" else people
    rows = [by_name.get(name, {}) for name in names]
    if not any(rows):
        raise W2WError(f"{path} names nobody of {whose}: its {key}s should be such as {', '.join(names[:3])}.")
    return rows
