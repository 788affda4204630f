"""Does the published VAE collapse on a weight dataset, and what does each remedy change?

    python benchmarks/collapse.py

Every space has the same m and is fitted to the same 80% of the people (the VAE's own split); the next 10% are held out. VAEs
have hidden widths --widths unless the row says otherwise; every other setting that a row does not name is the published one.
Remedies that the package does not have (standardisation, no tanh, equal weight a matrix, free bits, learned sigma) are
here and nowhere else.

A row's figures: `lost`, the share of the standardised variance that reconstructions miss, on train and held-out people, and the
smallest that held-out people saw at a tenth of the training; KL in nats and active units of held-out people; variance of
reconstructions, and of draws, over that of held-out adapters, in standardised units; what the loss can keep (`kept_directions`);
the ID Score between drawn models at the same image seeds, and between reconstructed and original adapter of held-out people at
different image seeds (references: `training adapters` and `mean adapter`); seconds of one core's work.

Rows are written as they are finished, and an interrupted run resumes. Writes benchmarks/results/collapse.json.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from collapse_vae import Recipe, lost, recipes, train
from machine import machine
from w2wpp.base.drawing import picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.cli.common import numbers
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.split import split_by_person
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.collapse import kept_directions, principal_variances
from w2wpp.evaluation.distinctness import likeness, likeness_of
from w2wpp.photos.faces import Embedding, embed_pictures
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.networks import kl_divergence
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeSpace

PROMPT = "photo of sks person"
RESULTS = Path(__file__).parent / "results" / "collapse.json"


def spread(weights: Tensor, scale: Tensor) -> float:
    """The standardised variance of weights [n, d], summed over coordinates."""
    return float((weights / scale).var(0).sum())


@torch.no_grad()
def latents(space: Space, weights: Tensor) -> dict[str, Any]:
    """KL and active units of adapters weights [n, d]; empty where a space has no posterior."""
    if isinstance(space, VaeSpace):
        mean, log_variance = space.posterior(space.scaled(weights))
    elif isinstance(space, AnchoredVaeSpace):
        mean, log_variance = space.posterior(space.whiten(weights))
    else:
        return {}
    kl = kl_divergence(mean, log_variance.expand_as(mean)).mean(0)
    quartiles = torch.quantile(kl, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
    return {
        "kl": float(kl.sum()),
        "kl_per_unit": float(kl.mean()),
        "kl_quartiles": quartiles,
        "active_units": int((mean.var(0) > 0.01).sum()),
    }


class Scorer:
    """Pictures of held-out people's own adapters, against which reconstructions are scored."""

    def __init__(self, base: BaseModel, data: WeightDataset, split: dict[str, Tensor], args: argparse.Namespace) -> None:
        self.base, self.layout, self.args = base, data.layout, args
        self.seeds = range(args.seed, args.seed + args.pictures)
        self.weights = data.rows(one_each(data, split["val"], args.people))
        self.trained = data.rows(one_each(data, split["train"], args.models))
        self.own = self.embedded(self.weights)

    def embedded(self, weights: Tensor) -> list[list[Embedding]]:
        """Faces of adapters [k, d]: one row per adapter, one column per seed."""
        rows = picture_rows(self.base, self.layout, weights, PROMPT, self.seeds, steps=self.args.solver_steps)
        return [list(embed_pictures(row)) for row in rows]

    def against_own(self, faces: Sequence[Sequence[Embedding]]) -> float | None:
        """ID Score against the people's own pictures at the other image seeds; mean over people."""
        scores = []
        for mine, own in zip(faces, self.own, strict=True):
            pairs = [float(a @ b) for i, a in enumerate(mine) for j, b in enumerate(own) if i != j and a is not None and b is not None]
            scores += [fmean(pairs)] if pairs else []
        return fmean(scores) if scores else None

    def of(self, space: Space) -> dict[str, Any]:
        """Of a space: likeness of draws, and ID Score of reconstructions."""
        drawn = space.decode(space.sample(self.args.models, self.args.seed))
        rebuilt = self.embedded(space.decode(space.encode(self.weights)))
        return {
            "samples": likeness(self.base, self.layout, drawn, PROMPT, self.seeds, steps=self.args.solver_steps),
            "id_reconstructed": self.against_own(rebuilt),
            "reconstructed_missed": likeness_of(rebuilt)["missed"],
        }

    def references(self, mean: Tensor) -> dict[str, Any]:
        """The same of training adapters, of people's own adapters, and of the mean adapter [d]."""
        at_mean = self.embedded(mean[None])
        return {
            "training adapters": likeness(self.base, self.layout, self.trained, PROMPT, self.seeds, steps=self.args.solver_steps),
            "id_own": likeness_of(self.own)["within"],
            "id_mean_adapter": self.against_own(at_mean * len(self.own)),
        }


