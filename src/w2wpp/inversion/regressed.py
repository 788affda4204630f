"""What descriptions of faces and adapters foretell of each other: where teaching by adapters begins, and how it reads them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from w2wpp.common.batches import batches
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.spaces.anchored_vae import AnchoredVaeSpace, Reading
from w2wpp.spaces.regression import Ridge


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

    Where the descriptions have fewer numbers than the space has latents, the others are principal components.
    """
    ridge = regression(encoder, photos, own, people, space.standardise)
    found, into = ridge.directions(space.m)
    follow(encoder, ridge, into)
    return space.along(own.loudness * found, ridge.centre)


def follow(encoder: PhotoEncoder, ridge: Ridge, linear: Tensor) -> None:
    """Let an untrained encoder map standardised descriptions x to (x - their mean) @ linear.T in its first latents."""
    encoder.linear.weight.data[: len(linear)] = linear
    encoder.linear.bias.data[: len(linear)] = -(linear @ ridge.at)


@torch.no_grad()
def read_from(
    space: AnchoredVaeSpace,
    encoder: PhotoEncoder,
    photos: PersonPhotos,
    own: OwnAdapters,
    people: Sequence[str],
    held_out: Sequence[str],
) -> Reading:
    """How an adapter foretells where `encoder` puts its person's photos, by the components of `space`.

    A ridge alone answers with less than people differ by. Its answers are enlarged until those for people held out vary as points do.
    """

    def given(people: Sequence[str]) -> tuple[Tensor, Tensor]:
        described, rows = _rows(photos, own, people)
        coefficients = [space.standardise(own.dataset.rows(rows[s])).cpu() @ basis.T for s in batches(len(rows), 256)]
        return torch.cat(coefficients), encoder(described)

    basis = space.basis.float().cpu()
    inputs, z = given(people)
    ridge = Ridge.fit(inputs, lambda s: z[s], penalty=space.layout.d / len(inputs))
    unseen, real = given(held_out)
    factor = float((real.square().mean() / ((unseen - ridge.at) @ ridge.slope).square().mean().clamp_min(1e-12)).sqrt())
    directions = factor * ridge.slope.T @ basis
    return Reading(directions, ridge.centre - factor * ridge.at @ ridge.slope, space.mean.cpu())


def _rows(photos: PersonPhotos, own: OwnAdapters, people: Sequence[str]) -> tuple[Tensor, list[int]]:
    """The mean description of the person of each of these people's adapters, [n, f], and the adapters' rows."""
    pairs = [(person, row) for person in people for row in own.rows[person]]
    return torch.stack([photos.described[person].mean(0) for person, _ in pairs]), [row for _, row in pairs]
