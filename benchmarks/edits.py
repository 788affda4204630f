"""Edits of man and smiling: how far the attribute moves, how much identity is kept, and pictures.

    python benchmarks/edits.py --m 512 --people 40 --pictures 4 --solver-steps 15 --folder /tmp/edits

The people scored are as many men as women of the dataset, drawn by seed; neither the directions nor the classifier see them
(an unlabelled PCA does, unless --space is another). Each person's point is edited plainly at every strength; at the lowest and
the highest also debiased against the other attribute, and injected late.

The classifier is a ridge regression on FaceNet embeddings of pictures drawn from the adapters of other people, with the
dataset's labels. Its score is 0 for the mean held-out picture of one label and 1 for that of the other.
Identity is the ID Score of pictures of original and edited model at the same image seeds.
Pictures and embeddings are kept in --folder, and an interrupted run goes on there.
Writes benchmarks/results/edits.json and docs/pictures/edits.png.
"""

import argparse
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from w2wpp.base_model import BaseModel
from w2wpp.edits import (
    Direction,
    attributes,
    cross_validated,
    debias,
    decoded_scale,
    edit,
    edited_rows,
    encode_rows,
    fit_direction,
    ridge_weights,
)
from w2wpp.errors import W2WError
from w2wpp.faces import embed_pictures
from w2wpp.files import read_json, replacing, write_json
from w2wpp.images import grid, write_image
from w2wpp.runs import command_line, versions
from w2wpp.seeds import generator
from w2wpp.spaces.base import load_space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.weights import WeightDataset