def one_each(data: WeightDataset, rows: Tensor, n: int) -> list[int]:
    """The first n of these rows that are of different people."""
    people: dict[str, int] = {}
    for i in rows.tolist():
        people.setdefault(data.labels[i].get("person", data.ids[i]), i)
    return list(people.values())[:n]


def measured(space: Space, fitted: Tensor, held_out: Tensor) -> dict[str, Any]:
    """All figures of a space that need no picture."""
    scale, drawn = fitted.std(0), space.sample(512)
    with torch.no_grad():
        rebuilt, made = space.decode(space.encode(held_out)), space.decode(drawn)
    return {
        "lost": {"train": lost(space, fitted, fitted), "held_out": lost(space, held_out, fitted)},
        "latents": {"train": latents(space, fitted), "held_out": latents(space, held_out)},
        "decoded_spread_ratio": spread(rebuilt, scale) / spread(held_out, scale),
        "sampled_spread_ratio": spread(made, scale) / spread(fitted, scale),
    }


def fitted_rows(adapters: Adapters, fitted: Tensor, args: argparse.Namespace) -> Any:
    """Name -> a function that fits that row's space: (space, what else the row holds)."""
    given = {"layout": adapters.layout, "base_id": adapters.base_id}

    def pca() -> tuple[Space, dict[str, Any]]:
        return PcaSpace.fit(fitted, m=args.m, **given), {}

    def anchored(steps: int) -> tuple[Space, dict[str, Any]]:
        space = AnchoredVaeSpace.fit(fitted, AnchoredOptions(m=args.m, steps=steps, seed=args.seed), device="cpu", **given)
        return space, {"steps": space.history["kept_step"], "sigma2": float((2 * space.log_sigma).exp())}

    def vae(recipe: Recipe) -> tuple[Space, dict[str, Any]]:
        space, curve = train(adapters, recipe)
        x = space.scaled(fitted) * space.importance.sqrt()
        kept = kept_directions(principal_variances(x), adapters.layout.d, args.m, space.options.kl_weight)
        steps = recipe.options.epochs * -(-len(fitted) // recipe.options.batch)
        return space, {"steps": steps, "kept": kept, "curve": curve, "lost_best": min(share for _, share in curve)}

    return {
        "PCA": pca,
        "anchored, untrained (probabilistic PCA)": lambda: anchored(0),
        "anchored, 400 steps": lambda: anchored(400),
        **{recipe.name: lambda recipe=recipe: vae(recipe) for recipe in recipes(numbers(args.widths), args.m, args.seed)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="tiny-faces")
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--m", type=int, default=128)
    parser.add_argument("--widths", default="1024,1024,512", help="of the VAEs' hidden layers")
    parser.add_argument("--models", type=int, default=24, help="drawn from each space")
    parser.add_argument("--people", type=int, default=32, help="held out, whose reconstructions are drawn")
    parser.add_argument("--pictures", type=int, default=2, help="of each model and person")
    parser.add_argument("--solver-steps", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    report = read_json(args.out) if args.out.exists() else {}
    if report.get("settings", settings) != settings:
        raise W2WError(f"{args.out} holds rows of other settings. Choose another --out.")

    data, base = WeightDataset.load(args.dataset), BaseModel.load(args.base, "cpu")
    adapters = Adapters.of(data)
    split = split_by_person(adapters.people, args.seed)
    fitted, held_out = data.rows(split["train"].tolist()), data.rows(split["val"].tolist())
    scorer = Scorer(base, data, split, args)
    report |= {
        "command": f"python benchmarks/{command_line()}",
        "versions": versions(),
        "machine": machine(base.device),
        "settings": settings,
        "adapters": {"n": len(data), "d": data.layout.d, "train": len(fitted), "held_out": len(held_out)},
        "beyond_tanh": float((fitted.abs() > 0.1).float().mean()),
        "references": report.get("references") or scorer.references(fitted.mean(0)),
    }
    rows = report.setdefault("rows", [])
    for name, fit in fitted_rows(adapters, fitted, args).items():
        if name in [row["name"] for row in rows]:
            continue
        start = time.process_time()
        space, also = fit()
        seconds = time.process_time() - start
        with torch.no_grad():
            rows.append({"name": name, "seconds": seconds, **also, **measured(space, fitted, held_out), **scorer.of(space)})
        write_json(args.out, report)
        print(name, f"{seconds:.0f} s, lost {rows[-1]['lost']}, {rows[-1]['latents']}, samples {rows[-1]['samples']}", flush=True)


if __name__ == "__main__":
    main()
