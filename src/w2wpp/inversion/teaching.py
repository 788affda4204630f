"""Train an encoder of photos for a space, alone or with the space's decoder, on what its decoded points do.

Where people have adapters and these teach, or likeness does, training begins at a regression of the adapters on their people's
descriptions (`spaces/regression.py`).
"""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator
from w2wpp.inversion.bound import Bound, EncoderOptions
from w2wpp.inversion.descent import descend, loss_of_held_out
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.inversion.regressed import follow, read_from, regressed, regression
from w2wpp.spaces.anchored_vae import AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import fingerprint

LEAST_PEOPLE = 10
# Rates by teacher, chosen on val people: of an encoder's linear map, and of a decoder's directions.
LINEAR_LR = {"likeness": 8e-2, "both": 4e-2, "adapters": 4e-2}
DIRECTIONS_LR = {**LINEAR_LR, "likeness": 5e-2}  # at 0.08 training broke after 200 steps


def fit_encoder(
    space: Space, photos: PersonPhotos, options: EncoderOptions, checkpoint: Path | None = None
) -> tuple[PhotoEncoder, dict[str, Any]]:
    """Train an encoder for a space on people's photos, by the bound of eq. 7 on any photo of the person.

    One photo is described; the decoded adapter has to do what the teacher asks on all of that person's photos. A tenth of
    the people is held out and says which step is kept. checkpoint: a file where training goes on if it was interrupted.
    Where it begins at adapters, it begins at the regression of their points on descriptions, or at that times their loudness, and
    only its linear map is trained.
    Returns the encoder, and its history: the loss and its parts on train and held-out people, one row per measurement.
    Raises W2WError for too few people, no steps where training begins at nothing, or a loss that is not a number.
    """
    space = space.to(photos.base.device)
    space.check(space.layout, photos.base.id, f"base {photos.base.source}")
    own, (train, held_out) = _beginning(space, photos, options), _split(photos.people, options.seed)
    encoder = _untrained(photos, train, space, options)
    trained: tuple[nn.Module, float] = (encoder, options.lr)
    if own:
        options, rate = _linear(options, LINEAR_LR[photos.teacher])
    bound = Bound(space, encoder, photos, options)
    if own:
        ridge, losses = regression(encoder, photos, own, train, space.encode), {}
        for loudness in (own.loudness, 1.0):  # the points of a space that adapters taught are as loud as they
            follow(encoder, ridge, loudness * ridge.slope.T, ridge.centre)
            losses[loudness] = loss_of_held_out(bound, held_out)["loss"]
        follow(encoder, ridge, min(losses, key=lambda loudness: losses[loudness]) * ridge.slope.T, ridge.centre)
        encoder.requires_grad_(False)
        trained = encoder.linear, rate * float(encoder.linear.weight.square().mean().sqrt())
    history = descend(bound, {"encoder": trained}, train, held_out, checkpoint)
    encoder = encoder.cpu().eval()
    encoder.space, encoder.people, encoder.teacher = fingerprint(space), frozenset([*train, *held_out]), photos.teacher
    return encoder, history


def fit_with_decoder(
    space: Space, photos: PersonPhotos, options: EncoderOptions, checkpoint: Path | None = None
) -> tuple[AnchoredVaeSpace, PhotoEncoder, dict[str, Any]]:
    """Train the decoder of an anchored VAE together with an encoder, as `fit_encoder`; the space that is given stays as it is.

    Where it begins at adapters, encoder and decoder begin at the regression of them on descriptions, and the decoder's directions are
    trained. Coordinates of z are chosen in which these people's points are N(0, I). The new space's `encode` of adapters is then what
    they predict of the points of their people's photos; without adapters it is the posterior of its linear part alone, which
    shrinks much.
    Returns the space, its encoder and their history. Raises W2WError as `fit_encoder`, and for a space of another kind.
    """
    if not isinstance(space, AnchoredVaeSpace):
        raise W2WError(f"a space of kind {space.kind} has no decoder that can be trained on photos. Fit an anchored-vae.")
    learner = deepcopy(space).to(photos.base.device)
    learner.check(learner.layout, photos.base.id, f"base {photos.base.source}")
    own, (train, held_out) = _beginning(space, photos, options), _split(photos.people, options.seed)
    encoder = _untrained(photos, train, learner, options)
    if own:  # networks beside the directions, at rates of 0.002 and 0.0002, made people held out worse
        learner = regressed(learner, encoder, photos, own, train)
        options, rate = _linear(options, DIRECTIONS_LR[photos.teacher])
        parts = learner.freed(rate)
        encoder.requires_grad_(False)
    else:
        decoder = nn.ModuleList([learner.decoder, learner.decoder_residual])
        parts = {"encoder": (encoder, options.lr), "decoder": (decoder, options.lr)}
    history = descend(Bound(learner, encoder, photos, options), parts, train, held_out, checkpoint)
    encoder = encoder.cpu().eval()
    if history["kept_step"] or own:
        with torch.no_grad():
            moved, mean, factor = learner.recentred(encoder(torch.cat([photos.described[person] for person in train])))
            encoder.recentre(mean, factor)
        learner = moved.compacted(read_from(space, encoder, photos, own, train, held_out) if own else None)
    encoder.space, encoder.people, encoder.teacher = fingerprint(learner), frozenset([*train, *held_out]), photos.teacher
    return learner, encoder, history


def _linear(options: EncoderOptions, rate: float) -> tuple[EncoderOptions, float]:
    """The options where training begins at a regression, without noise on descriptions, and its rate: `rate` unless they have one.

    In a space that is trained too, whose coordinates are white, noise is largest where descriptions vary least, and drowned what was to
    be learned.
    """
    rate = rate if options.linear_lr is None else options.linear_lr
    return replace(options, jitter=0.0, linear_lr=rate), rate


def _beginning(space: Space, photos: PersonPhotos, options: EncoderOptions) -> OwnAdapters | None:
    """The adapters at whose regression training begins: those of the teacher, if they are of the space's layout.

    Likeness can do without: a warning says so. Raises W2WError if there are none and no step is taken, or if too few people have some.
    """
    own = photos.taught if photos.taught and photos.taught.dataset.layout == space.layout else None
    owners = sum(person in own.rows for person in photos.people) if own else 0
    if own and owners < LEAST_PEOPLE:
        found = f"{own.dataset.folder} holds adapters of {owners} of these people"
        if not photos.alike:
            raise W2WError(
                f"{found}; {LEAST_PEOPLE} are needed to begin at their regression. Use another --teacher, or train more adapters."
            )
        warnings.warn(f"{found}: too few to begin at. Training begins at the mean adapter.", stacklevel=4)
        own = None
    elif photos.alike and photos.taught and not own:
        found = f"{photos.taught.dataset.folder} holds adapters of another layout than the space"
        warnings.warn(f"{found}, which cannot be begun at. Training begins at the mean adapter.", stacklevel=4)
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
