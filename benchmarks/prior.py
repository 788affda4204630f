"""Which prior draws people like real ones, without copying them? N(0, I), a mixture, noisy rows, means of two, and the flow.

    python benchmarks/prior.py --people 1000 --models 100 --keep-points prior-points.safetensors

Points of people: one adapter of each of --people people of the dataset, as the space's encoder reads it (pictures that it draws).
A tenth of them is held out. Each prior is fitted to the others. `held-out people` is the row of real points that no prior saw.
Points are compared with the rows that priors were fitted to (nearest_ratio: mean distance to the nearest, over that of held-out
people) and with held-out people by a classifier (auc), in the latents in which real points differ. Pictures are compared with
those of as many of the people whom priors were fitted to; max_id is over these people. All models share the image seeds.
Writes the part "prior" of docs/results/one_space.json, and keeps the other parts.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from machine import machine
from prior_scores import nearest_distance, scores_of_faces, two_sample_auc
from w2wpp.base.drawing import picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.from_adapter import AdapterReading
from w2wpp.inversion.people_points import examples_of_adapters
from w2wpp.photos.faces import Embedding, embed_pictures
from w2wpp.prior.base import REGISTRY, Prior, fit_prior, varying_latents
from w2wpp.prior.conditions import Asked
from w2wpp.prior.examples import Examples, people_of
from w2wpp.spaces.base import Space
from w2wpp.spaces.edits import attributes, fit_direction

RESULTS = Path("docs/results/one_space.json")
ATTRIBUTES = ("smiling", "man")
SETS = 5  # of drawn points that the classifier is tried on; its AUC is their mean
HELD_OUT = "held-out people"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny-faces")
    parser.add_argument("--encoder", default="tiny-faces")
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--dataset", default="tiny-faces")
    parser.add_argument("--people", type=int, default=1000, help="evenly spaced among the dataset's")
    parser.add_argument("--models", type=int, default=100, help="drawn from each prior; at most as many as are held out")
    parser.add_argument("--pictures", type=int, default=2, help="of each model")
    parser.add_argument("--solver-steps", type=int, default=4)
    parser.add_argument("--read-pictures", type=int, default=2, help="by which an adapter is read")
    parser.add_argument("--read-steps", type=int, default=6)
    parser.add_argument("--keep-points", type=Path, help="where the points are kept; read from there if they are there")
    parser.add_argument("--only", choices=(HELD_OUT, *REGISTRY), action="append", help="make these rows anew and keep the others")
    args = parser.parse_args()
    base, space = BaseModel.load(args.base), Space.load(args.space)
    examples = points(args, base, space)
    train, held_out = examples.split()
    priors: dict[str, Prior] = {}
    for kind in REGISTRY:
        priors[kind] = fit_prior(space, examples, kind, attributes=ATTRIBUTES if kind == "flow" else ())
        print(kind, priors[kind].history, flush=True)

    def faces_of(z: Tensor) -> list[list[Embedding]]:
        words = space.prompting
        with torch.no_grad():
            weights = space.decode(z)
        drawn = picture_rows(
            base, space.layout, weights, words.prompt, range(args.pictures), guidance=words.guidance, steps=args.solver_steps
        )
        return [embed_pictures(row) for row in drawn]

    order = torch.randperm(len(train), generator=generator(0, "prior benchmark"))
    real = faces_of(train.z[order[: args.models]])
    found = {**read_json(RESULTS), "prior_asked": list(as_asked(priors["flow"], train, held_out))}
    found["prior_like"] = as_described(priors["flow"], held_out)
    found["prior_about"] = {"command": command_line(), "versions": versions(), "machine": machine(), "seed": 0, "m": space.m}
    found["prior_about"] |= {"points": len(train), "held_out": len(held_out), "models": args.models}
    rows = {row["name"]: row for row in found.get("prior", [])}
    for name, prior in {HELD_OUT: None, **priors}.items():
        if args.only and name not in args.only:
            continue
        faces = faces_of(held_out.z[: args.models] if prior is None else prior.sample(args.models))
        rows[name] = {"name": name, **scores_of_points(prior, train, held_out), **scores_of_faces(faces, real, real)}
        print(rows[name], flush=True)
    write_json(RESULTS, found | {"prior": list(rows.values())})


def points(args: argparse.Namespace, base: BaseModel, space: Space) -> Examples:
    """Points of the dataset's people, one adapter each, read by pictures; from --keep-points if they are there."""
    if args.keep_points and args.keep_points.exists():
        return Examples.load(args.keep_points, space)
    data = WeightDataset.load(args.dataset)
    first = {person: i for i, person in reversed([*enumerate(people_of(data.ids, data.labels))])}
    rows = sorted(first.values())
    rows = rows[:: max(1, len(rows) // args.people)][: args.people]
    words = data.prompting
    how = AdapterReading(args.read_pictures, args.read_steps, words.guidance, words.prompt, group=64)
    made = examples_of_adapters(base, space, PhotoEncoder.load(args.encoder), data, how, rows)
    if args.keep_points:
        made.save(args.keep_points, space)
    return made


def scores_of_points(prior: Prior | None, train: Examples, held_out: Examples) -> dict[str, float]:
    """How near drawn points lie to training rows, and how well a classifier tells them from held-out people's.

    Without a prior: held-out people's points against themselves, and training rows told from them.
    """
    k = len(held_out)
    order = torch.randperm(len(train), generator=generator(0, "prior rows"))
    sets = [train.z[order[i * k : (i + 1) * k]] if prior is None else prior.sample(k, first=i * k) for i in range(SETS)]
    varying = varying_latents(train.z)
    expected = nearest_distance(held_out.z, train.z)
    distance = expected if prior is None else nearest_distance(torch.cat(sets), train.z)
    return {"nearest_ratio": distance / expected, "auc": fmean(two_sample_auc(some[:, varying], held_out.z[:, varying]) for some in sets)}


def as_asked(flow: Prior, train: Examples, held_out: Examples) -> Iterator[dict[str, Any]]:
    """How far an attribute that is asked moves drawn points along its direction, over the distance of real people's means.

    The direction is a ridge regression on the points that the flow was fitted to; the means are those of held-out people.
    """
    known, others = attributes(train.labels), attributes(held_out.labels)
    for name in ATTRIBUTES:
        gradient = fit_direction(name, train.z, known[name], train.people).gradient.float()

        def mean(z: Tensor, along: Tensor = gradient) -> float:
            return float((z @ along).mean())

        apart = mean(held_out.z[others[name] == 1]) - mean(held_out.z[others[name] == 0])
        for guidance in (1.0, 2.0):
            yes, no = (flow.sample(200, asked=Asked({name: value}), guidance=guidance) for value in (1.0, 0.0))
            yield {"attribute": name, "guidance": guidance, "moved": (mean(yes) - mean(no)) / apart}


def as_described(flow: Prior, held_out: Examples) -> dict[str, float]:
    """How far points drawn for held-out people's descriptions lie from those people's own points, and from other people's."""
    if held_out.described is None:
        return {}
    drawn = torch.cat([flow.sample(1, first=i, asked=Asked(like=face), guidance=1.0) for i, face in enumerate(held_out.described)])
    return {name: float((drawn - held_out.z.roll(k, 0)).norm(dim=1).mean()) for name, k in {"own": 0, "another": 1}.items()}


if __name__ == "__main__":
    main()
