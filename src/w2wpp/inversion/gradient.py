"""Invert photos by gradient descent on the point z, or on a normal distribution over points.

The published way (Weights2Weights++, eq. 5, after Dravid et al. 2024, section 3.4) is `PUBLISHED`: 400 steps of Adam,
each on one fresh draw, without a prior. `InversionOptions()` is ours from the mean adapter, `REFINED` ours from where an
encoder puts the photo; both chosen on val people (docs/inversion.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2wpp.base_model import BaseModel
from w2wpp.errors import W2WError
from w2wpp.images import batches
from w2wpp.inversion.objective import Bank, BankOptions
from w2wpp.progress import track
from w2wpp.seeds import generator
from w2wpp.spaces.base import Space


@dataclass(frozen=True)
class InversionOptions:
    """How to invert."""

    steps: int = 40  # of Adam; 0 keeps the start
    batch: int = 1  # draws of the bank a person and step
    lr: float = 0.2  # Adam's rate, in prior units of z
    final_lr: float = 0.0  # the rate falls along a half cosine to this fraction of itself
    prompt: str = "photo of sks person"  # the one that the space's adapters were trained with
    prior_weight: float = 0.01  # of |z|^2 / 2m, minus the log of the prior, a latent (eq. 6); 0 is eq. 5
    variational: bool = False  # look for N(mu, sigma^2) in place of a point, with its KL to the prior (eq. 7)
    early_stop: bool = True  # who gained nothing in a whole pass over their bank keeps the point from before it
    bank: BankOptions = field(default_factory=BankOptions)
    group: int = 32  # people that share each forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.prior_weight >= 0 and self.steps >= 0):
            found = f"{self.steps} steps, lr {self.lr:g} and prior weight {self.prior_weight:g}"
            raise W2WError(f"a photo cannot be inverted with {found}. lr must be above 0, the others at least 0.")


PUBLISHED = InversionOptions(
    steps=400, batch=1, lr=0.1, final_lr=1.0, prior_weight=0.0, bank=BankOptions(draws=400, stratified=False, antithetic=False)
)

# The same 40 evaluations; smaller steps on more draws each, for what an encoder knows is more than 40 draws tell.
REFINED = InversionOptions(steps=10, batch=4, lr=0.03)


@dataclass(frozen=True)
class Inverted:
    """Points of k people and how they were found."""

    z: Tensor  # [k, m] float32 in prior units, on the CPU
    losses: Tensor  # [steps, k] float32, the denoising loss on each step's own draws
    path: Tensor  # [steps + 1, k, m] float32, the points on the way
    unet_evals: float  # pictures a person that went through the UNet, on average


def invert(
    base: BaseModel,
    space: Space,
    photos: Sequence[Tensor] | Tensor,
    keys: Sequence[str],
    options: InversionOptions,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Inverted:
    """Find, for each person, the point whose adapter denoises the photos best.

    photos: for each person, scaled latents [p, c, h, w] of one photo or more; or [k, c, h, w], one photo each. keys: for
    each person, the name of their random draws; a person's point does not depend on who shares the batch.
    mask: [k or 1, 1, h, w] in 0..1, what the loss looks at. start: points [k, m] to go on from; z = 0 unless given.
    Raises W2WError if the space belongs to another base, or the loss stops being a number.
    """
    space.check(space.layout, base.id, f"base {base.source}")
    space = space.to(base.device)
    each = [photo[None] for photo in photos] if isinstance(photos, Tensor) else photos
    bank = Bank.draw(base, each, keys, options.prompt, options.bank, options.seed, mask)
    begin = torch.zeros(len(keys), space.m) if start is None else start.float()
    found = [_descend(base, space, bank.of(s), keys[s], begin[s], options) for s in batches(len(keys), options.group)]
    path, losses = torch.cat([path for path, _, _ in found], 1), torch.cat([losses for _, losses, _ in found], 1)
    if not torch.isfinite(path[-1]).all():
        raise W2WError(f"inversion diverged at learning rate {options.lr:g}: points are not numbers. Lower --lr.")
    return Inverted(path[-1], losses, path, options.batch * sum(steps for _, _, steps in found) / len(keys))


def _descend(
    base: BaseModel, space: Space, bank: Bank, keys: Sequence[str], start: Tensor, options: InversionOptions
) -> tuple[Tensor, Tensor, int]:
    """Adam on one group: the points on the way [steps + 1, k, m], the losses [steps, k], and the steps of all k together.

    After an early stop a person's points and losses are repeated.
    """
    k, b = len(keys), options.batch
    mean = start.to(base.device, copy=True).requires_grad_(True)
    # Starts narrow: what the photo does not tell widens towards the prior's 1 as the KL asks.
    log_sigma = torch.full_like(mean, -1.0).requires_grad_(True)
    optimiser = torch.optim.Adam([mean, log_sigma] if options.variational else [mean], lr=options.lr)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, options.steps), eta_min=options.lr * options.final_lr)
    draws = [generator(options.seed, "inversion", key) for key in keys]
    path, losses = [start.float()], torch.zeros(options.steps, k)
    a_pass = -(-bank.size // b)
    kept, best, taken = start.float().clone(), torch.full((k,), float("inf")), torch.full((k,), options.steps)
    for step in track(range(options.steps), f"invert {k} photos"):
        z = mean
        if options.variational:
            noise = torch.stack([torch.randn(space.m, generator=draw) for draw in draws]).to(base.device)
            z = mean + log_sigma.exp() * noise
        own = bank.loss(base, space.layout, space.decode(z), [i % bank.size for i in range(step * b, (step + 1) * b)]).mean(1)
        # A sum over people: nobody's gradient holds anybody else's loss, and Adam works number by number.
        total = own.sum() + options.prior_weight * _surprise(mean, log_sigma if options.variational else None).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        anneal.step()
        losses[step] = own.detach().cpu()
        path.append(mean.detach().cpu().clone())
        if options.early_stop and (step + 1) % a_pass == 0:
            now, going = losses[step + 1 - a_pass : step + 1].mean(0), taken == options.steps
            better = going & (now < best)
            kept[better], best[better] = path[-1][better], now[better]
            taken[going & (now >= best) & ~better] = step + 1
            if (taken < options.steps).all():
                break
    ways = torch.stack(path + path[-1:] * (options.steps + 1 - len(path)))
    for i in (taken < options.steps).nonzero().flatten().tolist():
        ways[int(taken[i]) :, i], losses[int(taken[i]) :, i] = kept[i], best[i]
    return ways, losses, int(taken.sum())


def _surprise(mean: Tensor, log_sigma: Tensor | None) -> Tensor:
    """A latent's share of -log p(z) up to a constant, or of KL(N(mean, sigma^2) || N(0, 1)): [k].

    The log of the prior, not the prior: it is what Bayes' rule adds to a log likelihood, and p itself is below 1e-100
    everywhere in hundreds of dimensions, so that its gradient is nothing.
    """
    if log_sigma is None:
        return mean.square().mean(1) / 2
    return ((mean.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma).mean(1)
