from dataclasses import replace

import pytest
import torch

from conftest import write_faces
from w2wpp.adapters import train as adapters
from w2wpp.adapters.population import portraits
from w2wpp.adapters.train import PRESETS, AdapterOptions, options_for, prior_latents, train_adapters
from w2wpp.common.errors import W2WError
from w2wpp.photos.alignment import AlignedFaces

OPTIONS = AdapterOptions(
    prompt="photo of sks person", prior_prompt="photo of a person", prior_pictures=3, steps=6, batch=2, prior_batch=1, lr=1e-2
)


@pytest.fixture
def exact(base, monkeypatch):
    """The base without bf16 products, so that results can be compared tightly."""
    monkeypatch.setenv("W2WPP_PRECISION", "float32")
    return base


def photos(base, n, seed):
    return torch.randn((n, *base.latent_shape), generator=torch.Generator().manual_seed(seed))


def test_result_does_not_depend_on_who_shares_the_batch(exact):
    layout = OPTIONS.layout_of(exact)
    prior = prior_latents(exact, OPTIONS)
    people = {"ann": photos(exact, 3, 0), "bob": photos(exact, 1, 1), "cid": photos(exact, 2, 2)}
    together = train_adapters(exact, layout, list(people.values()), list(people), OPTIONS, prior)
    for i, (key, latents) in enumerate(people.items()):
        alone = train_adapters(exact, layout, [latents], [key], OPTIONS, prior)
        torch.testing.assert_close(alone.weights[0], together.weights[i], atol=2e-5, rtol=1e-4)
    reversed_ = train_adapters(exact, layout, list(people.values())[::-1], list(people)[::-1], OPTIONS, prior)
    torch.testing.assert_close(reversed_.weights.flip(0), together.weights, atol=2e-5, rtol=1e-4)
    assert (together.weights[0] - together.weights[1]).abs().max() > 1e-3


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_result_does_not_depend_on_the_number_of_cores(exact, monkeypatch, two_cores):
    layout = OPTIONS.layout_of(exact)
    people = [f"person {i}" for i in range(5)]
    latents = [photos(exact, 2, i) for i in range(5)]
    one_share = train_adapters(exact, layout, latents, people, OPTIONS, photos(exact, 3, 9))
    monkeypatch.setattr(adapters, "WORTH_A_CORE", 2)
    two_shares = train_adapters(exact, layout, latents, people, OPTIONS, photos(exact, 3, 9))
    assert torch.get_num_threads() == 2
    torch.testing.assert_close(two_shares.weights, one_share.weights, atol=2e-4, rtol=1e-4)  # Adam divides by small numbers
    torch.testing.assert_close(two_shares.losses, one_share.losses, atol=1e-5, rtol=1e-4)
    assert two_shares.unet_evals == one_share.unet_evals
    with pytest.raises(W2WError, match="diverged"):
        train_adapters(exact, layout, latents, people, replace(OPTIONS, lr=float("inf")))
    assert torch.get_num_threads() == 2


def test_training_lowers_the_loss_and_counts_its_evaluations(exact):
    options = replace(OPTIONS, steps=60, batch=8, prior_weight=0.0)
    layout = options.layout_of(exact)
    trained = train_adapters(exact, layout, [photos(exact, 1, 0)], ["ann"], options)
    assert trained.losses[-10:].mean() < trained.losses[:10].mean()
    assert trained.unet_evals == 60 * 8
    assert train_adapters(exact, layout, [photos(exact, 1, 0)], ["ann"], OPTIONS, photos(exact, 3, 5)).unet_evals == 6 * 3


def test_training_begins_where_it_is_told(exact, monkeypatch, two_cores):
    monkeypatch.setattr(adapters, "WORTH_A_CORE", 2)  # in two shares
    layout, people = OPTIONS.layout_of(exact), [f"person {i}" for i in range(5)]
    start = torch.randn(5, layout.d, generator=torch.Generator().manual_seed(3))
    before, latents = start.clone(), [photos(exact, 1, i) for i in range(5)]
    still = train_adapters(exact, layout, latents, people, replace(OPTIONS, lr=1e-12), start=start)
    torch.testing.assert_close(still.weights, start, atol=1e-9, rtol=1e-6)
    moved = train_adapters(exact, layout, latents, people, OPTIONS, start=start)
    assert (moved.weights - start).abs().max() > 1e-3 and torch.equal(start, before)


def test_half_of_the_way_is_half_of_it(exact):
    layout, people = OPTIONS.layout_of(exact), ["ann", "bea"]
    start = torch.randn(2, layout.d, generator=torch.Generator().manual_seed(3))
    latents = [photos(exact, 1, i) for i in range(2)]
    whole, half, quarter = (
        train_adapters(exact, layout, latents, people, replace(OPTIONS, blend=blend), start=start).weights for blend in (1.0, 0.5, 0.25)
    )
    torch.testing.assert_close(half, (start + whole) / 2)
    torch.testing.assert_close(quarter, start + (whole - start) / 4)


def test_prior_preservation_changes_the_result(exact):
    layout = OPTIONS.layout_of(exact)
    with_prior = train_adapters(exact, layout, [photos(exact, 1, 0)], ["ann"], OPTIONS, photos(exact, 3, 5))
    without = train_adapters(exact, layout, [photos(exact, 1, 0)], ["ann"], OPTIONS, None)
    assert (with_prior.weights - without.weights).abs().max() > 1e-4


def test_refusals(exact):
    layout = OPTIONS.layout_of(exact)
    with pytest.raises(W2WError, match="the blend above 0 and at most 1"):
        replace(OPTIONS, blend=1.5)
    with pytest.raises(W2WError, match="at least one photo"):
        train_adapters(exact, layout, [photos(exact, 0, 0)], ["ann"], OPTIONS)
    with pytest.raises(W2WError, match="diverged"):
        train_adapters(exact, layout, [photos(exact, 1, 0)], ["ann"], replace(OPTIONS, lr=float("inf")))


def test_defaults_follow_the_paper_for_stable_diffusion():
    assert options_for("stable-diffusion-v1-5/stable-diffusion-v1-5") == AdapterOptions()
    assert AdapterOptions().steps == 800 and AdapterOptions().lr == 1e-4 and AdapterOptions().alpha == 27
    assert options_for("tiny-faces") == PRESETS["tiny-faces"]


def test_only_people_with_enough_photos_get_a_second_adapter(tmp_path):
    faces = AlignedFaces.load(write_faces(tmp_path / "faces", {"one": 1, "three": 3, "five": 5}))
    told = [(p.id, p.photos, p.half) for p in portraits(faces, ["one", "three", "five"], halves_from=4)]
    assert told == [("one", (0,), ""), ("three", (0, 1, 2), ""), ("five", (0, 2, 4), "a"), ("five#b", (1, 3), "b")]
    assert [p.half for p in portraits(faces, ["three"])] == ["a", "b"]
