"""Train an encoder of photos for a space, alone or with the space's decoder, on what its decoded points do.

Where adapters teach, training begins at a regression of them on their people's descriptions (`spaces/regression.py`).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.common.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.common.errors import W2WError
from w2wpp.common.files import checksum
from w2wpp.common.progress import track
from w2wpp.common.schedules import one_cycle
from w2wpp.common.seeds import generator
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.inversion.regressed import follow, read_from, regressed, regression
from w2wpp.spaces.anchored_vae import AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.networks import kl_divergence
from w2wpp.spaces.point_files import fingerprint

LEAST_PEOPLE = 10
LINEAR_LR = {"likeness": 8e-2, "both": 4e-2, "adapters": 4e-2}  # by teacher, chosen on val people


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder is trained, alone or with the decoder of its space."""

    hidden: int = 512  # width of the residual network's one hidden layer
    steps: int = 900  # of Adam
    batch: int = 64  # people a step
    draws: int = 2  # of photo, timestep and noise per person and step
    lr: float = 2e-3  # Adam's peak rate; it falls along a half cosine to 0
    # The same where training begins at a regression, as a share of the size of what is trained; of LINEAR_LR unless given.
    linear_lr: float | None = None
    prior_weight: float = 0.0002  # of the KL to the prior, a latent (eq. 7)
    jitter: float = 0.2  # noise on a description in training, in its standard deviations over photos; none after a regression
    measured: int = 5  # times that held-out people's loss is taken; the best is kept
    seed: int = 0


def fit_encoder(
    space: Space, photos: PersonPhotos, options: EncoderOptions, checkpoint: Path | None = None
) -> tuple[PhotoEncoder, dict[str, Any]]:
    """Train an encoder for a space on people's photos, by the bound of eq. 7 on any photo of the person.

    One photo is described; the decoded adapter has to do what the teacher asks on all of that person's photos. A tenth of
    the people is held out and says which step is kept. checkpoint: a file where training goes on if it was interrupted.
    Where adapters teach, it begins at the regression of their points on descriptions, or at that times their loudness, and only
    its linear map is trained.
    Returns the encoder, and its history: the loss and its parts on train and held-out people, one row per measurement.
    Raises W2WError for too few people, no steps where training begins at nothing, or a loss that is not a number.
    """
    space = space.to(photos.base.device)
    space.check(space.layout, photos.base.id, f"base {photos.base.source}")
    own, (train, held_out) = _beginning(space, photos, options), _split(photos.people, options.seed)
    encoder = _untrained(photos, train, space, options)
    options = _linear(options) if own else options
    bound = _Bound(space, encoder, photos, options)
    trained: tuple[nn.Module, float] = (encoder, options.lr)
    if own:
        ridge, losses = regression(encoder, photos, own, train, space.encode), {}
        for loudness in (own.loudness, 1.0):  # the points of a space that adapters taught are as loud as they
            follow(encoder, ridge, loudness * ridge.slope.T, ridge.centre)
            losses[loudness] = bound.measure(held_out)["loss"]
        follow(encoder, ridge, min(losses, key=lambda loudness: losses[loudness]) * ridge.slope.T, ridge.centre)
        encoder.requires_grad_(False)
        trained = encoder.linear, _linear_lr(options, photos) * float(encoder.linear.weight.square().mean().sqrt())
    history = _descend(bound, {"encoder": trained}, train, held_out, checkpoint)
    encoder = encoder.cpu().eval()
    encoder.space, encoder.people, encoder.teacher = fingerprint(space), frozenset([*train, *held_out]), photos.teacher
    return encoder, history


