"""Is one space enough for adapters and for photos? Reconstruction of unseen people's adapters, and inversion of one photo.

    python benchmarks/one_space.py faces64 --split val --adapters val-adapters --pair tiny-faces:tiny-faces

The adapters may be made here first, with the options of the dataset's own: --train val-adapters.

Reconstruction: adapters of people whom no space has seen, from half of their photos (`w2w adapters train FACES --split val`).
Each way in gives a point; what it decodes to draws pictures; they are scored against the other half of the photos. Ways: `encode`
of the space, the encoder of photos on what the adapter draws (ours), and that refined; PCA's own; and the adapter as it is.
Inversion: each --pair SPACE:ENCODER on one photo of each person, from the encoder alone; the first one also after 40 evaluations.
Writes docs/results/one_space.json, or --out. A second run with --part goes on with the part it names and keeps the others.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from machine import machine
from w2wpp.adapters.population import train_population
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.id_score import score_embedded
from w2wpp.evaluation.table1 import Subjects
from w2wpp.evaluation.table1_methods import inverted
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.from_adapter import AdapterReading, points_of_adapters
from w2wpp.inversion.invert_photos import recipe_from
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Embedding, embed_pictures
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace

PROMPT = "photo of sks person"
RESULTS = Path("docs/results/one_space.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="a folder that `w2w faces align` made")
    parser.add_argument("--split", default="val")
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--dataset", default="tiny-faces", help="the adapters that the spaces were fitted to; PCA is fitted here")
    parser.add_argument("--adapters", type=Path, help="a dataset of this split's people; needed for reconstruction")
    parser.add_argument("--train", type=Path, help="train the adapters of the split's people into this folder, and end")
    parser.add_argument("--pair", action="append", default=[], help="SPACE:ENCODER; the first one reconstructs")
    parser.add_argument("--people", type=int, default=0, help="score so many people only; all if 0")
    parser.add_argument("--pictures", type=int, default=3, help="of each person and way")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=("reconstruction", "inversion"), action="append", help="all parts unless given")
    args = parser.parse_args()
    parts = args.part or ["reconstruction", "inversion"]
    base, faces = BaseModel.load(args.base), AlignedFaces.load(args.faces)
    if args.train:
        return train_adapters(base, faces, args.split, WeightDataset.load(args.dataset), args.train, args.people)
    pairs = [pair.split(":") for pair in args.pair]
    kept = read_json(args.out) if args.out.exists() and args.part else {}
    found: dict[str, Any] = {
        **kept,
        "split": args.split,
        "pictures": args.pictures,
        "versions": versions(),
        "machine": machine(),
        "seed": 0,
    }
    if "reconstruction" in parts:
        space, encoder = Space.load(pairs[0][0]), PhotoEncoder.load(pairs[0][1])
        data = WeightDataset.load(args.adapters)
        found["reconstruction"] = reconstruction(
            base, space, encoder, WeightDataset.load(args.dataset), data, faces, args.people, args.pictures
        )
        found["reconstruction"]["command"] = command_line()
        print(found["reconstruction"], flush=True)
    if "inversion" in parts:
        subjects = Subjects.of(faces, args.split, None)
        found |= {"n": len(subjects.people[: args.people or None]), "command": command_line()}
        found["inversion"] = [
            row
            for i, (space, encoder) in enumerate(pairs)
            for row in inversion(base, Space.load(space), PhotoEncoder.load(encoder), subjects, args, refined=i == 0)
        ]
    write_json(args.out, found)


def train_adapters(base: BaseModel, faces: AlignedFaces, split: str, like: WeightDataset, out: Path, people: int) -> None:
    """Two adapters for each of a split's people with two photos or more, one of each half, as those of a dataset were trained."""
    several = [person for person in faces.choose(split) if len(faces.people[person]) >= 2]
    train_population(base, faces, several[: people or None], out, AdapterOptions.of(like.meta["adapters"]), halves_from=2)


def reconstruction(
    base: BaseModel,
    space: Space,
    encoder: PhotoEncoder,
    fitted: WeightDataset,
    data: WeightDataset,
    faces: AlignedFaces,
    people: int,
    pictures: int,
) -> dict[str, Any]:
    """Scores against the other half of a person's photos: of the adapter itself, and of what each way in makes of it."""
    halves = [i for i, labels in enumerate(data.labels) if labels.get("half") == "a"][: people or None]
    keys = [str(data.labels[i]["person"]) for i in halves]
    weights = data.rows(halves)
    others = [embed_pictures(faces.photos(key)[1::2]) for key in keys]
    pca = PcaSpace.fit(fitted, m=space.m)
    ways: dict[str, Tensor | None] = {"base": None, "adapter": weights, "pca": pca.decode(pca.encode(weights))}
    with torch.no_grad():
        ways["ours_encode"] = space.decode(space.encode(weights)).cpu()
        for name, options in {"ours": AdapterReading(), "ours_refined": AdapterReading(steps=20)}.items():
            z = points_of_adapters(base, space, encoder, weights, keys, options)
            ways[name] = space.decode(z.to(space.device)).cpu()
    scored: dict[str, Any] = {"m": space.m, "n": len(keys)}
    for name, adapters in ways.items():
        drawn = generate_for(base, data.layout, adapters, keys, PROMPT, pictures)
        scored |= summary(name, [embed_pictures(row) for row in drawn], others)
    return scored


def inversion(
    base: BaseModel, space: Space, encoder: PhotoEncoder, subjects: Subjects, args: argparse.Namespace, refined: bool
) -> list[dict[str, Any]]:
    """One photo of each person in, from the encoder alone and, if asked, after 40 evaluations: rows of the results."""
    chosen, held_out = subjects.people[: args.people or None], subjects.held_out[: args.people or None]
    rows = []
    for how in (None, recipe_from(encoder)) if refined else (None,):
        fitted = inverted(base, space, chosen, how, encoder)
        drawn = generate_for(base, space.layout, fitted.weights, [subject.person for subject in chosen], PROMPT, args.pictures)
        scored = summary("id_other", [embed_pictures(row) for row in drawn], held_out)
        head = {"space": space.kind, "teacher": encoder.teacher, "encoder": True, "m": space.m, "unet_evals": fitted.unet_evals}
        rows.append(head | {"id_other": scored["id_other"], "id_other_se": scored["id_other_se"], "no_face": scored["id_other_no_face"]})
        print(rows[-1], flush=True)
    return rows


def summary(name: str, pictures: Sequence[Sequence[Embedding]], photos: Sequence[Sequence[Embedding]]) -> dict[str, Any]:
    """Mean ID Score over people, its standard error, and the pictures without a face."""
    means = [score_embedded(drawn, real).mean for drawn, real in zip(pictures, photos, strict=True)]
    told = [mean for mean in means if not math.isnan(mean)]
    missed = sum(face is None for row in pictures for face in row)
    return {name: fmean(told), f"{name}_se": stdev(told) / math.sqrt(len(told)), f"{name}_no_face": missed}


if __name__ == "__main__":
    main()
