"""Training of VAE-w2w: the loss, its KL schedule, and the critic of the adversarial variant."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from w2wpp.common.batches import batches
from w2wpp.common.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.common.errors import W2WError
from w2wpp.common.memory import GIB, free_bytes
from w2wpp.common.progress import note, track
from w2wpp.common.seeds import generator
from w2wpp.dataset.split import split_by_person
from w2wpp.spaces.base import Adapters
from w2wpp.spaces.kl_schedule import kl_weight_at
from w2wpp.spaces.lean_adam import LeanAdam, bytes_needed
from w2wpp.spaces.networks import kl_divergence, layers
from w2wpp.spaces.seed_networks import second_critic

if TYPE_CHECKING:  # the space calls its trainer
    from w2wpp.spaces.vae import VaeSpace
    from w2wpp.spaces.vae_options import VaeOptions

CRITIC_WIDTHS = (256, 64)
ADVERSARIAL = {"residual-adversarial": "hinge", "second": "cross-entropy"}  # variants with a critic, and its loss


def train_vae(space: "VaeSpace", adapters: Adapters, checkpoint: str | Path | None, low_memory: bool | None = None) -> dict[str, Any]:
    """Train a new space in place -> its history, as `VaeSpace.fit` says.

    low_memory: `LeanAdam` in place of Adam; where Adam would not fit unless given. Every draw is named by epoch and batch, so
    that a resumed training equals an unbroken one.
    """
    optimiser = _optimiser(space, low_memory)
    try:
        return _train(space, adapters, checkpoint, optimiser)
    finally:
        if isinstance(optimiser, LeanAdam):
            optimiser.close()


def _optimiser(space: "VaeSpace", low_memory: bool | None) -> "torch.optim.Adam | LeanAdam":
    """What steps a space that is on its device already; a line says what it takes where that is not plain Adam."""
    parameters, options = list(space.parameters()), space.options
    own = sum(p.numel() for p in parameters) * 4
    plain, lean = bytes_needed(parameters)
    room = free_bytes(space.device)
    if low_memory is False or (low_memory is None and plain <= room):
        return torch.optim.Adam(parameters, lr=options.lr)
    note(
        f"Adam on {own // 4:,} parameters would take {(own + plain) / GIB:.1f} GiB, of which {(own + room) / GIB:.1f} are there. "
        f"Each layer is stepped within the backward pass and moments are kept in bfloat16, which takes {(own + lean) / GIB:.1f} GiB."
    )
    return LeanAdam(parameters, options.lr, seed=options.seed)


def _train(
    space: "VaeSpace", adapters: Adapters, checkpoint: str | Path | None, optimiser: "torch.optim.Adam | LeanAdam"
) -> dict[str, Any]:
    options = space.options
    split = split_by_person(adapters.people, options.seed)
    critic = Critic.of(space) if options.variant in ADVERSARIAL else None
    record = _Record(adapters, options)
    parts: dict[str, Stateful] = {"space": space, "optimiser": optimiser, "record": record}
    if critic:
        parts |= {"critic": critic, "critic optimiser": critic.optimiser}
    start = load_checkpoint(Path(checkpoint), parts) if checkpoint else 0
    history = record.history
    for epoch in track(range(start, options.epochs), f"fit a VAE to {len(split['train'])} adapters", "epochs"):
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
    return history


def train_epoch(
    space: "VaeSpace",
    critic: "Critic | None",
    optimiser: "torch.optim.Adam | LeanAdam",
    adapters: Adapters,
    rows: Tensor,
    epoch: int,
) -> dict[str, float]:
    """One pass over `rows` -> means of what was minimised, over rows, and the last KL weight."""
    options = space.options
    draw = generator(options.seed, "vae epoch", epoch)
    rows = rows[torch.randperm(len(rows), generator=draw)]
    sums = dict.fromkeys(("recon", "kl", "critic"), 0.0)
    weight = 0.0
    for s in batches(len(rows), options.batch):
        x = space.scaled(adapters.rows(rows[s].tolist()))
        weight = kl_weight_at(options, epoch + s.start / len(rows))
        decoded, recon, kl = autoencode(space, x, torch.randn(len(x), space.m, generator=draw))
        loss = recon.mean() + weight * kl.mean()
        if critic:
            fake = decoded
            if options.variant != "second":  # whose critic sees reconstructions only
                fake = torch.cat([decoded, space.decode_scaled(torch.randn(len(x), space.m, generator=draw).to(space.device))])
            sums["critic"] += critic.learn(x, fake.detach()) * len(x)
            loss = loss + options.adversarial_weight * critic.suspicion(fake)
        if isinstance(optimiser, LeanAdam):
            loss.backward()  # which takes the steps
        else:
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        sums["recon"] += float(recon.detach().sum())
        sums["kl"] += float(kl.detach().mean(1).sum())
    return {name: value / len(rows) for name, value in sums.items()} | {"kl_weight": weight}


def autoencode(space: "VaeSpace", x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled adapters x [n, d] and noise [n, m] -> decoded [n, d], squared error averaged over d [n], KL [n, m]."""
    mean, log_variance = space.posterior(x)
    decoded = space.decode_scaled(mean + (log_variance / 2).exp() * noise.to(x.device))
    return decoded, (decoded - x).square().mean(1), kl_divergence(mean, log_variance)


@torch.no_grad()
def measure(space: "VaeSpace", adapters: Adapters, rows: Tensor) -> dict[str, float]:
    """Reconstruction and KL of held-out rows, with the same noise each time."""
    draw = generator(space.options.seed, "vae held out")
    sums = {"recon": 0.0, "kl": 0.0}
    for s in batches(len(rows), space.options.batch):
        x = space.scaled(adapters.rows(rows[s].tolist()))
        _, recon, kl = autoencode(space, x, torch.randn(len(x), space.m, generator=draw))
        sums["recon"] += float(recon.sum())
        sums["kl"] += float(kl.mean(1).sum())
    return {name: value / len(rows) for name, value in sums.items()}


class Critic(nn.Module):
    """Tells real scaled adapters from decoded ones (Larsen et al. 2016), by the hinge loss or binary cross-entropy."""

    def __init__(self, net: nn.Module, lr: float, loss: str) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=lr)

    @classmethod
    def of(cls, space: "VaeSpace") -> "Critic":
        """An untrained critic for a space's adapters, on its device; its weights are drawn from the seed of the options."""
        options, d = space.options, space.layout.d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(options.seed, "critic").initial_seed())
            second = options.variant == "second"
            net = second_critic(d, options.widths[0], options.blocks) if second else layers((d, *CRITIC_WIDTHS, 1))
            return cls(net, options.lr, ADVERSARIAL[options.variant]).to(space.device)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled adapters [n, d] -> [n, 1], high where they look real."""
        return self.net(x)

    def suspicion(self, fake: Tensor) -> Tensor:
        """What the decoder is to make small: how far fake [k, d] are from looking real."""
        return nn.functional.softplus(-self(fake)).mean() if self.loss == "cross-entropy" else -self(fake).mean()

    def learn(self, real: Tensor, fake: Tensor) -> float:
        """One step on real [n, d] against fake [k, d]; returns the loss (hinge: Lim and Ye 2017)."""
        if self.loss == "cross-entropy":
            loss = nn.functional.softplus(-self(real)).mean() + nn.functional.softplus(self(fake)).mean()
        else:
            loss = (1 - self(real)).relu().mean() + (1 + self(fake)).relu().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


class _Record:
    """The history so far, and which training it belongs to: what a checkpoint must agree on."""

    def __init__(self, adapters: Adapters, options: "VaeOptions") -> None:
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
