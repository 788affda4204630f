"""The anchored VAE starts as probabilistic PCA, gets no worse, and learns from photos together with an encoder."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import close
from w2wpp.common.errors import W2WError
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.lora.layout import Layout
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace

SMALL = AnchoredOptions(m=4, components=12, hidden=16, steps=40, batch=16)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that equal means equal on every processor."""
    monkeypatch.setenv("W2WPP_PRECISION", "float32")


def test_before_training_it_is_probabilistic_pca(bent_weights: Tensor, layout: Layout) -> None:
    pca = PcaSpace.fit(bent_weights, layout=layout, m=12)
    rest = float(pca.spread.square().sum() / pca.explained_variance_ratio.sum() - pca.spread.square().sum())
    space = AnchoredVaeSpace.anchored(pca, SMALL, rest)
    noise = float(2 * space.log_sigma.detach().exp().square()) / 2
    kept = 1 - noise / pca.spread[:4].square()
    torch.testing.assert_close(space.encode(bent_weights), pca.truncate(4).encode(bent_weights) * kept.sqrt(), atol=1e-4, rtol=1e-3)
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(space.decode(z), pca.truncate(4).decode(z * kept.sqrt()), atol=1e-5, rtol=1e-3)
    mean, log_variance = space.posterior(space.whiten(bent_weights))
    # Variance of the means and of the posterior make up the prior's 1.
    torch.testing.assert_close(mean.var(0) + log_variance.exp()[0], torch.ones(4), atol=0.02, rtol=0)


def test_encode_follows_a_linear_decoder(bent_weights: Tensor, layout: Layout) -> None:
    pca = PcaSpace.fit(bent_weights, layout=layout, m=12)
    rest = float(pca.spread.square().sum() / pca.explained_variance_ratio.sum() - pca.spread.square().sum())
    space = AnchoredVaeSpace.anchored(pca, SMALL, rest)
    before, spread = space.encode(bent_weights), space.base_log_variance.clone()
    same = space.following()  # which is still probabilistic PCA's
    torch.testing.assert_close(same.encode(bent_weights), before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(same.base_log_variance, spread, atol=1e-4, rtol=1e-3)
    space.decoder.weight.data *= 3  # a decoder that amplifies: its points shrink
    space = space.following()
    z = 0.5 * torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(space.encode(space.decode(z)), z, atol=0.05, rtol=0.05)


def test_training_is_kept_only_where_held_out_adapters_gain(bent_weights: Tensor, layout: Layout) -> None:
    history = AnchoredVaeSpace.fit(bent_weights, SMALL, layout=layout, device="cpu").history
    losses = [found["loss"] for found in history["held_out"]]
    assert history["accepted"] == (min(losses[1:]) < losses[0])
    assert history["kept_step"] == history["step"][losses.index(min(losses))]
    wild = AnchoredVaeSpace.fit(bent_weights, AnchoredOptions(**{**vars(SMALL), "lr": 0.3}), layout=layout, device="cpu")
    assert not wild.history["accepted"] and wild.history["kept_step"] == 0
    pca = PcaSpace.fit(bent_weights, layout=layout, m=12)
    assert torch.isfinite(wild.decode(torch.zeros(1, 4))).all()
    torch.testing.assert_close(wild.decode(torch.zeros(1, 4)), pca.mean[None], atol=1e-6, rtol=0)


def test_it_is_saved_and_loaded_as_it_is(bent_weights: Tensor, layout: Layout, tmp_path: Path) -> None:
    space = AnchoredVaeSpace.fit(bent_weights, SMALL, layout=layout, base_id="b" * 16, device="cpu")
    space.save(tmp_path / "space.safetensors")
    loaded = Space.load(tmp_path / "space.safetensors")
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    assert close(loaded.decode(z), space.decode(z)) and close(loaded.encode(bent_weights), space.encode(bent_weights))
    with pytest.raises(W2WError, match="Components must be at least m"):
        AnchoredOptions(m=20, components=10)


def test_in_new_coordinates_the_same_adapters_are_decoded(bent_weights: Tensor, layout: Layout) -> None:
    space = AnchoredVaeSpace.fit(bent_weights, SMALL, layout=layout, device="cpu")
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


def test_compact_is_the_same_space_in_fewer_components(bent_weights: Tensor, layout: Layout, tmp_path: Path) -> None:
    options = AnchoredOptions(m=4, components=40, hidden=8, steps=20)
    space = AnchoredVaeSpace.fit(bent_weights, options, layout=layout, device="cpu")
    torch.nn.init.normal_(space.decoder_residual[-1].weight, std=0.1, generator=torch.Generator().manual_seed(3))
    space = space.following()
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    decoded, encoded, spread = space.decode(z), space.encode(bent_weights), bent_weights.std(0).mean()
    space = space.compacted()
    assert space.basis.shape[0] == space.config()["options"]["components"] == 4 + 8 + 1
    torch.testing.assert_close(space.decode(z), decoded, atol=float(0.01 * spread), rtol=0)
    torch.testing.assert_close(space.encode(bent_weights), encoded, atol=0.01, rtol=0)
    space.save(tmp_path / "space.safetensors")
    assert close(Space.load(tmp_path / "space.safetensors").decode(z), space.decode(z))
