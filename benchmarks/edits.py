"""Edits of man and smiling: how far the attribute moves, how much identity is kept, and pictures.

    python benchmarks/edits.py --faces faces64 --m 512 --people 40 --pictures 4 --solver-steps 15 --folder edits

The people scored are as many men as women of the dataset, drawn by seed; neither the PCA (a --space that is given may have),
the directions nor the classifier saw them. Each person's point is edited plainly at every strength; at the lowest and the
highest also debiased against the other attribute, and injected late. Every person has image seeds of their own, the same for
the original and all edits: with a few seeds for everybody, what those few show would decide the figures.

The classifier is a ridge regression on FaceNet embeddings of real photos of other people of the dataset, with the labels that the
first name and the photo have. Its score is 0 for the mean held-out photo of one label and 1 for that of the other.
Identity is the ID Score of pictures of original and edited model at the same image seeds, and of pictures with real photos.
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

from w2wpp.alignment import AlignedFaces
from w2wpp.base_model import BaseModel
from w2wpp.edits import (
    Direction,
    attributes,
    auc,
    cross_validated,
    debias,
    decoded_scale,
    edit,
    encode_rows,
    fit_direction,
    ridge_weights,
)
from w2wpp.errors import W2WError
from w2wpp.faces import embed_pictures
from w2wpp.files import read_json, replacing, write_json
from w2wpp.images import Image, grid, write_image
from w2wpp.layout import Layout
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
PHOTOS = 8  # of a person scored, for the identity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", type=Path, help="a space.safetensors; PCA of m components of the dataset unless given")
    parser.add_argument("--m", type=int, default=512)
    parser.add_argument("--dataset", default="tiny-faces")
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--faces", type=Path, required=True, help="a faces folder of `w2w faces align`, with the dataset's people")
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=4, help="a person and setting")
    parser.add_argument("--train-people", type=int, default=400, help="a photo of each of whom teaches the classifier")
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

    base, data, faces = BaseModel.load(args.base, args.device), WeightDataset.open(args.dataset), AlignedFaces.open(args.faces)
    people = [labels.get("person", key) for key, labels in zip(data.ids, data.labels, strict=True)]
    known = attributes(data.labels)
    test, train = balanced(people, known["man"], (args.people, args.train_people), args.seed)
    tested = {people[i] for i in test}
    others = [i for i, person in enumerate(people) if person not in tested]
    if args.space:
        space = load_space(args.space, base.device)
    else:
        space = PcaSpace.fit(data.rows(others), m=args.m, layout=data.layout, base_id=data.base_id).to(base.device)

    z, scale = encode_rows(space, data), decoded_scale(space)
    fits, directions = [], {}
    for name in NAMES:
        given = (name, z[others], known[name][others], [people[i] for i in others])
        directions[name] = fit_direction(*given, scale)
        fits.append({**about(directions[name]), "correlation_unscaled": fit_direction(*given).correlation})

    pupils = [people[i] for i in train]
    taught, smiles = kept_photos(args.folder / "photos.npz", faces, pupils)
    lessons = {"man": known["man"][train].double(), "smiling": smiles}
    classifiers = {name: Classifier.fit(taught, lessons[name], pupils) for name in NAMES}
    own = own_photos(args.folder / "own.npz", faces, [people[i] for i in test])

    def drawn(slug: str, before: Tensor, after: Tensor, inject_at: float = 1.0) -> Drawn:
        seeds = [image_seeds(args.seed, people[i], args.pictures) for i in test]
        return kept(args.folder / f"{slug}.npz", base, space.layout, before, after, seeds, inject_at, args.solver_steps)

    points = z[test]
    before = space.decode(points).cpu()
    weights = data.rows(test)
    original, unencoded = drawn("original", before, before), drawn("unencoded", weights, weights)
    # Men come first, then women: but for two, the next person is of the same sex, which is the harder floor.
    following = before.roll(-1, 0)
    neighbour = drawn("neighbour", following, following)
    rows = []
    pictures = {}
    for name in NAMES:
        against = [directions[other] for other in NAMES if other != name]
        for way, k in [("plain", k) for k in strengths] + [
            (way, k) for way in ("debiased", "delayed") for k in (strengths[0], strengths[-1])
        ]:
            direction = debias(directions[name], against) if way == "debiased" else directions[name]
            after = space.decode(edit(points, [direction], [k])).cpu()
            made = drawn(f"{name}-{way}-{k:g}", before, after, args.inject_at if way == "delayed" else 1.0)
            pictures[name, way, k] = made
            rows.append({"attribute": name, "strength": k, "way": way, **compare(original, made, classifiers, own)})
            print(rows[-1], file=sys.stderr, flush=True)

    report = {
        "command": "python benchmarks/" + command_line(),
        "versions": versions(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {base.device.type}",
        "settings": {key: value if isinstance(value, int | float) else str(value) for key, value in settings(args).items()},
        "dataset": {"fingerprint": data.fingerprint, "n": len(data)},
        "space": {"kind": space.kind, "m": space.m},
        "directions": fits,
        "classifiers": {name: classifiers[name].report(original, unencoded, known[name][test]) for name in NAMES},
        "original": {**floors(original, neighbour, classifiers, own), "unencoded_id_photos": id_photos(unencoded, own)["id_photos"]},
        "rows": rows,
    }
    write_json(args.out, report)
    columns = [("plain", k) for k in strengths if k < 0] + [None] + [("plain", k) for k in strengths if k > 0]
    columns += [("debiased", strengths[-1]), ("delayed", strengths[-1])]
    write_image(
        args.sheet,
        grid([[(original if c is None else pictures[name, *c]).images[i, 0] for c in columns] for name in NAMES for i in shown(test)]),
    )


def balanced(people: Sequence[str], man: Tensor, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of rows, each half men and half women, no person in two of them; each person's first adapter.

    people, man [n]: whose row each is, and 1 for a man, 0 for a woman, NaN for neither.
    """
    order = torch.randperm(len(people), generator=generator(seed, "people")).tolist()
    firsts = {person: i for i, person in reversed(list(enumerate(people)))}
    sexes = [[i for i in order if man[i] == sex and firsts[people[i]] == i] for sex in (1, 0)]
    if min(map(len, sexes)) < sum(sizes) // 2:
        raise W2WError(
            f"{sum(sizes) // 2} men and women each are needed; the dataset has {len(sexes[0])} and {len(sexes[1])}. Ask for fewer."
        )
    starts = [sum(sizes[:k]) // 2 for k in range(len(sizes) + 1)]
    return [[i for sex in sexes for i in sex[a:b]] for a, b in pairwise(starts)]


def image_seeds(seed: int, person: str, n: int) -> list[int]:
    """The image seeds of a person."""
    return [int(torch.randint(2**31, (1,), generator=generator(seed, "picture", person, i))) for i in range(n)]


def shown(test: Sequence[int]) -> list[int]:
    """Positions of the people on the sheet: the first men and the first women."""
    half = len(test) // 2
    return [*range(min(half, SHOWN // 2)), *range(half, min(2 * half, half + SHOWN // 2))]


def about(direction: Direction) -> dict[str, Any]:
    return {key: getattr(direction, key) for key in ("name", "n", "ridge", "correlation", "auc")}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("folder", "out", "sheet", "device", "faces")}


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


def kept(
    path: Path,
    base: BaseModel,
    layout: Layout,
    before: Tensor,
    after: Tensor,
    seeds: Sequence[Sequence[int]],
    inject_at: float,
    steps: int,
) -> Drawn:
    """Draw and embed pictures of adapters [k, d] at each one's seeds, or read them where an earlier run kept them."""
    if not path.exists():
        n = len(seeds[0])
        old, new = before.repeat_interleave(n, 0), after.repeat_interleave(n, 0)
        flat = [seed for row in seeds for seed in row]
        pictures = base.generate(PROMPT, flat, layout=layout, weights=new, steps=steps, delayed=(old, inject_at))
        rows = [pictures[i : i + n] for i in range(0, len(pictures), n)]
        keep(path, images=np.array(rows), faces=np.array([embedded(row) for row in rows]))
    with np.load(path) as file:
        return Drawn(file["images"], file["faces"])


def kept_photos(path: Path, faces: AlignedFaces, people: Sequence[str]) -> tuple[NDArray[np.float64], Tensor]:
    """The embedding of each person's first photo [k, 1, 512], and whether it smiles [k]; no photo is kept."""
    if not path.exists():
        keep(path, faces=np.array([embedded(faces.photos(person)[:1]) for person in people]))
    smiles = [float(faces.labels[person, faces.people[person][0]].get("emotion") == "happiness") for person in people]
    with np.load(path) as file:
        return file["faces"], torch.tensor(smiles, dtype=torch.float64)


def own_photos(path: Path, faces: AlignedFaces, people: Sequence[str]) -> NDArray[np.float64]:
    """The mean embedding of each person's first photos [k, 512], at most `PHOTOS`; NaN where none shows a face to the judge."""
    if not path.exists():
        found = [embedded(faces.photos(person)[:PHOTOS]) for person in people]
        keep(path, faces=np.array([mean_found(row) for row in found]))
    with np.load(path) as file:
        return file["faces"]


def mean_found(faces: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of embeddings [n, 512] without those that are NaN."""
    has = ~np.isnan(faces[:, 0])
    return faces[has].mean(0) if has.any() else faces[0]


def embedded(images: Sequence[Image]) -> NDArray[np.float64]:
    """Pictures -> unit vectors [n, 512], NaN where no face was found."""
    return np.array([np.full(512, np.nan) if face is None else face for face in embed_pictures(images)], np.float64)


def keep(path: Path, **arrays: NDArray[Any]) -> None:
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)


@dataclass(frozen=True)
class Classifier:
    """A ridge regression on FaceNet embeddings, scored 0 to 1 between the means of its held-out people."""

    weights: Tensor  # [512]
    offset: float
    n: int
    accuracy: float  # of its own people, each held out once; mean of both labels'
    auc: float  # for the same people

    @classmethod
    def fit(cls, faces: NDArray[np.float64], labels: Tensor, people: Sequence[str]) -> "Classifier":
        """faces [k, n, 512], labels [k] (0 to 1) and names of k people. Raises W2WError unless it tells the labels apart at all."""
        x, positions = faces_found(faces)
        s = (labels[positions] > 0.5).double()
        ridge, predicted = cross_validated(x, s, [people[i] for i in positions])
        low, high = predicted[s == 0].mean(), predicted[s == 1].mean()
        if not high > low:
            raise W2WError("a classifier does not tell its labels apart: its scores would mean nothing. Give it more people.")
        w = ridge_weights(x, s, ridge[None])[0] / (high - low)
        offset = float((s.mean() - low) / (high - low) - x.mean(0) @ w)
        area = auc(predicted, s)
        return cls(w, offset, len(x), balanced_accuracy((predicted - low) / (high - low), s), float("nan") if area is None else area)

    def __call__(self, faces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Embeddings [..., 512] -> scores [...], NaN where there is no face."""
        return faces @ self.weights.numpy() + self.offset

    def report(self, original: Drawn, unencoded: Drawn, labels: Tensor) -> dict[str, float | None]:
        """How good it is: on photos of its own people held out, and on pictures of the people scored, unedited.

        unencoded: pictures of their adapters as trained; the difference is what the space loses of the attribute.
        """
        found: dict[str, float | None] = {"photos": self.n, "accuracy": self.accuracy, "auc": self.auc}
        for suffix, drawn in (("", original), ("_unencoded", unencoded)):
            faces, positions = faces_found(drawn.faces)
            told, s = torch.from_numpy(self(faces.numpy())), (labels[positions] > 0.5).double()
            found |= {f"accuracy_scored_people{suffix}": balanced_accuracy(told, s), f"auc_scored_people{suffix}": auc(told, s)}
        return found


def faces_found(faces: NDArray[np.float64]) -> tuple[Tensor, list[int]]:
    """The embeddings [k, n, 512] that are there, [p, 512], and whose each is."""
    has = ~np.isnan(faces[..., 0])
    return torch.from_numpy(faces[has]), np.nonzero(has)[0].tolist()


def balanced_accuracy(scores: Tensor, labels: Tensor) -> float:
    """How often a score is on its label's side of a half, labels 0 and 1 counting equally; chance is 0.5."""
    right = ((scores > 0.5) == (labels > 0.5)).double()
    return fmean(float(right[labels == label].mean()) for label in (0, 1))


def compare(original: Drawn, edited: Drawn, classifiers: dict[str, Classifier], own: NDArray[np.float64]) -> dict[str, Any]:
    """Changes of each attribute's score, the share of pictures that have it, and the identity kept; mean and se over people."""
    row: dict[str, Any] = {"missed": int(np.isnan(edited.faces[..., 0]).sum())}
    for name, classifier in classifiers.items():
        score = classifier(edited.faces)
        row |= over_people(f"{name}_change", score - classifier(original.faces))
        row |= over_people(f"{name}_share", np.where(np.isnan(score), np.nan, score > 0.5))
    return row | over_people("id_kept", (original.faces * edited.faces).sum(-1)) | id_photos(edited, own)


def id_photos(drawn: Drawn, own: NDArray[np.float64]) -> dict[str, Any]:
    """The ID Score of pictures with real photos of their person."""
    return over_people("id_photos", (drawn.faces * own[:, None]).sum(-1))


def floors(original: Drawn, neighbour: Drawn, classifiers: dict[str, Classifier], own: NDArray[np.float64]) -> dict[str, Any]:
    """Of the unedited pictures: how many have each attribute, and the ID Score of one person's and of different people's.

    neighbour: pictures of the next person's model at a person's own image seeds.
    """
    row: dict[str, Any] = {"missed": int(np.isnan(original.faces[..., 0]).sum()), "pictures": int(original.faces[..., 0].size)}
    for name, classifier in classifiers.items():
        score = classifier(original.faces)
        row |= over_people(f"{name}_share", np.where(np.isnan(score), np.nan, score > 0.5))
    row |= over_people("id_same_person_other_seed", (original.faces * np.roll(original.faces, 1, 1)).sum(-1))
    row |= over_people("id_other_people_same_seed", (original.faces * neighbour.faces).sum(-1))
    row |= over_people("id_other_people_other_seed", (original.faces * np.roll(original.faces, 1, 0)).sum(-1))
    return row | id_photos(original, own) | over_people("id_photos_other_people", (original.faces * np.roll(own, 1, 0)[:, None]).sum(-1))


def over_people(name: str, values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and standard error over people of their means over pictures [k, n], those without a face (NaN) left out."""
    people = [float(np.nanmean(row)) for row in values if not np.isnan(row).all()]
    se = stdev(people) / math.sqrt(len(people)) if len(people) > 1 else None
    return {name: fmean(people) if people else None, f"{name}_se": se}


if __name__ == "__main__":
    main()