def fit_with_decoder(
    space: Space, photos: PersonPhotos, options: EncoderOptions, checkpoint: Path | None = None
) -> tuple[AnchoredVaeSpace, PhotoEncoder, dict[str, Any]]:
    """Train the decoder of an anchored VAE together with an encoder, as `fit_encoder`; the space that is given stays as it is.

    Where adapters teach, encoder and decoder begin at the regression of them on descriptions, and the decoder's directions are trained.
    Coordinates of z are chosen in which these people's points are N(0, I). The new space's `encode` of adapters is then what
    they predict of the points of their people's photos; with other teachers it is the posterior of its linear part alone,
    which shrinks much.
    Returns the space, its encoder and their history. Raises W2WError as `fit_encoder`, and for a space of another kind.
    """
    if not isinstance(space, AnchoredVaeSpace):
        raise W2WError(f"a space of kind {space.kind} has no decoder that can be trained on photos. Fit an anchored-vae.")
    learner = deepcopy(space).to(photos.base.device)
    learner.check(learner.layout, photos.base.id, f"base {photos.base.source}")
    own, (train, held_out) = _beginning(space, photos, options), _split(photos.people, options.seed)
    encoder = _untrained(photos, train, learner, options)
    options = _linear(options) if own else options
    if own:  # networks beside the directions, at rates of 0.002 and 0.0002, made people held out worse
        learner = regressed(learner, encoder, photos, own, train)
        parts = learner.freed(_linear_lr(options, photos))
        encoder.requires_grad_(False)
    else:
        decoder = nn.ModuleList([learner.decoder, learner.decoder_residual])
        parts = {"encoder": (encoder, options.lr), "decoder": (decoder, options.lr)}
    history = _descend(_Bound(learner, encoder, photos, options), parts, train, held_out, checkpoint)
    encoder = encoder.cpu().eval()
    if history["kept_step"] or own:
        with torch.no_grad():
            moved, mean, factor = learner.recentred(encoder(torch.cat([photos.described[person] for person in train])))
            encoder.recentre(mean, factor)
        learner = moved.compacted(read_from(space, encoder, photos, own, train, held_out) if own else None)
    encoder.space, encoder.people, encoder.teacher = fingerprint(learner), frozenset([*train, *held_out]), photos.teacher
    return learner, encoder, history


def _linear(options: EncoderOptions) -> EncoderOptions:
    """The options where training begins at a regression: without noise on descriptions.

    In a space that is trained too, whose coordinates are white, it is largest where descriptions vary least, and drowned what was to
    be learned.
    """
    return replace(options, jitter=0.0)


def _linear_lr(options: EncoderOptions, photos: PersonPhotos) -> float:
    return options.linear_lr or LINEAR_LR[photos.teacher]


def _beginning(space: Space, photos: PersonPhotos, options: EncoderOptions) -> OwnAdapters | None:
    """The adapters at whose regression training begins: those that teach, if they are of the space's layout.

    Raises W2WError if there are none and no step is taken, or if too few people have some.
    """
    own = photos.taught if photos.taught and photos.taught.dataset.layout == space.layout else None
    owners = sum(person in own.rows for person in photos.people) if own else 0
    if own and owners < LEAST_PEOPLE:
        found = f"{own.dataset.folder} holds adapters of {owners} of these people"
        raise W2WError(f"{found}; {LEAST_PEOPLE} are needed to begin at their regression. Use --teacher photos, or train more adapters.")
    if not options.steps and not own:
        raise W2WError(f"0 steps leave an encoder that {photos.teacher} teach at z = 0 for every photo. Give --encoder-steps.")
    return own


