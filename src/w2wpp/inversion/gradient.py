"""Invert photos by gradient descent on the point z, or on a normal distribution over points.

`PUBLISHED` is eq. 5 of Weights2Weights++ (after Dravid et al. 2024, section 3.4) in prior units: 400 steps of Adam, each on
one fresh draw, without a prior. The recipes of the published code itself, in raw coefficients, are in `inversion/published.py`.
`InversionOptions()` is ours from the mean adapter, `REFINED` ours from where an encoder puts the photo; both chosen on val
people (docs/how/inversion.md).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.seeds import generator
from w2wpp.inversion.objective import NoisePairs, PairOptions
from w2wpp.inversion.watching import InversionStep, Watch
from w2wpp.spaces.base import Space

KEEP_EVERY = 30.0  # seconds between two checkpoints


@dataclass(frozen=True)
class InversionOptions:
    """How to invert."""

    steps: int = 40  # of Adam; 0 keeps the start
    batch: int = 1  # pairs per person and step
    lr: float = 0.2  # Adam's rate, in prior units of z
    final_lr: float = 0.0  # the rate falls along a half cosine to this fraction of itself
    prompt: str | None = None  # of the photos; the one that the space's adapters were trained with unless given
    prior_weight: float = 0.01  # of |z|^2 / 2m, minus the log of the prior, a latent (eq. 6); 0 is eq. 5
    variational: bool = False  # look for N(mu, sigma^2) in place of a point, with its KL to the prior (eq. 7)
    pairs: PairOptions = field(default_factory=PairOptions)
    group: int = 32  # people that share each forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.prior_weight >= 0 and self.steps >= 0):
            found = f"{self.steps} steps, lr {self.lr:g} and prior weight {self.prior_weight:g}"
            raise W2WError(f"a photo cannot be inverted with {found}. lr must be above 0, the others at least 0.")


PUBLISHED = InversionOptions(
    steps=400, batch=1, lr=0.1, final_lr=1.0, prior_weight=0.0, pairs=PairOptions(draws=400, stratified=False, antithetic=False)
)

# The same 40 evaluations; smaller steps on more draws each, for what an encoder knows is more than 40 draws tell.
REFINED = InversionOptions(steps=10, batch=4, lr=0.03)


@dataclass(frozen=True)
class Inverted:
    """Points of k people and how they were found."""

    z: Tensor  # [k, m] float32 in prior units, on the CPU
    losses: Tensor  # [steps, k] float32, the denoising loss on each step's own draws
    path: Tensor  # [steps + 1, k, m] float32, the points on the way
    unet_evals: float  # pictures a person that went through the UNet

    def of(self, i: int) -> Self:
        """The point of one of the k people."""
        return replace(self, z=self.z[i : i + 1], losses=self.losses[:, i : i + 1], path=self.path[:, i : i + 1])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Several results, found with the same options, as one."""
        z, losses = torch.cat([part.z for part in parts]), torch.cat([part.losses for part in parts], 1)
        return cls(z, losses, torch.cat([part.path for part in parts], 1), parts[0].unet_evals)


def invert(
    base: BaseModel,
    space: Space,
    latents: Sequence[Tensor] | Tensor,
    keys: Sequence[str],
    options: InversionOptions,
    mask: Tensor | None = None,
    start: Tensor | None = None,
    checkpoint: Path | None = None,
    watch: Watch | None = None,
) -> Inverted:
    """Find, for each person, the point whose adapter denoises the photos best.

    latents: for each person, those of one photo or more, scaled, [p, c, h, w]; or [k, c, h, w], one photo each. keys: for
    each person, the name of their random draws; a person's point does not depend on who shares the batch.
    mask: [k or 1, 1, h, w] in 0..1, what the loss looks at. start: points [k, m] to begin from; z = 0 unless given.
    checkpoint: a file that holds where the first group stands, every half a minute; a call that finds it resumes there.
    watch: called after each step of each group.
    Raises W2WError if the space belongs to another base, or the loss stops being a number.
    """
    space.check(space.layout, base.id, f"base {base.source}")
    space = space.to(base.device)
    each = [one[None] for one in latents] if isinstance(latents, Tensor) else latents
    pairs = NoisePairs.draw(base, each, keys, options.prompt or space.prompting.prompt, options.pairs, options.seed, mask)
    begin = torch.zeros(len(keys), space.m) if start is None else start.float()
    kept = [checkpoint] + [None] * len(keys)
    groups = zip(batches(len(keys), options.group), kept, strict=False)
    found = [_descend(base, space, pairs.of(s), keys[s], begin[s], options, file, watch) for s, file in groups]
    path, losses = torch.cat([path for path, _ in found], 1), torch.cat([losses for _, losses in found], 1)
    if not torch.isfinite(path[-1]).all():
        raise W2WError(f"inversion diverged at learning rate {options.lr:g}: points are not numbers. Lower --lr.")
    return Inverted(path[-1], losses, path, options.batch * options.steps)


