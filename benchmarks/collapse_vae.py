"""The published VAE with the remedies that `collapse.py` tries, of which the package has none."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.common.seeds import generator
from w2wpp.dataset.split import split_by_person
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.kl_schedule import kl_weight_at
from w2wpp.spaces.networks import kl_divergence
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

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
