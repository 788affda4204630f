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

Rows are written as they are finished, and an interrupted run goes on. Writes benchmarks/results/collapse.json.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from w2wpp.base_model import BaseModel
from w2wpp.cli.common import SKS, numbers
from w2wpp.errors import W2WError
from w2wpp.faces import Embedding, embed_pictures
from w2wpp.figures import picture_rows
from w2wpp.files import read_json, write_json
from w2wpp.images import batches
from w2wpp.layout import Layout
from w2wpp.likeness import likeness, likeness_of
from w2wpp.runs import command_line, versions
from w2wpp.seeds import generator
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeOptions, VaeSpace, kept_directions, kl_divergence, principal_variances
from w2wpp.spaces.vae_training import kl_weight_at, split_by_person
from w2wpp.weights import WeightDataset

RESULTS = Path(__file__).parent / "results" / "collapse.json"
MEASURED = 10  # times in a training that held-out people are looked at


@dataclass(frozen=True)
class Recipe:
    """A VAE and how it is trained; the remedies are off unless named."""

    name: str
    options: VaeOptions
    standardised: bool = False  # each coordinate centred and scaled, in place of x10 and tanh
    tanh: bool = True
    equal_matrices: bool = False  # each matrix's error counts alike, whatever its variance
    learned_sigma: bool = False  # sigma^2 is the error itself, its optimum (Rybkin et al. 2021), in place of the KL weight
    free_bits: float = 0.0  # nats a latent, in the mean over a batch, below which the KL costs nothing more (Kingma et al. 2016)


def recipes(widths: tuple[int, ...], m: int, seed: int) -> list[Recipe]:
    """All rows of VAEs: each remedy alone, for the published steps and then for twice as many at ten times the rate."""
    published = VaeOptions(m=m, widths=widths, seed=seed)
    longer = replace(published, lr=1e-3, epochs=24, warmup_epochs=6)
    remedies: dict[str, dict[str, Any]] = {
        "as published": {},
        "KL weight 0": {"kl_weight": 0.0},
        "standardised": {"standardised": True},
        "learned sigma": {"learned_sigma": True},
        "standardised, learned sigma": {"standardised": True, "learned_sigma": True},
        "no tanh": {"tanh": False},
        "cyclical annealing": {"schedule": "cyclical"},
        "no annealing": {"warmup_epochs": 0},
        "free bits, 2 nats": {"free_bits": 2.0},
        "equal weight a matrix": {"equal_matrices": True},
        "KL weight 0.5": {"kl_weight": 0.5},
        "KL weight 5": {"kl_weight": 5.0},
    }
    options = {field.name for field in fields(VaeOptions)}
    rows = []
    for name, remedy in remedies.items():
        changed = {key: value for key, value in remedy.items() if key in options}
        beyond = {key: value for key, value in remedy.items() if key not in options}
        rows += [
            Recipe(name, replace(published, **changed), **beyond),
            Recipe(f"{name}; 24 epochs at 1e-3", replace(longer, **changed), **beyond),
        ]
    rows += [Recipe(f"KL weight {weight:g}", replace(published, kl_weight=weight)) for weight in (5e-4, 5e-5)]
    rows += [
        Recipe("250 epochs", replace(published, epochs=250, warmup_epochs=62)),
        Recipe("widths 4096, 2048, 1024", replace(published, widths=(4096, 2048, 1024))),
    ]
    return rows


class RemediedVae(VaeSpace):
    """The published VAE, in the units that a recipe asks for: x = (weights - offset) * factor."""

    offset: Tensor  # [d]
    factor: Tensor  # [d]
    importance: Tensor  # [d], of each coordinate's squared error; its mean over the variance is 1

    def __init__(self, layout: Layout, base_id: str, options: VaeOptions) -> None:
        super().__init__(layout, base_id, options)
        self.tanh = True
        self.register_buffer("offset", torch.zeros(layout.d))
        self.register_buffer("factor", torch.full((layout.d,), options.scale))
        self.register_buffer("importance", torch.ones(layout.d))

    def scaled(self, weights: Tensor) -> Tensor:
        return (self.given(weights) - self.offset) * self.factor

    def decode_scaled(self, z: Tensor) -> Tensor:
        return self.decoder(z).tanh() if self.tanh else self.decoder(z)

    def decode(self, z: Tensor) -> Tensor:
        return self.decode_scaled(z.to(self.device)) / self.factor + self.offset

    def prepare(self, recipe: Recipe, train: Tensor) -> None:
        """Take units and importance from the adapters train [n, d]."""
        self.tanh = recipe.tanh and not recipe.standardised
        if recipe.standardised:
            self.offset, self.factor = train.mean(0), 1 / train.std(0).clamp_min(1e-12)
        if recipe.equal_matrices:
            variance = self.scaled(train).var(0)
            parts = list(self.layout.slices.values())
            for part in parts:
                # So that the whole weighted variance stays what it was, and the KL weighs as much against it as before.
                self.importance[part] = variance.sum() / (len(parts) * variance[part].sum())


