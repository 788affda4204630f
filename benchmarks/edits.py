"""Edits of man and smiling: how far the attribute moves, how much identity is kept, and pictures.

    python benchmarks/edits.py --faces faces64 --m 512 --people 40 --pictures 4 --solver-steps 15 --folder edits

With --encoder, the points edited are what it makes of the people's photos (the mean over photos); directions are fitted as before.

The people scored are as many men as women of the dataset, drawn by seed; neither the PCA (a --space that is given may have),
the directions nor the classifier saw them. Each person's point is edited plainly at every strength; at the lowest and the
highest also debiased against the other attribute, and injected late. Every person has image seeds of their own, the same for
the original and all edits: with a few seeds for everybody, what those few show would decide the figures.

The classifier is a ridge regression on FaceNet embeddings of real photos of other people of the dataset, with the labels that the
first name and the photo have. Its score is 0 for the mean held-out photo of one label and 1 for that of the other.
Identity is the ID Score of pictures of original and edited model at the same image seeds, and of pictures with real photos.
Pictures and embeddings are kept in --folder, and an interrupted run resumes there.
Writes benchmarks/results/edits.json and docs/pictures/edits.png.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edit_scores import Classifier, Drawn, compare, floors, id_photos, kept, kept_photos, own_photos
from machine import machine
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.descriptors import described_faces
from w2wpp.photos.images import Image, grid, write_image
from w2wpp.spaces.base import Space
from w2wpp.spaces.edits import Direction, attributes, debias, decoded_scale, edit, encode_rows, fit_direction
from w2wpp.spaces.pca import PcaSpace

NAMES = ("man", "smiling")
RESULTS = Path(__file__).parent / "results" / "edits.json"
SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "edits.png"
SHOWN = 6  # people on the sheet


@dataclass(frozen=True)
class Bench:
    """What is edited and by what: a base, a dataset, a space, and who of the dataset's people has which part."""

    args: argparse.Namespace
    base: BaseModel
    data: WeightDataset
    space: Space
    people: list[str]  # of each row
    known: dict[str, Tensor]  # attributes of each row
    test: list[int]  # rows of the people scored
    train: list[int]  # rows of the people whose photos teach the classifiers
    others: list[int]  # rows of everybody but the people scored

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Bench":
        """From the command line. Raises W2WError if the dataset has too few people."""
        base, data = BaseModel.load(args.base, args.device), WeightDataset.load(args.dataset)
        people = [labels.get("person", key) for key, labels in zip(data.ids, data.labels, strict=True)]
        known = attributes(data.labels)
        test, train = balanced(people, known["man"], (args.people, args.train_people), args.seed)
        tested = {people[i] for i in test}
        others = [i for i, person in enumerate(people) if person not in tested]
        if args.space:
            space = Space.load(args.space, base.device)
        else:
            space = PcaSpace.fit(data.rows(others), m=args.m, layout=data.layout, base_id=data.base_id).to(base.device)
        return cls(args, base, data, space, people, known, test, train, others)

    def directions(self, z: Tensor) -> tuple[dict[str, Direction], list[dict[str, Any]]]:
        """Directions from the points z [n, m] of all rows but those of the people scored, and how good they are."""
        scale, fits, found = decoded_scale(self.space), [], {}
        owners = [self.people[i] for i in self.others]
        for name in NAMES:
            given = (name, z[self.others], self.known[name][self.others], owners)
            found[name] = fit_direction(*given, scale)
            fits.append({**about(found[name]), "correlation_unscaled": fit_direction(*given).correlation})
        return found, fits

    def classifiers(self, faces: AlignedFaces) -> dict[str, Classifier]:
        """What tells each attribute from a picture, learned on photos of people who are not scored."""
        pupils = [self.people[i] for i in self.train]
        taught, smiles = kept_photos(self.args.folder / "photos.npz", faces, pupils)
        lessons = {"man": self.known["man"][self.train].double(), "smiling": smiles}
        return {name: Classifier.fit(taught, lessons[name], pupils) for name in NAMES}

    def drawn(self, slug: str, before: Tensor, after: Tensor, inject_at: float = 1.0) -> Drawn:
        """Pictures of the people scored with adapters `after` [k, d] in place of `before`, or those of an earlier run."""
        seeds = [image_seeds(self.args.seed, self.people[i], self.args.pictures) for i in self.test]
        file = self.args.folder / f"{slug}.npz"
        return kept(file, self.base, self.space.layout, before, after, seeds, inject_at, self.args.solver_steps)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", type=Path, help="a space.safetensors; PCA of m components of the dataset unless given")
    parser.add_argument("--encoder", help="edit the points of the people's photos by this encoder of --space, not those of their adapters")
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
    return parser.parse_args()


