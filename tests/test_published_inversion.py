"""The published inversions: raw coefficients, fresh draws, the mask on both sides, and what the seed changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.inversion.evolution import SEED_SEARCH, EvolutionOptions, _Cma
from w2wpp.inversion.published import OUT_OF_DISTRIBUTION, RAW, SEED, PublishedOptions, invert_published, latent_moments
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import Image
from w2wpp.spaces.pca import PcaSpace

M = 5


@pytest.fixture
def space(base: BaseModel, layout: Layout) -> PcaSpace:
    rows = 0.02 * torch.randn(12, layout.d, generator=torch.Generator().manual_seed(0))
    space = PcaSpace.fit(rows, m=M, layout=layout, base_id=base.id)
    space.centre = 0.5 * torch.ones(M)  # as the published projections, whose mean need not be 0
    return space


@pytest.fixture
def photo() -> Image:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def test_the_recipes_are_the_published_ones() -> None:
    assert (RAW.steps, RAW.lr, RAW.weight_decay, RAW.timesteps, RAW.components, RAW.decoupled) == (400, 0.1, 1e-10, 1, None, False)
    assert (OUT_OF_DISTRIBUTION.steps, OUT_OF_DISTRIBUTION.lr, OUT_OF_DISTRIBUTION.components) == (800, 1.0, 1000)
    assert (SEED.lr, SEED.decoupled, SEED.random_start) == (1e-4, True, True) and SEED.timesteps > 1


def test_it_starts_at_raw_zero_and_adam_moves_raw_coefficients(base: BaseModel, space: PcaSpace, photo: Image) -> None:
    found = invert_published(base, space, [[photo]], ["a"], PublishedOptions(steps=3, lr=0.1))
    raw = space.to_raw(found.path[:, 0])
    torch.testing.assert_close(raw[0], torch.zeros(M), atol=1e-5, rtol=0)
    torch.testing.assert_close((raw[1] - raw[0]).abs(), torch.full((M,), 0.1), atol=1e-3, rtol=0)  # Adam's first step is the rate
    again = invert_published(base, space, [[photo], [photo]], ["a", "b"], PublishedOptions(steps=3, lr=0.1))
    torch.testing.assert_close(again.z[0], found.z[0], atol=2e-2, rtol=0)  # who shares the batch does not matter
    assert not torch.allclose(again.z[1], again.z[0], atol=1e-3)  # others draw other noise


def test_only_the_first_components_move(base: BaseModel, space: PcaSpace, photo: Image) -> None:
    found = invert_published(base, space, [[photo]], ["a"], PublishedOptions(steps=2, lr=1.0, components=2))
    raw = space.to_raw(found.z)[0]
    assert (raw[:2].abs() > 0.5).all() and torch.allclose(raw[2:], torch.zeros(M - 2), atol=1e-5)


def test_the_mask_multiplies_both_sides(base: BaseModel, space: PcaSpace, photo: Image) -> None:
    whole = torch.ones(1, 1, *base.latent_shape[1:])
    plain, full, half = (
        invert_published(base, space, [[photo]], ["a"], PublishedOptions(steps=1), mask=mask) for mask in (None, whole, whole / 2)
    )
    torch.testing.assert_close(full.losses, plain.losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(half.losses, plain.losses / 4, rtol=1e-4, atol=0)  # |m a - m b|^2 = m^2 |a - b|^2


def test_an_inactive_latent_stays_and_several_timesteps_share_a_step(base: BaseModel, space: PcaSpace, photo: Image) -> None:
    activity = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0])
    options = PublishedOptions(
        steps=3, lr=0.1, decoupled=True, timesteps=3, random_start=True, weight_decay=0.0, activity=tuple(activity.tolist())
    )
    found = invert_published(base, space, [[photo]], ["a"], options)
    moved = (found.path[-1] - found.path[0])[0].abs()
    assert (moved[activity == 0] == 0).all() and (moved[activity > 0] > 0).all() and found.unet_evals == 9


def test_the_photos_latents_are_drawn_anew_where_the_autoencoder_is_variational(base: BaseModel, photo: Image) -> None:
    mean, deviation = latent_moments(base, [photo])
    assert mean.shape == deviation.shape == (1, *base.latent_shape)


def test_nonsense_is_refused() -> None:
    with pytest.raises(W2WError, match="cannot be inverted"):
        PublishedOptions(lr=0.0)


def test_the_seeds_search_is_full_wide_and_within_its_box(base: BaseModel, space: PcaSpace) -> None:
    pytest.importorskip("cma")
    assert (SEED_SEARCH.sigma, SEED_SEARCH.bounds, SEED_SEARCH.diagonal) == (0.75, 1.3, False)
    search = _Cma(torch.zeros(M), SEED_SEARCH, 1)
    for _ in range(3):
        z = search.ask()
        assert z.shape == (SEED_SEARCH.population, M) and z.abs().max() <= 1.3 + 1e-6
        search.tell(z, ((z - torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0])) ** 2).sum(1))
    assert np.abs(np.triu(search._es.C, 1)).max() > 0  # covariances, not variances alone
    plain = _Cma(torch.zeros(M), replace(SEED_SEARCH, bounds=None, diagonal=True), 1)
    plain.tell(z := plain.ask(), z.square().sum(1))
    assert not np.triu(np.atleast_2d(plain._es.C), 1).any()
    with pytest.raises(W2WError, match="Bounds are CMA-ES's"):
        EvolutionOptions("cem", bounds=1.0)
