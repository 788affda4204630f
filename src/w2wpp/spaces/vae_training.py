"""Training of VAE-w2w: the loss, its KL schedule, and the critic of the adversarial variant."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.base_model import pick_device
from w2wpp.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.errors import W2WError
from w2wpp.images import batches
from w2wpp.progress import track
from w2wpp.seeds import generator
from w2wpp.spaces.base import Adapters
from w2wpp.spaces.vae import VaeOptions, VaeSpace, kl_divergence, layers

CYCLES = 4  # of the cyclical schedule
CRITIC_WIDTHS = (256, 64)


def train_vae(adapters: Adapters, options: VaeOptions, device: str, checkpoint: str | Path | None) -> tuple[VaeSpace, dict[str, Any]]:
    """See `VaeSpace.fit`. Every draw is named by epoch and batch, so that a resumed training equals an unbroken one."""
    adapters.check_m(options.m)
    split = split_by_person(adapters.people, options.seed)
    where = pick_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        space = VaeSpace(adapters.layout, adapters.base_id, options).to(where)
        critic = Critic(adapters.layout.d, options).to(where) if options.variant == "residual-adversarial" else None
    optimiser = torch.optim.Adam(space.parameters(), lr=options.lr)
    record = _Record(adapters, options)
    parts: dict[str, Stateful] = {"space": space, "optimiser": optimiser, "record": record}
    if critic:
        parts |= {"critic": critic, "critic optimiser": critic.optimiser}
    start = load_checkpoint(Path(checkpoint), parts) if checkpoint else 0
    history = record.history
    for epoch in track(range(start, options.epochs), f"fit a VAE to {len(split['train'])} adapters, epochs"):
        trained = train_epoch(space, critic, optimiser, adapters, split["train"], epoch)
        held_out = measure(space, adapters, split["val"])
        for name in ("recon", "kl"):
            history[name]["train"].append(trained[name])
            history[name]["val"].append(held_out[name])
        history["kl_weight"].append(trained["kl_weight"])
        if critic:
            history.setdefault("critic", {"train": []})["train"].append(trained["critic"])
        if not all(map(_is_number, trained.values())):
            raise W2WError(f"the VAE diverged in epoch {epoch + 1}: its loss is not a number. Lower --lr.")
        if checkpoint:
            save_checkpoint(Path(checkpoint), parts, epoch + 1)
    history["test"] = measure(space, adapters, split["test"])
    return space.frozen(), history


def split_by_person(people: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Row positions of a seeded 80/10/10 split; all adapters of a person fall into one part.

    Raises W2WError for fewer than three people.
    """
    names = list(dict.fromkeys(people))
    if len(names) < 3:
        raise W2WError(f"{len(names)} people are too few to split 80/10/10 for a VAE. Give three or more.")
    order = torch.randperm(len(names), generator=generator(seed, "vae split")).tolist()
    tenth = max(1, len(names) // 10)
    part = {names[i]: "val" if k < tenth else "test" if k < 2 * tenth else "train" for k, i in enumerate(order)}
    return {name: torch.tensor([i for i, person in enumerate(people) if part[person] == name]) for name in ("train", "val", "test")}


def kl_weight_at(options: VaeOptions, epoch: float) -> float:
    """The weight of the KL at a time in epochs, from 0.

    steps: 0 in the warm-up, then raised at the start of each of as many epochs, then constant (Bowman et al. 2015).
    cyclical: in each of four cycles up from 0 for half of it, then constant (Fu et al. 2019).
    """
    if options.schedule == "cyclical":
        share = epoch * CYCLES / options.epochs % 1 / 0.5
    else:
        share = (int(epoch) - options.warmup_epochs + 1) / max(1, options.warmup_epochs)
    return options.kl_weight * min(1.0, max(0.0, share))


def train_epoch(
    space: VaeSpace, critic: "Critic | None", optimiser: torch.optim.Optimizer, adapters: Adapters, rows: Tensor, epoch: int
) -> dict[str, float]:
    """One pass over `rows` -> means of what was minimised, over rows, and the last KL weight."""
    options = space.options
    draw = generator(options.seed, "vae epoch", epoch)
    rows = rows[torch.randperm(len(rows), generator=draw)]
    sums = dict.fromkeys(("recon", "kl", "critic"), 0.0)
    weight = 0.0
    for s in batches(len(rows), options.batch):
        x = adapters.rows(rows[s].tolist()).to(space.device) * options.scale
        weight = kl_weight_at(options, epoch + s.start / len(rows))
        decoded, recon, kl = autoencode(space, x, torch.randn(len(x), space.m, generator=draw))
        loss = recon.mean() + weight * kl.mean()
        if critic:
            drawn = space.decode_scaled(torch.randn(len(x), space.m, generator=draw).to(space.device))
            fake = torch.cat([decoded, drawn])
            sums["critic"] += critic.learn(x, fake.detach()) * len(x)
            loss = loss - options.adversarial_weight * critic(fake).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        sums["recon"] += float(recon.detach().sum())
        sums["kl"] += float(kl.detach().mean(1).sum())
    return {name: value / len(rows) for name, value in sums.items()} | {"kl_weight": weight}


def autoencode(space: VaeSpace, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled adapters x [n, d] and noise [n, m] -> decoded [n, d], squared error averaged over d [n], KL [n, m]."""
    mean, log_variance = space.posterior(x)
    decoded = space.decode_scaled(mean + (log_variance / 2).exp() * noise.to(x.device))
    return decoded, (decoded - x).square().mean(1), kl_divergence(mean, log_variance)


@torch.no_grad()
def measure(space: VaeSpace, adapters: Adapters, rows: Tensor) -> dict[str, float]:
    """Reconstruction and KL of held-out rows, with the same noise each time."""
    draw = generator(space.options.seed, "vae held out")
    sums = {"recon": 0.0, "kl": 0.0}
    for s in batches(len(rows), space.options.batch):
        x = adapters.rows(rows[s].tolist()).to(space.device) * space.options.scale
        _, recon, kl = autoencode(space, x, torch.randn(len(x), space.m, generator=draw))
        sums["recon"] += float(recon.sum())
        sums["kl"] += float(kl.mean(1).sum())
    return {name: value / len(rows) for name, value in sums.items()}


class Critic(nn.Module):
    """Tells real scaled adapters from decoded ones, reconstructed or drawn (Larsen et al. 2016), by the hinge loss."""

    def __init__(self, d: int, options: VaeOptions) -> None:
        super().__init__()
        self.net = layers((d, *CRITIC_WIDTHS, 1))
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=options.lr)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled adapters [n, d] -> [n, 1], high where they look real."""
        return self.net(x)

    def learn(self, real: Tensor, fake: Tensor) -> float:
        """One step on real [n, d] against fake [k, d]; returns the hinge loss (Lim and Ye 2017)."""
        loss = (1 - self(real)).relu().mean() + (1 + self(fake)).relu().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


class _Record:
    """The history so far, and which training it belongs to: what a checkpoint must agree on."""

    def __init__(self, adapters: Adapters, options: VaeOptions) -> None:
        people = hashlib.sha256("\n".join(adapters.people).encode()).hexdigest()
        self.of = {"options": asdict(options), "base": adapters.base_id, "layout": adapters.layout.to_json(), "people": people}
        self.history: dict[str, Any] = {"recon": {"train": [], "val": []}, "kl": {"train": [], "val": []}, "kl_weight": []}

    def state_dict(self) -> dict[str, Any]:
        return {"of": self.of, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        other = sorted(key for key in self.of if state["of"][key] != self.of[key])
        if other:
            raise ValueError(f"it was trained with another {' and '.join(other)}")
        self.history = state["history"]


def _is_number(value: float) -> bool:
    return value == value and abs(value) != float("inf")
