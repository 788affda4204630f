"""The anchored VAE starts as probabilistic PCA, gets no worse, and learns from photos together with an encoder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import close, write_faces
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import EncoderOptions, PhotoEncoder, fit_encoder, fit_with_decoder
from w2wpp.inversion.person_photos import OwnAdapters, PersonPhotos
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace

SMALL = AnchoredOptions(m=4, components=12, hidden=16, steps=40, batch=16)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that equal means equal on every processor."""
    monkeypatch.setenv("W2WPP_PRECISION", "float32")


@pytest.fixture(scope="module")
def weights(layout: Layout) -> Tensor:
    """Sixty adapters with five strong directions, bent: the second is the square of the first."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(60, 5, generator=draw)
    z[:, 1] = z[:, 0].square() - 1
    directions = torch.randn(5, layout.d, generator=draw)
    return initial_weights(layout) + 0.05 * (z @ directions + 0.3 * torch.randn(60, layout.d, generator=draw))


@pytest.fixture(scope="module")
def photos(base: BaseModel) -> PersonPhotos:
    """Twenty people whose latents are a linear map of their description."""
    draw = torch.Generator().manual_seed(1)
    lift = torch.randn(6, base.latent_shape[0] * base.latent_shape[1] * base.latent_shape[2], generator=draw)
    described: Mapping[str, Tensor] = {f"person-{i}": torch.randn(2, 6, generator=draw) for i in range(20)}
    latents = {person: (about @ lift / 6**0.5).unflatten(1, base.latent_shape) for person, about in described.items()}
    return PersonPhotos(base, latents, described, base.encode_text(["photo of sks person"]).float())


def test_before_training_it_is_probabilistic_pca(weights: Tensor, layout: Layout) -> None:
    pca = PcaSpace.fit(weights, layout=layout, m=12)
    rest = float(pca.spread.square().sum() / pca.explained_variance_ratio.sum() - pca.spread.square().sum())
    space = AnchoredVaeSpace.anchored(pca, SMALL, rest)
    noise = float(2 * space.log_sigma.detach().exp().square()) / 2
    kept = 1 - noise / pca.spread[:4].square()
    torch.testing.assert_close(space.encode(weights), pca.truncate(4).encode(weights) * kept.sqrt(), atol=1e-4, rtol=1e-3)
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(space.decode(z), pca.truncate(4).decode(z * kept.sqrt()), atol=1e-5, rtol=1e-3)
    mean, log_variance = space.posterior(space.whiten(weights))
    # Variance of the means and of the posterior make up the prior's 1.
    torch.testing.assert_close(mean.var(0) + log_variance.exp()[0], torch.ones(4), atol=0.02, rtol=0)


def test_encode_follows_a_linear_decoder(weights: Tensor, layout: Layout) -> None:
    pca = PcaSpace.fit(weights, layout=layout, m=12)
    rest = float(pca.spread.square().sum() / pca.explained_variance_ratio.sum() - pca.spread.square().sum())
    space = AnchoredVaeSpace.anchored(pca, SMALL, rest)
    before, spread = space.encode(weights), space.base_log_variance.clone()
    same = space.following()  # which is still probabilistic PCA's
    torch.testing.assert_close(same.encode(weights), before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(same.base_log_variance, spread, atol=1e-4, rtol=1e-3)
    space.decoder.weight.data *= 3  # a decoder that amplifies: its points shrink
    space = space.following()
    z = 0.5 * torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(space.encode(space.decode(z)), z, atol=0.05, rtol=0.05)


def test_training_is_kept_only_where_held_out_adapters_gain(weights: Tensor, layout: Layout) -> None:
    history = AnchoredVaeSpace.fit(weights, SMALL, layout=layout, device="cpu").history
    losses = [found["loss"] for found in history["held_out"]]
    assert history["accepted"] == (min(losses[1:]) < losses[0])
    assert history["kept_step"] == history["step"][losses.index(min(losses))]
    wild = AnchoredVaeSpace.fit(weights, AnchoredOptions(**{**vars(SMALL), "lr": 0.3}), layout=layout, device="cpu")
    assert not wild.history["accepted"] and wild.history["kept_step"] == 0
    pca = PcaSpace.fit(weights, layout=layout, m=12)
    assert torch.isfinite(wild.decode(torch.zeros(1, 4))).all()
    torch.testing.assert_close(wild.decode(torch.zeros(1, 4)), pca.mean[None], atol=1e-6, rtol=0)


def test_it_is_saved_and_loaded_as_it_is(weights: Tensor, layout: Layout, tmp_path: Path) -> None:
    space = AnchoredVaeSpace.fit(weights, SMALL, layout=layout, base_id="b" * 16, device="cpu")
    space.save(tmp_path / "space.safetensors")
    loaded = Space.load(tmp_path / "space.safetensors")
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    assert close(loaded.decode(z), space.decode(z)) and close(loaded.encode(weights), space.encode(weights))
    with pytest.raises(W2WError, match="Components must be at least m"):
        AnchoredOptions(m=20, components=10)


def test_an_encoder_explains_held_out_people_better_than_the_mean_does(
    base: BaseModel, weights: Tensor, layout: Layout, photos: PersonPhotos, tmp_path: Path
) -> None:
    space = PcaSpace.fit(weights, layout=layout, base_id=base.id, m=6)
    options = EncoderOptions(hidden=8, steps=16, batch=8, lr=1e-2, measured=2)
    encoder, history = fit_encoder(space, photos, options)
    losses = [found["loss"] for found in history["held_out"]]
    assert history["kept_step"] > 0 and min(losses) < losses[0]
    encoder.save(tmp_path / "encoder.safetensors")
    again = PhotoEncoder.load(tmp_path / "encoder.safetensors")
    about = photos.described["person-0"]
    assert close(again(about), encoder(about)) and again(about).shape == (2, 6)
    assert again.people == photos.latents.keys()
    again.check(space)
    with pytest.raises(W2WError, match="another space"):
        again.check(space.truncate(5))
    with pytest.raises(W2WError, match="no decoder that can be trained"):
        fit_with_decoder(space, photos, options)
    (tmp_path / "encoder.safetensors").write_bytes(b"cut")
    with pytest.raises(W2WError, match="cut short"):
        PhotoEncoder.load(tmp_path / "encoder.safetensors")


def test_a_decoder_learns_with_its_encoder(base: BaseModel, weights: Tensor, layout: Layout, photos: PersonPhotos) -> None:
    space = AnchoredVaeSpace.fit(weights, SMALL, layout=layout, base_id=base.id, device="cpu")
    before = space.decode(torch.ones(1, 4))
    options = EncoderOptions(hidden=8, steps=16, batch=8, lr=1e-2, measured=2)
    taught, encoder, history = fit_with_decoder(space, photos, options)
    assert history["kept_step"] > 0 and (taught.decode(torch.ones(1, 4)) - before).abs().max() > 1e-3
    assert torch.equal(space.decode(torch.ones(1, 4)), before) and taught.history == space.history
    encoder.check(taught)
    # In the coordinates that were chosen, points of photos are like the prior, and `encode` follows.
    z = encoder(torch.cat(list(photos.described.values())))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=0.5, rtol=0)
    few = PersonPhotos(base, dict(list(photos.latents.items())[:3]), photos.described, photos.contexts)
    with pytest.raises(W2WError, match="3 people are too few"):
        fit_encoder(space, few, EncoderOptions())


def test_in_new_coordinates_the_same_adapters_are_decoded(weights: Tensor, layout: Layout) -> None:
    space = AnchoredVaeSpace.fit(weights, SMALL, layout=layout, device="cpu")
    encoder = PhotoEncoder(6, 4, 8)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    described = torch.randn(40, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        z = encoder(described)
        before = space.decode(z)
        moved, mean, factor = space.recentred(z)
        encoder.recentre(mean, factor)
        again = encoder(described)
        torch.testing.assert_close(moved.decode(again), before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(again.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(again.T.cov(), torch.eye(4), atol=1e-2, rtol=0)


def test_compact_is_the_same_space_in_fewer_components(weights: Tensor, layout: Layout, tmp_path: Path) -> None:
    options = AnchoredOptions(m=4, components=40, hidden=8, steps=20)
    space = AnchoredVaeSpace.fit(weights, options, layout=layout, device="cpu")
    torch.nn.init.normal_(space.decoder_residual[-1].weight, std=0.1, generator=torch.Generator().manual_seed(3))
    space = space.following()
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    decoded, encoded, spread = space.decode(z), space.encode(weights), weights.std(0).mean()
    space = space.compacted()
    assert space.basis.shape[0] == space.config()["options"]["components"] == 4 + 8 + 1
    torch.testing.assert_close(space.decode(z), decoded, atol=float(0.01 * spread), rtol=0)
    torch.testing.assert_close(space.encode(weights), encoded, atol=0.01, rtol=0)
    space.save(tmp_path / "space.safetensors")
    assert close(Space.load(tmp_path / "space.safetensors").decode(z), space.decode(z))


def test_adapters_teach_what_a_persons_own_predict(base: BaseModel, layout: Layout, photos: PersonPhotos, tmp_path: Path) -> None:
    dataset = WeightDataset.create(tmp_path / "own", layout, base.id, {"adapters": {"prior_prompt": "photo of a person"}})
    draw = torch.Generator
    own = initial_weights(layout) + 0.3 * torch.randn(3, layout.d, generator=draw().manual_seed(3))
    labels = [{"person": "person-0"}, {"person": "person-1"}, {"person": "person-1"}]
    dataset.append(own, ["person-0", "person-1", "person-1#b"], labels, torch.float32)
    people = ["person-0", "person-1"]
    contexts = base.encode_text(["photo of sks person", "photo of sks person smiling", "", "photo of a person"]).float()
    taught = PersonPhotos(base, photos.latents, photos.described, contexts, taught=OwnAdapters.of(dataset, people))
    assert taught.teacher == "adapters"
    # Who decodes to the person's own adapter is right; of two adapters of one person each is taught in its turn.
    loss = taught.loss(layout, own[:2], people, 3, draw().manual_seed(0))
    other = taught.loss(layout, own[[1, 0]], people, 3, draw().manual_seed(0))
    assert loss[0] < 1e-9 < 1e-6 < other[0]
    seen = [taught.loss(layout, own[:2], people, 3, draw().manual_seed(seed))[1] for seed in range(6)]
    assert min(seen) < 1e-9 and max(seen) > 1e-6
    with pytest.raises(W2WError, match=r"no adapter in .*, such as person-2"):
        OwnAdapters.of(dataset, ["person-0", "person-2"])
    faces = write_faces(tmp_path / "faces", {"Ada_Lovelace": 1, "person-0": 2})
    told = PersonPhotos.of(base, faces, "train", "photo of sks person", dataset=dataset)
    assert told.teacher == "adapters" and list(told.latents) == ["person-0"]
    with pytest.raises(W2WError, match="cannot teach without a dataset"):
        PersonPhotos.of(base, faces, "train", "photo of sks person", "adapters")


def test_names_teach_what_the_base_draws_when_told_one(base: BaseModel, layout: Layout, photos: PersonPhotos, tmp_path: Path) -> None:
    contexts = base.encode_text(["photo of sks person", "photo of sks person smiling", ""]).float()
    ask = partial(PersonPhotos, base, photos.latents, photos.described, contexts)
    people, draw = ["person-0", "person-1"], torch.Generator
    zero = initial_weights(layout).repeat(2, 1)
    # An adapter that does nothing is right if the name says what `sks person` says, and wrong if it says something else.
    same, other = contexts[:2], base.encode_text(["photo of Ada Lovelace", "photo of Ada Lovelace smiling"])
    assert ask({p: same for p in people}).loss(layout, zero, people, 3, draw().manual_seed(0)).max() < 1e-9
    loss = ask({"person-0": same, "person-1": other}).loss(layout, zero, people, 3, draw().manual_seed(0))
    assert loss[0] < 1e-9 < 1e-7 < loss[1]
    faces = write_faces(tmp_path / "faces", {"Ada_Lovelace": 1, "Ida_Rhodes": 1})
    with pytest.raises(W2WError, match="no word for 1 of 2 people, such as Ida_Rhodes"):
        PersonPhotos.of(base, faces, "train", "photo of sks person", "names")
    with pytest.raises(W2WError, match="no teacher is called"):
        PersonPhotos.of(base, faces, "train", "photo of sks person", "nobody")
    with pytest.raises(W2WError, match="names take the place"):
        PersonPhotos.of(base, write_faces(tmp_path / "ada", {"Ada_Lovelace": 1}), "train", "photo of a person", "names")
