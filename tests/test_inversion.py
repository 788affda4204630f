"""Inversion goes down the loss, person by person, and what it finds can be saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.peft import read_peft, write_peft
from w2wpp.inversion.gradient import PUBLISHED, InversionOptions, Inverted, invert
from w2wpp.inversion.objective import NoisePairs, PairOptions
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points, save_points

KEYS = ["Ada", "Grace", "Ida"]
SHORT = InversionOptions(steps=4, batch=2, prompt="photo of sks person")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that equal means equal on every processor."""
    monkeypatch.setenv("W2WPP_PRECISION", "float32")


def fit(base: BaseModel, layout: Layout, seed: int = 0) -> PcaSpace:
    """A space of ten adapters that do something."""
    weights = initial_weights(layout) + 0.1 * torch.randn(10, layout.d, generator=torch.Generator().manual_seed(seed))
    return PcaSpace.fit(weights, layout=layout, base_id=base.id, m=6)


@pytest.fixture(scope="module")
def space(base: BaseModel, layout: Layout) -> PcaSpace:
    return fit(base, layout)


@pytest.fixture(scope="module")
def latents(base: BaseModel) -> Tensor:
    return torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(3))


def pairs_loss(base: BaseModel, space: PcaSpace, z: Tensor, latents: Tensor) -> Tensor:
    """The loss of each person on draws that inversion did not see: [k]."""
    draw = torch.Generator().manual_seed(9)
    timesteps = torch.linspace(0, 999, 16).long().expand(len(z), -1)
    noise = torch.randn(1, 16, *base.latent_shape, generator=draw).expand(len(z), -1, -1, -1, -1)
    photos = latents[:, None].expand(-1, 16, -1, -1, -1)
    context = base.encode_text(["photo of sks person"])[0]
    with torch.no_grad():
        return denoising_loss(base, space.layout, space.decode(z), photos, context, timesteps, noise).mean(1)