NAMES = ("man", "smiling")
PROMPT = "photo of sks person"
RESULTS = Path(__file__).parent / "results" / "edits.json"
SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "edits.png"
SHOWN = 6  # people on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", type=Path, help="a space.safetensors; PCA of m components of the dataset unless given")
    parser.add_argument("--m", type=int, default=512)
    parser.add_argument("--dataset", default="tiny-faces")
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=4, help="a person and setting")
    parser.add_argument("--train-people", type=int, default=120, help="whose pictures teach the classifier")
    parser.add_argument("--train-pictures", type=int, default=3, help="of each of them")
    parser.add_argument("--solver-steps", type=int, default=15)
    parser.add_argument("--strengths", default="-2,-1,1,2")
    parser.add_argument("--inject-at", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("edits-bench"), help="keeps pictures and embeddings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sheet", type=Path, default=SHEET)
    args = parser.parse_args()
    strengths = sorted(float(word) for word in args.strengths.split(","))
    keep_settings(args)

    base, data = BaseModel.load(args.base, args.device), WeightDataset.open(args.dataset)
    space = load_space(args.space, base.device) if args.space else PcaSpace.fit(data, m=args.m).to(base.device)
    people = [labels.get("person", key) for key, labels in zip(data.ids, data.labels, strict=True)]
    known = attributes(data.labels)
    test, train = balanced(data, known["man"], (args.people, args.train_people), args.seed)
    tested = {people[i] for i in test}
    others = [i for i, person in enumerate(people) if person not in tested]

    z, scale = encode_rows(space, data), decoded_scale(space)
    fits, directions = [], {}
    for name in NAMES:
        given = (name, z[others], known[name][others], [people[i] for i in others])
        directions[name] = fit_direction(*given, scale)
        fits.append({**about(directions[name]), "correlation_unscaled": fit_direction(*given).correlation})

    def drawn(slug: str, before: Tensor, after: Tensor, n: int, inject_at: float = 1.0) -> Drawn:
        seeds = range(args.seed, args.seed + n)
        return kept(args.folder / f"{slug}.npz", base, space, before, after, seeds, inject_at, args.solver_steps)

    weights = data.rows(train)
    taught = drawn("train", weights, weights, args.train_pictures)
    classifiers = {name: Classifier.fit(taught, known[name][train], [people[i] for i in train]) for name in NAMES}

    points = z[test]
    before = space.decode(points).cpu()
    original = drawn("original", before, before, args.pictures)
    rows = []
    pictures = {}
    for name in NAMES:
        against = [directions[other] for other in NAMES if other != name]
        for way, k in [("plain", k) for k in strengths] + [
            (way, k) for way in ("debiased", "delayed") for k in (strengths[0], strengths[-1])
        ]:
            direction = debias(directions[name], against) if way == "debiased" else directions[name]
            after = space.decode(edit(points, [direction], [k])).cpu()
            made = drawn(f"{name}-{way}-{k:g}", before, after, args.pictures, args.inject_at if way == "delayed" else 1.0)
            pictures[name, way, k] = made
            rows.append({"attribute": name, "strength": k, "way": way, **compare(original, made, classifiers)})
            print(rows[-1], file=sys.stderr, flush=True)

    report = {
        "command": "python benchmarks/" + command_line(),
        "versions": versions(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {base.device.type}",
        "settings": {key: value if isinstance(value, int | float) else str(value) for key, value in settings(args).items()},
        "dataset": {"fingerprint": data.fingerprint, "n": len(data)},
        "space": {"kind": space.kind, "m": space.m},
        "directions": fits,
        "classifiers": {name: classifiers[name].report(original, known[name][test]) for name in NAMES},
        "original": floors(original, classifiers),
        "rows": rows,
    }
    write_json(args.out, report)
    columns = [("plain", k) for k in strengths if k < 0] + [None] + [("plain", k) for k in strengths if k > 0]
    columns += [("debiased", strengths[-1]), ("delayed", strengths[-1])]
    write_image(
        args.sheet,
        grid([[(original if c is None else pictures[name, *c]).images[i, 0] for c in columns] for name in NAMES for i in shown(test)]),
    )


def balanced(data: WeightDataset, man: Tensor, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of rows, each half men and half women, no person in two of them; each person's first adapter."""
    order = torch.randperm(len(data), generator=generator(seed, "people")).tolist()
    sexes = [[i for i in order if man[i] == sex and not data.labels[i].get("half")] for sex in (1, 0)]
    if min(map(len, sexes)) < sum(sizes) // 2:
        raise W2WError(
            f"{sum(sizes) // 2} men and women each are needed; the dataset has {len(sexes[0])} and {len(sexes[1])}. Ask for fewer."
        )
    starts = [sum(sizes[:k]) // 2 for k in range(len(sizes) + 1)]
    return [[i for sex in sexes for i in sex[a:b]] for a, b in pairwise(starts)]


def shown(test: Sequence[int]) -> list[int]:
    """Positions of the people on the sheet: the first men and the first women."""
    half = len(test) // 2
    return [*range(min(half, SHOWN // 2)), *range(half, min(2 * half, half + SHOWN // 2))]


def about(direction: Direction) -> dict[str, Any]:
    return {key: getattr(direction, key) for key in ("name", "n", "ridge", "correlation", "auc")}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("folder", "out", "sheet", "device")}


def keep_settings(args: argparse.Namespace) -> None:
    """Raise W2WError if the folder holds pictures of other settings."""
    path, asked = args.folder / "settings.json", {key: str(value) for key, value in settings(args).items()}
    if path.exists() and read_json(path) != asked:
        raise W2WError(f"{args.folder} holds pictures of other settings ({path} says which). Choose another --folder.")
    write_json(path, asked)


@dataclass(frozen=True)
class Drawn:
    """Pictures of k people at n image seeds each."""

    images: NDArray[np.uint8]  # [k, n, h, w, 3]
    faces: NDArray[np.float64]  # [k, n, 512] unit vectors; NaN where no face was found


def kept(path: Path, base: BaseModel, space: Any, before: Tensor, after: Tensor, seeds: range, inject_at: float, steps: int) -> Drawn:
    """Draw and embed pictures of adapters [k, d], or read them where an earlier run kept them."""
    if not path.exists():
        rows = edited_rows(base, space.layout, before, after, PROMPT, seeds, inject_at=inject_at, steps=steps)
        found = [[np.full(512, np.nan) if face is None else face for face in embed_pictures(row)] for row in rows]
        with replacing(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, images=np.array(rows), faces=np.array(found, np.float64))
    with np.load(path) as file:
        return Drawn(file["images"], file["faces"])


@dataclass(frozen=True)
class Classifier:
    """A ridge regression on FaceNet embeddings, scored 0 to 1 between the means of its held-out people."""

    weights: Tensor  # [512]
    offset: float
    n: int
    accuracy: float  # of its own people, each held out once; mean of both labels'

    @classmethod
    def fit(cls, drawn: Drawn, labels: Tensor, people: Sequence[str]) -> "Classifier":
        """labels [k]: of the people drawn, 0 to 1."""
        features, positions = faces_found(drawn)
        x, s = features, (labels[positions] > 0.5).double()
        ridge, predicted = cross_validated(x, s, [people[i] for i in positions])
        low, high = predicted[s == 0].mean(), predicted[s == 1].mean()
        w = ridge_weights(x, s, ridge[None])[0] / (high - low)
        offset = float((s.mean() - low) / (high - low) - x.mean(0) @ w)
        return cls(w, offset, len(x), balanced_accuracy((predicted - low) / (high - low), s))

    def __call__(self, faces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Embeddings [..., 512] -> scores [...], NaN where there is no face."""
        return faces @ self.weights.numpy() + self.offset

    def report(self, original: Drawn, labels: Tensor) -> dict[str, float]:
        """How good it is: on its own people held out, and on the people scored, whom it never saw."""
        _, positions = faces_found(original)
        scores = self(original.faces)
        told = torch.from_numpy(scores[~np.isnan(scores)])
        return {"pictures": self.n, "accuracy": self.accuracy, "accuracy_scored_people": balanced_accuracy(told, labels[positions] > 0.5)}


def faces_found(drawn: Drawn) -> tuple[Tensor, list[int]]:
    """The embeddings of all pictures with a face [p, 512], and whose each is."""
    has = ~np.isnan(drawn.faces[..., 0])
    return torch.from_numpy(drawn.faces[has]), np.nonzero(has)[0].tolist()


def balanced_accuracy(scores: Tensor, labels: Tensor) -> float:
    return fmean(float(((scores > 0.5) == (labels == label))[labels == label].double().mean()) for label in (0, 1))


def compare(original: Drawn, edited: Drawn, classifiers: dict[str, Classifier]) -> dict[str, Any]:
    """Changes of each attribute's score, the share of pictures that have it, and the identity kept; mean and se over people."""
    row: dict[str, Any] = {"missed": int(np.isnan(edited.faces[..., 0]).sum())}
    for name, classifier in classifiers.items():
        score = classifier(edited.faces)
        row |= over_people(f"{name}_change", score - classifier(original.faces))
        row |= over_people(f"{name}_share", np.where(np.isnan(score), np.nan, score > 0.5))
    return row | over_people("id_kept", (original.faces * edited.faces).sum(-1))


def floors(original: Drawn, classifiers: dict[str, Classifier]) -> dict[str, Any]:
    """Of the unedited pictures: how many have each attribute, and the ID Score of one person's and of different people's."""
    row: dict[str, Any] = {"missed": int(np.isnan(original.faces[..., 0]).sum()), "pictures": int(original.faces[..., 0].size)}
    for name, classifier in classifiers.items():
        score = classifier(original.faces)
        row |= over_people(f"{name}_share", np.where(np.isnan(score), np.nan, score > 0.5))
    row |= over_people("id_same_person_other_seed", (original.faces * np.roll(original.faces, 1, 1)).sum(-1))
    # Men come first, then women: but for two, the next person is of the same sex, which is the harder floor.
    row |= over_people("id_other_people_same_seed", (original.faces * np.roll(original.faces, 1, 0)).sum(-1))
    return row


def over_people(name: str, values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and standard error over people of their means over pictures [k, n], those without a face (NaN) left out."""
    people = [float(np.nanmean(row)) for row in values if not np.isnan(row).all()]
    se = stdev(people) / math.sqrt(len(people)) if len(people) > 1 else None
    return {name: fmean(people) if people else None, f"{name}_se": se}


if __name__ == "__main__":
    main()