def _descend(
    base: BaseModel,
    space: Space,
    pairs: NoisePairs,
    keys: Sequence[str],
    start: Tensor,
    options: InversionOptions,
    checkpoint: Path | None,
    watch: Watch | None,
) -> tuple[Tensor, Tensor]:
    """Adam on one group: the points on the way [steps + 1, k, m], and the losses [steps, k]."""
    k, b = len(keys), options.batch
    mean = start.to(base.device, copy=True).requires_grad_(True)
    # Starts narrow: what the photo does not tell widens towards the prior's 1 as the KL asks.
    log_sigma = torch.full_like(mean, -1.0).requires_grad_(True)
    cuda = base.device.type == "cuda"
    optimiser = torch.optim.Adam([mean, log_sigma] if options.variational else [mean], lr=options.lr, capturable=cuda)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, options.steps), eta_min=options.lr * options.final_lr)
    draws = [generator(options.seed, "inversion", key) for key in keys]
    path, losses = [mean.detach().clone()], torch.zeros(options.steps, k, device=base.device)  # a copy to the CPU would wait for a GPU
    parts: dict[str, Stateful] = {"optimiser": optimiser, "rate": anneal, "walk": _Walk(mean, log_sigma, draws, path, losses)}
    done, saved = load_checkpoint(checkpoint, parts) if checkpoint else 0, time.monotonic()
    for step in track(range(done, options.steps), "invert" if k == 1 else f"invert {k} people at once", "steps"):
        z = mean
        if options.variational:
            noise = torch.stack([torch.randn(space.m, generator=draw) for draw in draws]).to(base.device)
            z = mean + log_sigma.exp() * noise
        own = pairs.loss(base, space.layout, space.decode(z), [i % pairs.size for i in range(step * b, (step + 1) * b)]).mean(1)
        # A sum over people: nobody's gradient holds anybody else's loss, and Adam works number by number.
        total = own.sum() + options.prior_weight * _negative_log_prior(mean, log_sigma if options.variational else None).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        anneal.step()
        losses[step] = own.detach()
        path.append(mean.detach().clone())
        if watch:
            watch(InversionStep(list(keys), step + 1, options.steps, losses[step].to("cpu", copy=True), path[-1].to("cpu", copy=True)))
        if checkpoint and time.monotonic() - saved > KEEP_EVERY:
            save_checkpoint(checkpoint, parts, step + 1)
            saved = time.monotonic()
    return torch.stack(path).cpu(), losses.cpu()


@dataclass
class _Walk:
    """What a descent has done so far, as a checkpoint keeps it."""

    mean: Tensor
    log_sigma: Tensor
    draws: list[torch.Generator]
    path: list[Tensor]
    losses: Tensor

    def state_dict(self) -> dict[str, Any]:
        points = {"mean": self.mean.detach().cpu(), "log_sigma": self.log_sigma.detach().cpu(), "path": torch.stack(self.path).cpu()}
        return {**points, "losses": self.losses.cpu(), "draws": [draw.get_state() for draw in self.draws]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean.copy_(state["mean"])
        self.log_sigma.copy_(state["log_sigma"])
        self.losses.copy_(state["losses"])
        self.path[:] = state["path"].to(self.mean.device).unbind()
        for draw, kept in zip(self.draws, state["draws"], strict=True):
            draw.set_state(kept)


def _negative_log_prior(mean: Tensor, log_sigma: Tensor | None) -> Tensor:
    """A latent's share of -log p(z) up to a constant, or of KL(N(mean, sigma^2) || N(0, 1)): [k].

    The log of the prior, not the prior: it is what Bayes' rule adds to a log likelihood, and p itself is below 1e-100
    everywhere in hundreds of dimensions, so that its gradient is nothing.
    """
    if log_sigma is None:
        return mean.square().mean(1) / 2
    return ((mean.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma).mean(1)