def test_every_persons_loss_falls_on_draws_that_were_not_seen(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    found = invert(base, space, latents, KEYS, InversionOptions(steps=40, batch=4, pairs=PairOptions(draws=32)))
    assert found.losses.shape == (40, 3) and found.unet_evals == 160
    before = pairs_loss(base, space, torch.zeros_like(found.z), latents)
    assert (pairs_loss(base, space, found.z, latents) < before).all()


def test_a_person_is_the_same_alone_and_in_company(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    together = invert(base, space, latents, KEYS, SHORT)
    alone = invert(base, space, latents[1:2], KEYS[1:2], SHORT)
    in_groups = invert(base, space, latents, KEYS, InversionOptions(**{**vars(SHORT), "group": 2}))
    torch.testing.assert_close(alone.z, together.z[1:2], atol=2e-4, rtol=0)
    torch.testing.assert_close(in_groups.z, together.z, atol=2e-4, rtol=0)
    assert (together.z[0] - together.z[1]).abs().max() > 0.05


def test_seed_and_key_decide_the_draws(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    def run(key: str, seed: int) -> Inverted:
        return invert(base, space, latents[:1], [key], InversionOptions(**{**vars(SHORT), "seed": seed}))

    first = run("Ada", 0)
    assert torch.equal(first.losses, run("Ada", 0).losses)
    assert not torch.allclose(first.losses, run("Grace", 0).losses)
    assert not torch.allclose(first.losses, run("Ada", 1).losses)


def test_mask_and_prior_change_the_point_as_they_should(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    plain = invert(base, space, latents, KEYS, SHORT)
    half = torch.zeros(1, 1, *base.latent_shape[1:])
    everything = invert(base, space, latents, KEYS, SHORT, mask=half + 1)
    torch.testing.assert_close(everything.z, plain.z, atol=1e-4, rtol=0)
    half[..., :4] = 1
    assert (invert(base, space, latents, KEYS, SHORT, mask=half).z - plain.z).abs().max() > 0.01
    held = invert(base, space, latents, KEYS, InversionOptions(**{**vars(SHORT), "steps": 30, "prior_weight": 1e4}))
    free = invert(base, space, latents, KEYS, InversionOptions(**{**vars(SHORT), "steps": 30}))
    assert (held.z.norm(dim=1) < 0.5 * free.z.norm(dim=1)).all()


def test_another_base_or_size_is_refused(base: BaseModel, layout: Layout, latents: Tensor, space: PcaSpace) -> None:
    foreign = PcaSpace.fit(torch.randn(8, layout.d), layout=layout, base_id="0" * 16, m=4)
    with pytest.raises(W2WError, match="0" * 16):
        invert(base, foreign, latents, KEYS, SHORT)
    with pytest.raises(W2WError, match=r"for each of 3 keys"):
        invert(base, space, latents[:, :, :4], KEYS, SHORT)
    with pytest.raises(W2WError, match="not numbers"):
        invert(base, space, latents * torch.nan, KEYS, SHORT)


def test_a_saved_point_is_the_same_point_weights_and_adapter(base: BaseModel, space: PcaSpace, latents: Tensor, tmp_path: Path) -> None:
    found = invert(base, space, latents, KEYS, SHORT)
    save_points(tmp_path / "points.safetensors", found.z, KEYS, space)
    z, ids = load_points(tmp_path / "points.safetensors", space)
    assert ids == KEYS and torch.equal(z, found.z)
    weights = space.decode(z)
    write_peft(tmp_path / "adapter", space.layout, weights[0], "pico")
    assert torch.equal(read_peft(tmp_path / "adapter")[1], weights[0])


def test_points_know_their_space(base: BaseModel, layout: Layout, space: PcaSpace, tmp_path: Path) -> None:
    path = tmp_path / "points.safetensors"
    save_points(path, torch.zeros(2, space.m), ["a", "b"], space)
    for other in (fit(base, layout, seed=1), space.truncate(4)):
        with pytest.raises(W2WError, match="another space"):
            load_points(path, other)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(W2WError, match="cut short"):
        load_points(path, space)
    space.save(tmp_path / "space.safetensors")
    with pytest.raises(W2WError, match="holds no points"):
        load_points(tmp_path / "space.safetensors", space)


def draw_pairs(base: BaseModel, latents: Tensor, keys: list[str], **options: object) -> NoisePairs:
    return NoisePairs.draw(base, [photo[None] for photo in latents], keys, "photo of sks person", PairOptions(**options))  # type: ignore[arg-type]


def test_a_bank_covers_the_schedule_in_every_stretch_and_cancels_its_noise(base: BaseModel, latents: Tensor) -> None:
    pairs = draw_pairs(base, latents, KEYS, draws=64)
    for begin in range(0, 48, 2):
        stretch = pairs.timesteps[:, begin : begin + 16].sort(1).values
        assert (stretch.diff(dim=1).max(1).values < 350).all()  # 8 timesteps, each with noise of both signs
    assert torch.equal(pairs.noise[:, 0::2], -pairs.noise[:, 1::2])
    alone = draw_pairs(base, latents[1:2], KEYS[1:2], draws=64)
    assert torch.equal(alone.noise[0], pairs.noise[1]) and torch.equal(alone.timesteps[0], pairs.timesteps[1])


def test_no_pairs_are_refused() -> None:
    with pytest.raises(W2WError, match="above 0"):
        PairOptions(draws=0)


def test_several_photos_of_a_person_are_taken_in_turn(base: BaseModel, latents: Tensor) -> None:
    pairs = NoisePairs.draw(base, [latents], ["Ada"], "photo of sks person", PairOptions(draws=12))
    assert torch.equal(pairs.latents[0, 0], pairs.latents[0, 1]) and torch.equal(pairs.latents[0, 0], latents[0].float())
    assert torch.equal(pairs.latents[0, 4], latents[2].float()) and torch.equal(pairs.latents[0, 6], latents[0].float())


def test_the_published_recipe_spends_400_draws_alone(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    assert (PUBLISHED.steps, PUBLISHED.batch, PUBLISHED.lr, PUBLISHED.final_lr, PUBLISHED.prior_weight) == (400, 1, 0.1, 1.0, 0.0)
    assert (PUBLISHED.pairs.draws, PUBLISHED.pairs.stratified, PUBLISHED.pairs.antithetic) == (400, False, False)


def test_a_start_is_where_the_path_begins_and_the_end_is_the_point(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    start = torch.full((3, space.m), 0.5)
    found = invert(base, space, latents, KEYS, SHORT, start=start)
    assert found.path.shape == (5, 3, space.m)
    assert torch.equal(found.path[0], start) and torch.equal(found.path[-1], found.z)
    assert (found.z - start).abs().max() > 0.01


def test_the_distribution_keeps_the_priors_width_where_photos_say_nothing(base: BaseModel, space: PcaSpace, latents: Tensor) -> None:
    options = InversionOptions(**{**vars(SHORT), "steps": 30, "prior_weight": 1e4, "variational": True})
    found = invert(base, space, latents, KEYS, options)
    assert found.z.abs().max() < 0.5
    assert torch.equal(found.z, invert(base, space, latents, KEYS, options).z)


@pytest.mark.parametrize("method", ["cma-es", "cem"])
def test_a_search_without_gradients_lowers_the_loss(base: BaseModel, space: PcaSpace, latents: Tensor, method: str) -> None:
    pytest.importorskip("cma" if method == "cma-es" else "evotorch")
    from w2wpp.inversion.evolution import EvolutionOptions, evolve

    options = EvolutionOptions(method, generations=12, population=12, batch=4, prior_weight=0.0)
    photos = [photo[None] for photo in latents]
    found = evolve(base, space, photos, KEYS, options)
    assert found.unet_evals == 12 * 12 * 4
    before = pairs_loss(base, space, torch.zeros_like(found.z), latents)
    assert (pairs_loss(base, space, found.z, latents) < before).all()
    alone = evolve(base, space, photos[1:2], KEYS[1:2], options)
    torch.testing.assert_close(alone.z[0], found.z[1], atol=1e-3, rtol=0)
