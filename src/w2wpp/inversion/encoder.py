"""From a photo to a point in one pass: a network from a description of the face to z, trained on what its points draw.

The description is `descriptors.describe_faces`, by a network other than the face recogniser: FaceNet only scores, and is never optimised.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.adapters.start import Start
from w2wpp.common.assets import located
from w2wpp.common.errors import W2WError
from w2wpp.common.files import checksum, read_checked, write_checked
from w2wpp.common.hub import Token, fetched
from w2wpp.common.progress import track
from w2wpp.common.schedules import one_cycle
from w2wpp.common.seeds import generator
from w2wpp.inversion.person_photos import PersonPhotos
from w2wpp.photos.descriptors import mean_descriptions
from w2wpp.photos.images import Image
from w2wpp.spaces.anchored_vae import AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.networks import kl_divergence, layers
from w2wpp.spaces.point_files import alike, fingerprint
from w2wpp.spaces.pretrained import PATTERNS

FORMAT = "w2wpp-encoder-1"
LEAST_PEOPLE = 10


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder is trained, alone or with the decoder of its space."""

    hidden: int = 512  # width of the residual network's one hidden layer
    steps: int = 900  # of Adam
    batch: int = 64  # people a step
    draws: int = 2  # of photo, timestep and noise per person and step
    lr: float = 2e-3  # Adam's peak rate; it falls along a half cosine to 0
    prior_weight: float = 0.0002  # of the KL to the prior, a latent (eq. 7)
    jitter: float = 0.2  # noise on a description in training, in its standard deviations over photos
    measured: int = 5  # times that held-out people's loss is taken; the best is kept
    seed: int = 0


