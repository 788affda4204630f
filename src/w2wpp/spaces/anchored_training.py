"""Training of the anchored VAE: the bound, and the rule that only a better one is accepted."""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.schedules import one_cycle
from w2wpp.common.seeds import generator
from w2wpp.dataset.split import split_by_person
from w2wpp.spaces.base import Adapters
from w2wpp.spaces.networks import kl_divergence

if TYPE_CHECKING:  # the space calls its trainer
    from w2wpp.spaces.anchored_vae import AnchoredVaeSpace

MEASURED = 10  # times in a training that the held-out bound is taken


def train_anchored(space: "AnchoredVaeSpace", adapters: Adapters, rest: float) -> dict[str, Any]:
    """Train a space that is still probabilistic PCA in place -> its history, as `AnchoredVaeSpace.fit` says.

    rest: variance that its components leave out, summed over coordinates.
    """
    options = space.options
    split = split_by_person(adapters.people, options.seed)
    train, held_out = split["train"], torch.cat([split["val"], split["test"]])
    whitened = torch.cat([space.whiten(adapters.rows(range(s.start, s.stop))) for s in batches(len(adapters), 512)])
    bound = _Bound(space, whitened, rest)
    optimiser = torch.optim.Adam(space.parameters(), lr=options.lr)
    schedule = one_cycle(optimiser, options.lr, options.steps, 0.1)
    history: dict[str, Any] = {"step": [0], "train": [], "held_out": [bound.measure(held_out)]}
    best, best_step, best_state = history["held_out"][0]["loss"], 0, copy.deepcopy(space.state_dict())
    sums: dict[str, float] = {}
    every = max(1, options.steps // MEASURED)
    for step in track(range(options.steps), f"fit an anchored VAE, m = {options.m}", "steps"):
        draw = generator(options.seed, "anchored step", step)
        rows = train[torch.randint(len(train), (options.batch,), generator=draw)]
        parts = bound(rows, draw)
        optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        optimiser.step()
        schedule.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / every
        if (step + 1) % every == 0:
            found = bound.measure(held_out)
            history["step"].append(step + 1)
            history["train"].append(sums)
            history["held_out"].append(found)
            sums = {}
            if not math.isfinite(found["loss"]):
                raise W2WError(
                    f"the anchored VAE diverged at step {step + 1}: its loss is not a number. Lower its rate (AnchoredOptions.lr)."
                )
            if found["loss"] < best:
                best, best_step, best_state = found["loss"], step + 1, copy.deepcopy(space.state_dict())
    space.load_state_dict(best_state)
    history |= {"accepted": best_step > 0, "kept_step": best_step}
    return history


class _Bound:
    """Minus the bound on an adapter's log likelihood, up to a constant, in nats."""

    def __init__(self, space: "AnchoredVaeSpace", whitened: Tensor, rest: float) -> None:
        self.space, self.whitened, self.rest = space, whitened, rest

    def __call__(self, rows: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """Means over these rows: what is minimised, its parts, and the squared error a coordinate in standardised units."""
        space, x = self.space, self.whitened[rows]
        mean, log_variance = space.posterior(x)
        z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=draw).to(mean)
        error = ((space.decode_whitened(z) - x) * space.spread).square().sum(1) + self.rest
        recon = error * (-2 * space.log_sigma).exp() / 2 + space.layout.d * space.log_sigma
        kl = kl_divergence(mean, log_variance).sum(1)
        return {"loss": (recon + kl).mean(), "recon": recon.mean(), "kl": kl.mean(), "lost": error.mean() / space.layout.d}

    @torch.no_grad()
    def measure(self, rows: Tensor) -> dict[str, float]:
        """The same over held-out rows, with the same draws each time."""
        draw = generator(self.space.options.seed, "anchored held out")
        found = [(len(rows[s]), self(rows[s], draw)) for s in batches(len(rows), 64)]
        return {name: sum(n * float(parts[name]) for n, parts in found) / len(rows) for name in found[0][1]}
