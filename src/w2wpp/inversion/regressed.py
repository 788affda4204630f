"""What descriptions of faces and adapters predict of each other: where teaching by adapters begins, and how adapters are read."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.spaces.anchored_vae import AnchoredVaeSpace, Reading
from w2wpp.spaces.regression import Ridge

LARGEST = 4.0  # enlargement of what a ridge reads from adapters


def regression(
    encoder: PhotoEncoder, photos: PersonPhotos, own: OwnAdapters, people: Sequence[str], targets: Callable[[Tensor], Tensor]
) -> Ridge:
    """What people's descriptions, standardised as `encoder` does, predict of `targets` of their adapters' weights [k, d]."""
    described, rows = _rows(photos, own, people)
    return Ridge.fit((described - encoder.mean) / encoder.scale, lambda s: targets(own.dataset.rows(rows[s])).cpu())


def regressed(
    space: AnchoredVaeSpace, encoder: PhotoEncoder, photos: PersonPhotos, own: OwnAdapters, people: Sequence[str]
) -> AnchoredVaeSpace:
    """A linear space of the directions in which descriptions tell adapters apart, as loud as `own`; `encoder` maps there.

    Where descriptions vary along fewer directions than the space has latents, the others are principal components, in which all
    photos have one value.
    """
    ridge = regression(encoder, photos, own, people, space.standardise)
    found, into = ridge.directions(space.m)
    follow(encoder, ridge, into, torch.zeros(len(into)))
    return space.along(own.loudness * found, ridge.centre)


def follow(encoder: PhotoEncoder, ridge: Ridge, linear: Tensor, centre: Tensor) -> None:
    """Let an untrained encoder map standardised descriptions x to centre + (x - their mean) @ linear.T in its first latents."""
    weight, bias = encoder.linear.weight.data, encoder.linear.bias.data
    weight[: len(linear)] = linear.to(weight)
    bias[: len(linear)] = (centre - linear @ ridge.at).to(bias)


@torch.no_grad()
def read_from(
    space: AnchoredVaeSpace,
    encoder: PhotoEncoder,
    photos: PersonPhotos,
    own: OwnAdapters,
    people: Sequence[str],
    held_out: Sequence[str],
) -> Reading:
    """How an adapter predicts where `encoder` puts its person's photos, by the components of `space`.

    A ridge alone answers with less than people differ by. Its answers are enlarged until those for people held out (for all, if
    none of these has an adapter) vary as points do, by LARGEST at most.
    """

    def given(people: Sequence[str]) -> tuple[Tensor, Tensor]:
        described, rows = _rows(photos, own, people)
        coefficients = [(space.standardise(own.dataset.rows(rows[s])) @ basis.T).cpu() for s in batches(len(rows), 256)]
        return torch.cat(coefficients), encoder(described)

    basis = space.basis.float()
    inputs, z = given(people)
    # As much as an adapter varies, spread over the rows: R2 of people held out is flat from a half to twice that.
    ridge = Ridge.fit(inputs, lambda s: z[s], penalty=space.layout.d / len(inputs))
    unseen, real = given(held_out if any(person in own.rows for person in held_out) else people)
    factor = min(LARGEST, float((real.square().mean() / ((unseen - ridge.at) @ ridge.slope).square().mean().clamp_min(1e-12)).sqrt()))
    directions = factor * ridge.slope.T @ basis.cpu()
    return Reading(directions, ridge.centre - factor * ridge.at @ ridge.slope, space.mean.cpu())


def _rows(photos: PersonPhotos, own: OwnAdapters, people: Sequence[str]) -> tuple[Tensor, list[int]]:
    """The mean description of the person of each of these people's adapters, [n, f], and the adapters' rows; some may have none."""
    pairs = sorted((row, person) for person in people for row in own.rows.get(person, ()))  # in their order, each shard is read once
    return torch.stack([photos.described[person].mean(0) for _, person in pairs]), [row for row, _ in pairs]