def main() -> None:
    args = arguments()
    strengths = sorted(float(word) for word in args.strengths.split(","))
    keep_settings(args)
    bench, faces = Bench.of(args), AlignedFaces.load(args.faces)
    data, space, test = bench.data, bench.space, bench.test
    z = encode_rows(space, data)
    directions, fits = bench.directions(z)
    classifiers = bench.classifiers(faces)
    own = own_photos(args.folder / "own.npz", faces, [bench.people[i] for i in test])

    points = of_photos(args.encoder, space, faces, [bench.people[i] for i in test]) if args.encoder else z[test]
    before, weights = space.decode(points).cpu(), data.rows(test)
    original, unencoded = bench.drawn("original", before, before), bench.drawn("unencoded", weights, weights)
    # Men come first, then women: but for two, the next person is of the same sex, which is the harder floor.
    following = before.roll(-1, 0)
    neighbour = bench.drawn("neighbour", following, following)
    rows, pictures = [], {}
    for name, way, k, made in edited(bench, points, before, directions, strengths):
        pictures[name, way, k] = made
        rows.append({"attribute": name, "strength": k, "way": way, **compare(original, made, classifiers, own)})
        print(rows[-1], file=sys.stderr, flush=True)

    report = {
        "command": "python benchmarks/" + command_line(),
        "versions": versions(),
        "machine": machine(bench.base.device),
        "settings": {key: value if isinstance(value, int | float) else str(value) for key, value in settings(args).items()},
        "dataset": {"fingerprint": data.fingerprint, "n": len(data)},
        "space": {"kind": space.kind, "m": space.m},
        "directions": fits,
        "classifiers": {name: classifiers[name].report(original, unencoded, bench.known[name][test]) for name in NAMES},
        "original": {**floors(original, neighbour, classifiers, own), "unencoded_id_photos": id_photos(unencoded, own)["id_photos"]},
        "rows": rows,
    }
    write_json(args.out, report)
    write_image(args.sheet, sheet(original, pictures, strengths, shown(test)))


@torch.no_grad()
def of_photos(encoder: str, space: Space, faces: AlignedFaces, people: Sequence[str]) -> Tensor:
    """Where an encoder puts each person's photos, [k, m]."""
    network = PhotoEncoder.from_pretrained(encoder)
    network.check(space)
    described = described_faces(faces, people)
    return torch.stack([network(described[person]).mean(0) for person in people])


def edited(
    bench: Bench, points: Tensor, before: Tensor, directions: dict[str, Direction], strengths: Sequence[float]
) -> Iterator[tuple[str, str, float, Drawn]]:
    """Every edit of points [k, m], whose adapters are `before`: attribute, way, strength, and pictures."""
    ends = (strengths[0], strengths[-1])
    for name in NAMES:
        others = [directions[other] for other in NAMES if other != name]
        for way, k in [("plain", k) for k in strengths] + [(way, k) for way in ("debiased", "delayed") for k in ends]:
            direction = debias(directions[name], others) if way == "debiased" else directions[name]
            after = bench.space.decode(edit(points, [direction], [k])).cpu()
            inject_at = bench.args.inject_at if way == "delayed" else 1.0
            yield name, way, k, bench.drawn(f"{name}-{way}-{k:g}", before, after, inject_at)


def sheet(original: Drawn, pictures: dict[tuple[str, str, float], Drawn], strengths: Sequence[float], people: Sequence[int]) -> Image:
    """A row of pictures per attribute and person: plain edits around the original, then the strongest in both other ways."""
    columns = [("plain", k) for k in strengths if k < 0] + [None] + [("plain", k) for k in strengths if k > 0]
    columns += [("debiased", strengths[-1]), ("delayed", strengths[-1])]
    return grid([[(original if c is None else pictures[name, *c]).images[i, 0] for c in columns] for name in NAMES for i in people])


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
    left_out = ("folder", "out", "sheet", "device", "faces")
    return {key: value for key, value in vars(args).items() if key not in left_out and value is not None}


def keep_settings(args: argparse.Namespace) -> None:
    """Raise W2WError if the folder holds pictures of other settings."""
    path, asked = args.folder / "settings.json", {key: str(value) for key, value in settings(args).items()}
    if path.exists() and read_json(path) != asked:
        raise W2WError(f"{args.folder} holds pictures of other settings ({path} says which). Choose another --folder.")
    write_json(path, asked)


if __name__ == "__main__":
    main()