class PhotoEncoder(nn.Module):
    """Descriptions [n, f] -> points z [n, m] of one space."""

    mean: Tensor  # [f], over photos
    scale: Tensor  # [f]
    space: Tensor  # the fingerprint of the space that the points lie in
    people: frozenset[str]  # whose photos it learned from; empty if that is not known

    def __init__(self, features: int, m: int, hidden: int) -> None:
        super().__init__()
        self.features, self.m, self.hidden, self.people = features, m, hidden, frozenset()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("space", torch.zeros(0))
        self.linear, self.residual = nn.Linear(features, m), layers((features, hidden, m))
        for parameter in (*self.linear.parameters(), *self.residual[-1].parameters()):  # begin at z = 0, the mean adapter
            nn.init.zeros_(parameter)

    def forward(self, described: Tensor) -> Tensor:
        """Descriptions [n, f] -> points z [n, m] float32."""
        x = (described - self.mean) / self.scale
        return self.linear(x) + self.residual(x)

    def recentre(self, mean: Tensor, factor: Tensor) -> None:
        """Follow a space whose points z have become factor^-1 (z - mean)."""
        self.linear.bias.data -= mean
        for parameter in (*self.linear.parameters(), *self.residual[-1].parameters()):
            moved = torch.linalg.solve_triangular(factor, parameter.data.reshape(self.m, -1), upper=False)
            parameter.data = moved.reshape(parameter.shape)

    def points(self, people: Sequence[Sequence[Image]]) -> Tensor:
        """Each person's aligned photos [h, w, 3] uint8 -> points z [n, m]; several photos are described by their mean.

        Raises W2WError without the extra that describes faces.
        """
        return self(mean_descriptions(people))

    def check(self, space: Space) -> None:
        """Raise W2WError unless this encoder was trained for `space`."""
        if self.m != space.m or not alike(self.space.cpu(), fingerprint(space)):
            raise W2WError(f"the encoder was trained for another space (m = {self.m}) than {space.source}. Train it: `w2w fit encoder`.")

    def save(self, path: str | Path) -> None:
        """Write the encoder as one safetensors file."""
        config = [self.features, self.m, self.hidden]
        about = {"format": FORMAT, "config": json.dumps(config), "people": json.dumps(sorted(self.people))}
        write_checked(path, self.state_dict(), about)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, token: Token = None, local_files_only: bool = False
    ) -> "PhotoEncoder":
        """Load the encoder beside a space, from disk, as `load`, or from the Hugging Face hub; arguments as of `Space.from_pretrained`."""
        return cls.load(fetched(source, PATTERNS, revision=revision, token=token, local_files_only=local_files_only))

    @classmethod
    def load(cls, path: str | Path) -> "PhotoEncoder":
        """Read what `save` wrote, the encoder in a folder of `Space.save_pretrained`, or `tiny-faces`, that of the embedded space.

        Raises W2WError if the file is not a whole encoder, or was altered.
        """
        path = str(located(path, "space/encoder.safetensors"))
        tensors, about = read_checked(path, "encoder")
        if about.get("format") != FORMAT:
            raise W2WError(f"{path} holds no encoder ({FORMAT} was expected). Make one with `w2w fit encoder`.")
        try:
            encoder = cls(*json.loads(about["config"]))
            encoder.space, encoder.people = tensors["space"], frozenset(json.loads(about.get("people", "[]")))
            encoder.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise W2WError(f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Train it again.") from error
        return encoder.requires_grad_(False).eval()


def encoder_start(space: Space, encoder: PhotoEncoder) -> Start:
    """Training that begins at the adapters of the points to which an encoder maps the photos.

    Raises W2WError if the encoder was trained for another space.
    """
    encoder.check(space)

    @torch.no_grad()
    def weights(people: Sequence[Sequence[Image]]) -> Tensor:
        return space.decode(encoder.points(people)).cpu()

    return Start(f"encoder {checksum(encoder.state_dict(), {})} of {space.kind}, m = {space.m}", weights)


def fit_encoder(space: Space, photos: PersonPhotos, options: EncoderOptions) -> tuple[PhotoEncoder, dict[str, Any]]:
    """Train an encoder for a space on people's photos, by the bound of eq. 7 on any photo of the person.

    One photo is described; the decoded adapter has to do what the teacher asks on all of that person's photos. A tenth of
    the people is held out and says which step is kept.
    Returns the encoder, and its history: the loss and its parts on train and held-out people, one row per measurement.
    Raises W2WError for too few people, or a loss that is not a number.
    """
    encoder, history, _ = _trained(space.to(photos.base.device), photos, options, {})
    encoder.space = fingerprint(space)
    return encoder, history


def fit_with_decoder(space: Space, photos: PersonPhotos, options: EncoderOptions) -> tuple[AnchoredVaeSpace, PhotoEncoder, dict[str, Any]]:
    """Train the decoder of an anchored VAE together with an encoder, as `fit_encoder`; the space that is given stays as it is.

    Coordinates of z are chosen in which these people's points are N(0, I). The new space's `encode` of adapters is the
    posterior of its linear part alone, which shrinks much: points come from photos.
    Returns the space, its encoder and their history. Raises W2WError as `fit_encoder`, and for a space of another kind.
    """
    if not isinstance(space, AnchoredVaeSpace):
        raise W2WError(f"a space of kind {space.kind} has no decoder that can be trained on photos. Fit an anchored-vae.")
    taught = deepcopy(space).to(photos.base.device)
    decoder = nn.ModuleList([taught.decoder, taught.decoder_residual])
    encoder, history, described = _trained(taught, photos, options, {"decoder": decoder})
    if history["kept_step"]:
        with torch.no_grad():
            moved, mean, factor = taught.recentred(encoder(described))
            encoder.recentre(mean, factor)
        taught = moved.compacted()
    encoder.space = fingerprint(taught)
    return taught, encoder, history


def _trained(
    space: Space, photos: PersonPhotos, options: EncoderOptions, parts: Mapping[str, nn.Module]
) -> tuple[PhotoEncoder, dict[str, Any], Tensor]:
    """An encoder of people's photos, trained with other parts; its history; and the descriptions it learned from, [n, features]."""
    space.check(space.layout, photos.base.id, f"base {photos.base.source}")
    train, held_out = _split(sorted(photos.latents), options.seed)
    every = torch.cat([photos.described[person] for person in train])
    encoder = _untrained(every, space, options).to(photos.base.device)
    # Narrow from the start: at the prior's width the decoder learned to hear noise, and pictures lost 0.04 to 0.06 of their score.
    log_variance = nn.Parameter(torch.full((space.m,), -5.0, device=photos.base.device))
    history = _descend(_Bound(space, encoder, log_variance, photos, options), {"encoder": encoder, **parts}, train, held_out)
    encoder = encoder.cpu().eval()
    encoder.people = frozenset([*train, *held_out])
    return encoder, history, every


def _split(people: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """People to train on, and a tenth that is held out. Raises W2WError for too few."""
    if len(people) < LEAST_PEOPLE:
        raise W2WError(f"photos of {len(people)} people are too few to train an encoder. Give {LEAST_PEOPLE} or more.")
    order = torch.randperm(len(people), generator=generator(seed, "encoder split")).tolist()
    tenth = max(1, len(people) // 10)
    return [people[i] for i in order[tenth:]], [people[i] for i in order[:tenth]]


def _untrained(described: Tensor, space: Space, options: EncoderOptions) -> PhotoEncoder:
    """An encoder for `space` that standardises by these descriptions of photos, [n, features]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        encoder = PhotoEncoder(described.shape[1], space.m, options.hidden)
    encoder.mean, encoder.scale = described.mean(0), described.std(0).clamp_min(1e-6)
    return encoder


def _descend(bound: "_Bound", trained: Mapping[str, nn.Module], train: Sequence[str], held_out: Sequence[str]) -> dict[str, Any]:
    """Train the parts by the bound, and leave them as they did best on held-out people; returns the history."""
    options = bound.options
    parameters = [bound.log_variance, *(p.requires_grad_(True) for part in trained.values() for p in part.parameters())]
    optimiser = torch.optim.Adam(parameters, lr=options.lr)
    schedule = one_cycle(optimiser, options.lr, options.steps, 0.1)
    history: dict[str, Any] = {"step": [0], "train": [], "held_out": [bound.measure(held_out)]}
    best, kept_step, states = history["held_out"][0]["loss"], 0, _copies(trained)
    chunk = max(1, options.steps // options.measured)
    sums: dict[str, float] = {}
    for step in track(range(options.steps), "train the encoder on photos", "steps"):
        draw = generator(options.seed, "encoder step", step)
        chosen = [train[i] for i in torch.randint(len(train), (options.batch,), generator=draw).tolist()]
        parts = bound(chosen, draw, options.jitter)
        optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        optimiser.step()
        schedule.step()
        sums = {name: sums.get(name, 0.0) + float(value.detach()) / chunk for name, value in parts.items()}
        if (step + 1) % chunk == 0:
            history["step"].append(step + 1)
            history["train"].append(sums)
            history["held_out"].append(bound.measure(held_out))
            sums = {}
            if not history["held_out"][-1]["loss"] < float("inf"):
                raise W2WError(f"training diverged at step {step + 1}: its loss is not a number. Lower its rate (EncoderOptions.lr).")
            if history["held_out"][-1]["loss"] < best:
                best, kept_step, states = history["held_out"][-1]["loss"], step + 1, _copies(trained)
    for name, part in trained.items():
        part.load_state_dict(states[name])
        part.requires_grad_(False)
    if not kept_step:
        warnings.warn("no step did better on held-out people than z = 0, which this encoder gives. Train on more people.", stacklevel=3)
    return {**history, "kept_step": kept_step}


def _copies(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {key: {name: value.clone() for name, value in part.state_dict().items()} for key, part in parts.items()}


class _Bound:
    """Eq. 7, amortised: the denoising loss of decoded draws of z, and the KL of their distribution to the prior."""

    def __init__(self, space: Space, encoder: PhotoEncoder, log_variance: Tensor, photos: PersonPhotos, options: EncoderOptions) -> None:
        self.space, self.encoder, self.log_variance, self.photos, self.options = space, encoder, log_variance, photos, options

    def __call__(self, people: Sequence[str], draw: torch.Generator, jitter: float = 0.0) -> dict[str, Tensor]:
        """Means over these people: what is minimised, and its parts."""
        described = [self.photos.described[person] for person in people]
        given = torch.stack([photos[int(torch.randint(len(photos), (1,), generator=draw))] for photos in described])
        given = given.to(self.log_variance.device)
        given = given + jitter * self.encoder.scale * torch.randn(given.shape, generator=draw).to(given)
        mean = self.encoder(given)
        z = mean + (self.log_variance / 2).exp() * torch.randn(mean.shape, generator=draw).to(mean)
        denoising = self.photos.loss(self.space.layout, self.space.decode(z), people, self.options.draws, draw).mean()
        kl = kl_divergence(mean, self.log_variance.expand_as(mean)).mean()
        return {"loss": denoising + self.options.prior_weight * kl, "denoising": denoising, "kl": kl}

    @torch.no_grad()
    def measure(self, people: Sequence[str]) -> dict[str, float]:
        """The same over held-out people, with the same draws each time."""
        draw, size = generator(self.options.seed, "encoder held out"), self.options.batch
        groups = [people[i : i + size] for i in range(0, len(people), size)]
        found = [(len(group), self(group, draw)) for group in groups]
        return {name: sum(n * float(parts[name]) for n, parts in found) / len(people) for name in found[0][1]}