def _split(people: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """People to train on, and a tenth that is held out. Raises W2WError for too few."""
    if len(people) < LEAST_PEOPLE:
        raise W2WError(f"photos of {len(people)} people are too few to train an encoder. Give {LEAST_PEOPLE} or more.")
    order = torch.randperm(len(people), generator=generator(seed, "encoder split")).tolist()
    tenth = max(1, len(people) // 10)
    return [people[i] for i in order[tenth:]], [people[i] for i in order[:tenth]]


def _untrained(photos: PersonPhotos, people: Sequence[str], space: Space, options: EncoderOptions) -> PhotoEncoder:
    """An encoder for `space` that gives z = 0, and standardises by these people's photos."""
    described = torch.cat([photos.described[person] for person in people])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        encoder = PhotoEncoder(described.shape[1], space.m, options.hidden)
    encoder.mean, encoder.scale = described.mean(0), described.std(0).clamp_min(1e-6)
    return encoder


def _descend(
    bound: "_Bound",
    trained: Mapping[str, tuple[nn.Module, float]],
    train: Sequence[str],
    held_out: Sequence[str],
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Train parts by the bound, each at its peak rate, and leave them as they did best on held-out people; returns the history."""
    options = bound.options
    parameters = [[bound.log_variance], *(list(part.requires_grad_(True).parameters()) for part, _ in trained.values())]
    rates = [options.lr, *(rate for _, rate in trained.values())]
    optimiser = torch.optim.Adam([{"params": mine} for mine in parameters])
    schedule = one_cycle(optimiser, rates, options.steps, 0.1)
    record = _Record({name: part for name, (part, _) in trained.items()})
    record.training = _training(bound, train)
    width = nn.ParameterList([bound.log_variance])
    state: dict[str, Stateful] = {"record": record, "optimiser": optimiser, "schedule": schedule, "width": width, **record.parts}
    first = load_checkpoint(checkpoint, state) if checkpoint else 0
    if not first:
        record.take(0, bound.measure(held_out), None)
    chunk = max(1, options.steps // options.measured)
    sums: dict[str, float] = {}
    for step in track(range(first, options.steps), "train the encoder on photos", "steps"):
        draw = generator(options.seed, "encoder step", step)
        chosen = [train[i] for i in torch.randint(len(train), (options.batch,), generator=draw).tolist()]
        parts = bound(chosen, draw, options.jitter)
        optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        optimiser.step()
        schedule.step()
        sums = {name: sums.get(name, 0.0) + float(value.detach()) / chunk for name, value in parts.items()}
        if (step + 1) % chunk == 0:
            record.take(step + 1, bound.measure(held_out), sums)
            sums = {}
            if checkpoint:
                save_checkpoint(checkpoint, state, step + 1)
    if not record.kept_step and options.steps:
        warnings.warn("no step did better on held-out people than the start, which is kept. Train on more people.", stacklevel=3)
    return record.restored()


def _training(bound: "_Bound", people: Sequence[str]) -> str:
    """Which training this is. No number that was computed takes part: its last bits are not the same with other threads."""
    photos, own = bound.photos, bound.photos.taught
    teacher = f"{photos.teacher} {own.loudness} {own.dataset.fingerprint}" if own else photos.teacher
    who = checksum({}, {"people": " ".join(people)})
    return f"{bound.options} {teacher} {photos.prompt!r} {photos.base.id} {bound.space.kind} {bound.space.m} {who}"


class _Record:
    """Losses on the way, and the parts as they were at the measurement with the lowest loss of held-out people."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.parts, self.training = parts, ""  # which training this is: a checkpoint of another one is refused
        self.history: dict[str, Any] = {"step": [], "train": [], "held_out": []}
        self.best, self.kept_step = math.inf, 0
        self.states: dict[str, dict[str, Tensor]] = {}

    def take(self, step: int, held_out: dict[str, float], train: dict[str, float] | None) -> None:
        """Note a measurement after `step` steps. Raises W2WError for a loss that is not a number."""
        self.history["step"].append(step)
        self.history["held_out"].append(held_out)
        if train is not None:
            self.history["train"].append(train)
        if not held_out["loss"] < math.inf:
            raise W2WError(f"the loss is not a number after {step} steps. Lower the rate (EncoderOptions.lr, or linear_lr), or --loudness.")
        if held_out["loss"] < self.best:
            self.best, self.kept_step = held_out["loss"], step
            self.states = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in self.parts.items()}

    def restored(self) -> dict[str, Any]:
        """Bring the parts back to the best measurement; returns the history."""
        for name, part in self.parts.items():
            part.load_state_dict(self.states[name])
            part.requires_grad_(False)
        return {**self.history, "kept_step": self.kept_step}

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "parts"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises ValueError for one of another training."""
        if state["training"] != self.training:
            raise ValueError("it is of a training with other options or people")
        vars(self).update(state)


class _Bound:
    """Eq. 7, amortised: the teacher's loss of decoded draws of z, and the KL of their distribution to the prior."""

    def __init__(self, space: Space, encoder: PhotoEncoder, photos: PersonPhotos, options: EncoderOptions) -> None:
        self.space, self.encoder, self.photos, self.options = space, encoder.to(photos.base.device), photos, options
        # Narrow from the start: at the prior's width the decoder learned to hear noise, and pictures lost 0.04 to 0.06 of their score.
        self.log_variance = nn.Parameter(torch.full((space.m,), -5.0, device=photos.base.device))

    def __call__(self, people: Sequence[str], draw: torch.Generator, jitter: float = 0.0) -> dict[str, Tensor]:
        """Means over these people: what is minimised, and its parts."""
        described = [self.photos.described[person] for person in people]
        given = torch.stack([photos[int(torch.randint(len(photos), (1,), generator=draw))] for photos in described])
        given = given.to(self.log_variance.device)
        given = given + jitter * self.encoder.scale * torch.randn(given.shape, generator=draw).to(given)
        mean = self.encoder(given)
        z = mean + (self.log_variance / 2).exp() * torch.randn(mean.shape, generator=draw).to(mean)
        taught = self.photos.loss(self.space.layout, self.space.decode(z), people, self.options.draws, draw).mean()
        kl = kl_divergence(mean, self.log_variance.expand_as(mean)).mean()
        return {"loss": taught + self.options.prior_weight * kl, "taught": taught, "kl": kl}

    @torch.no_grad()
    def measure(self, people: Sequence[str]) -> dict[str, float]:
        """The same over held-out people, with the same draws each time."""
        draw, size = generator(self.options.seed, "encoder held out"), self.options.batch
        groups = [people[i : i + size] for i in range(0, len(people), size)]
        found = [(len(group), self(group, draw)) for group in groups]
        return {name: sum(n * float(parts[name]) for n, parts in found) / len(people) for name in found[0][1]}
