"""Training of the flow: flow matching, a running mean of the weights, and held-out people who say when to stop."""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.schedules import one_cycle
from w2wpp.common.seeds import generator
from w2wpp.prior.examples import Examples

if TYPE_CHECKING:  # the flow calls its trainer
    from w2wpp.prior.flow import FlowPrior

DRAWS = 8  # of time and noise per held-out point, the same at each measurement


def train_flow(flow: "FlowPrior", train: Examples, held_out: Examples, seed: int) -> dict[str, Any]:
    """Train each of the flow's networks in place, and leave it as it did best on held-out people -> the history of each.

    history: the loss (squared error of the velocity, per latent) on train and held-out people, one number per measurement, the
    step that is kept, and the step at which training stopped. Raises W2WError if the loss is not a number.
    """
    points, others = flow.whitened(train.z), flow.whitened(held_out.z).repeat(DRAWS, 1)
    told, others_told = (flow.conditions.of_examples(some) for some in (train, held_out))
    found = {}
    for way, network in flow.ways.items():
        if way == "plain":
            told_here, others_here = flow.conditions.undescribed(told), flow.conditions.undescribed(others_told)
        else:
            told_here, others_here = told, others_told
        network.lead = flow.conditions.regression(told_here, points, others_here, others[: len(held_out)])
        seen = flow.conditions.dropped(others_here.repeat(DRAWS, 1), flow.options.dropped, generator(seed, "flow held out, conditions"))
        found[way] = _train_network(flow, network, (points, told_here), (others, seen), seed)
    return found


def _train_network(
    flow: "FlowPrior", network: nn.Module, train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int
) -> dict[str, Any]:
    """Train one network in place on whitened points and their conditions; the rest is as `train_flow` says."""
    options, (points, told) = flow.options, train
    running = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.lr)
    schedule = one_cycle(optimiser, options.lr, options.steps, 0.1)
    best, kept, state = _measured(running, *held_out, seed), 0, copy.deepcopy(running.state_dict())
    history: dict[str, Any] = {"step": [0], "train": [], "held_out": [best]}
    total, step = 0.0, 0
    for step in track(range(1, options.steps + 1), "fit a flow", "steps"):
        draw = generator(seed, "flow step", step)
        rows = torch.randint(len(points), (options.batch,), generator=draw)
        loss = _loss(network, points[rows], flow.conditions.dropped(told[rows], options.dropped, draw), draw)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        _follow(running, network, 1 - min(options.decay, (1 + step) / (10 + step)))  # young means forget faster
        total += float(loss.detach())
        if step % options.every and step < options.steps:
            continue
        found = _measured(running, *held_out, seed)
        history["step"].append(step)
        history["train"].append(total / ((step - 1) % options.every + 1))
        history["held_out"].append(found)
        total = 0.0
        if not math.isfinite(found):
            raise W2WError(f"the flow diverged at step {step}: its loss is not a number. Lower its rate (FlowOptions.lr).")
        if found < best:
            best, kept, state = found, step, copy.deepcopy(running.state_dict())
        if step - kept >= options.patience * options.every:
            break
    network.load_state_dict(state)
    return {**history, "kept_step": kept, "stopped_at": step}


@torch.no_grad()
def _follow(running: nn.Module, learner: nn.Module, weight: float) -> None:
    """Move the running mean by a share of the way to the weights that learn."""
    for mean, now in zip(running.parameters(), learner.parameters(), strict=True):
        mean.lerp_(now, weight)


@torch.no_grad()
def _measured(network: nn.Module, points: Tensor, told: Tensor, seed: int) -> float:
    """The loss of held-out people, with the same draws each time."""
    return float(_loss(network, points, told, generator(seed, "flow held out")))


def _loss(network: nn.Module, points: Tensor, told: Tensor, draw: torch.Generator) -> Tensor:
    """Mean squared error of the velocity, per latent, at one time and noise per whitened point [n, m]."""
    t, noise = torch.rand(len(points), generator=draw), torch.randn(points.shape, generator=draw)
    way = (1 - t)[:, None] * noise + t[:, None] * points
    return (network(way, t, told) - (points - noise)).square().mean()