def train(adapters: Adapters, recipe: Recipe) -> tuple[RemediedVae, list[tuple[int, float]]]:
    """Train as `VaeSpace.fit` does, with the recipe's remedies -> the space, and held-out people's lost share by epoch."""
    options = recipe.options
    split = split_by_person(adapters.people, options.seed)
    fitted, held_out = adapters.rows(split["train"].tolist()), adapters.rows(split["val"].tolist())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        space = RemediedVae(adapters.layout, adapters.base_id, options)
    space.prepare(recipe, fitted)
    x = space.scaled(fitted)
    optimiser = torch.optim.Adam(space.parameters(), lr=options.lr)
    curve: list[tuple[int, float]] = []
    d, m, errors = adapters.layout.d, options.m, 0.0
    for epoch in range(options.epochs):
        draw = generator(options.seed, "vae epoch", epoch)
        order = torch.randperm(len(x), generator=draw)
        errors = 0.0
        for s in batches(len(x), options.batch):
            rows = x[order[s]]
            weight = kl_weight_at(options, epoch + s.start / len(x))
            mean, log_variance = space.posterior(rows)
            decoded = space.decode_scaled(mean + (log_variance / 2).exp() * torch.randn(len(rows), m, generator=draw))
            recon = ((decoded - rows).square() * space.importance).mean(1).mean()
            kl = kl_divergence(mean, log_variance).mean(0)
            if recipe.free_bits:
                kl = kl.clamp_min(recipe.free_bits)
            # With a learned sigma, the bound over d, its KL annealed by the schedule.
            bound = recon.log() / 2 + weight / (options.kl_weight or 1) * kl.sum() / d
            loss = bound if recipe.learned_sigma else recon + weight * kl.mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            errors += float(recon.detach()) * len(rows) / len(x)
        if (epoch + 1) % max(1, options.epochs // MEASURED) == 0:
            curve.append((epoch + 1, lost(space, held_out, fitted)))
    if recipe.learned_sigma:  # the KL weight that this sigma^2 amounts to
        space.options = replace(options, kl_weight=2 * m * errors / d)
    return space.frozen(), curve


@torch.no_grad()
def lost(space: Space, weights: Tensor, fitted: Tensor) -> float:
    """The share of the standardised variance of weights [n, d] that reconstructions miss; units from the adapters `fitted`."""
    mean, scale = fitted.mean(0), fitted.std(0)
    rebuilt = space.decode(space.encode(weights))
    return float(((weights - rebuilt) / scale).square().sum() / ((weights - mean) / scale).square().sum())


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


class Judged:
    """Pictures of held-out people's own adapters, against which reconstructions are scored."""

    def __init__(self, base: BaseModel, data: WeightDataset, split: dict[str, Tensor], args: argparse.Namespace) -> None:
        self.base, self.layout, self.args = base, data.layout, args
        self.seeds = range(args.seed, args.seed + args.pictures)
        self.weights = data.rows(one_each(data, split["val"], args.people))
        self.trained = data.rows(one_each(data, split["train"], args.models))
        self.own = self.embedded(self.weights)

    def embedded(self, weights: Tensor) -> list[list[Embedding]]:
        """Faces of adapters [k, d]: a row each, a column a seed."""
        rows = picture_rows(self.base, self.layout, weights, SKS, self.seeds, steps=self.args.solver_steps)
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
            "samples": likeness(self.base, self.layout, drawn, SKS, self.seeds, steps=self.args.solver_steps),
            "id_reconstructed": self.against_own(rebuilt),
            "reconstructed_missed": likeness_of(rebuilt)["missed"],
        }

    def references(self, mean: Tensor) -> dict[str, Any]:
        """The same of training adapters, of people's own adapters, and of the mean adapter [d]."""
        at_mean = self.embedded(mean[None])
        return {
            "training adapters": likeness(self.base, self.layout, self.trained, SKS, self.seeds, steps=self.args.solver_steps),
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
        space, history = AnchoredVaeSpace.fit(fitted, AnchoredOptions(m=args.m, steps=steps, seed=args.seed), device="cpu", **given)
        return space, {"steps": history["kept_step"], "sigma2": float((2 * space.log_sigma).exp())}

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

    data, base = WeightDataset.open(args.dataset), BaseModel.load(args.base, "cpu")
    adapters = Adapters.of(data)
    split = split_by_person(adapters.people, args.seed)
    fitted, held_out = data.rows(split["train"].tolist()), data.rows(split["val"].tolist())
    judged = Judged(base, data, split, args)
    report |= {
        "command": f"python benchmarks/{command_line()}",
        "versions": versions(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "settings": settings,
        "adapters": {"n": len(data), "d": data.layout.d, "train": len(fitted), "held_out": len(held_out)},
        "beyond_tanh": float((fitted.abs() > 0.1).float().mean()),
        "references": report.get("references") or judged.references(fitted.mean(0)),
    }
    rows = report.setdefault("rows", [])
    for name, fit in fitted_rows(adapters, fitted, args).items():
        if name in [row["name"] for row in rows]:
            continue
        start = time.process_time()
        space, also = fit()
        seconds = time.process_time() - start
        with torch.no_grad():
            rows.append({"name": name, "seconds": seconds, **also, **measured(space, fitted, held_out), **judged.of(space)})
        write_json(args.out, report)
        print(name, f"{seconds:.0f} s, lost {rows[-1]['lost']}, {rows[-1]['latents']}, samples {rows[-1]['samples']}", flush=True)


if __name__ == "__main__":
    main()
