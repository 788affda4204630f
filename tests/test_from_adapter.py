"""An adapter's point comes from what it draws and predicts, not from its numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import w2wpp.inversion.encoder
import w2wpp.photos.descriptors
from conftest import Ended
from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.from_adapter import AdapterReading, points_of_adapters
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import Image
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import fingerprint
from w2wpp.spaces.reconstruct import reconstruct

QUICK = AdapterReading(pictures=2, solver_steps=2, steps=0)


class Brightness(PhotoEncoder):
    """An encoder whose point is the mean brightness of the pictures, in every coordinate: no face network is needed."""

    def points(self, people: Sequence[Sequence[Image]]) -> Tensor:
        return torch.tensor([[float(sum(image.mean() for image in images)) / len(images) / 255] * self.m for images in people])


@pytest.fixture(scope="module")
def weights(layout: Layout) -> Tensor:
    return initial_weights(layout) + 0.3 * torch.randn(12, layout.d, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def space(base: BaseModel, layout: Layout, weights: Tensor) -> PcaSpace:
    return PcaSpace.fit(weights, m=3, layout=layout, base_id=base.id)


@pytest.fixture(scope="module")
def encoder(space: PcaSpace) -> PhotoEncoder:
    found = Brightness(2, space.m, 4)
    found.space = fingerprint(space)
    return found


def test_the_point_is_that_of_the_pictures_it_draws(base: BaseModel, space: PcaSpace, encoder: PhotoEncoder, weights: Tensor) -> None:
    z = points_of_adapters(base, space, encoder, weights[:2], ["a", "b"], QUICK)
    drawn = generate_for(base, space.layout, weights[:2], ["a", "b"], QUICK.prompt, 2, guidance=2.0, steps=2)
    torch.testing.assert_close(z, encoder.points(drawn))
    # Alone or in a batch, whatever the group.
    torch.testing.assert_close(points_of_adapters(base, space, encoder, weights[1:2], ["b"], QUICK), z[1:], atol=1e-3, rtol=1e-3)


def test_steps_bring_the_prediction_closer(
    base: BaseModel, space: PcaSpace, encoder: PhotoEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float32")  # what adapters of a random base predict differs by little
    true = torch.tensor([[0.4, -0.3, 0.5], [-0.5, 1.0, 1.0]])
    given = space.decode(true)
    before = points_of_adapters(base, space, encoder, given, ["a", "b"], QUICK)
    more = AdapterReading(pictures=2, solver_steps=2, steps=60, lr=0.1, prior_weight=0.0)
    after = points_of_adapters(base, space, encoder, given, ["a", "b"], more)
    assert (after - true).norm() < 0.3 * (before - true).norm()


def test_a_foreign_encoder_and_useless_options_are_refused(base: BaseModel, space: PcaSpace, weights: Tensor) -> None:
    with pytest.raises(W2WError, match="another space"):
        points_of_adapters(base, space, PhotoEncoder(2, 3, 4), weights[:1], ["a"], QUICK)
    with pytest.raises(W2WError, match="cannot be read"):
        AdapterReading(lr=float("nan"))


def test_reconstruct_reads_pictures_where_there_is_an_encoder(
    pico: Path, dataset: Path, tmp_path: Path, w2w: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = PcaSpace.fit(WeightDataset.load(dataset), m=3)
    space.save(tmp_path / "space.safetensors")
    network = PhotoEncoder(4, 3, 4)
    network.space = fingerprint(space)
    network.linear.bias.data = torch.tensor([0.5, -0.5, 1.0])  # every picture is of one person
    network.save(tmp_path / "encoder.safetensors")
    monkeypatch.setattr(w2wpp.photos.descriptors, "face_models", lambda: tmp_path)  # the extra may be missing
    monkeypatch.setattr(w2wpp.inversion.encoder, "mean_descriptions", lambda people: torch.zeros(len(people), 4))
    common = ["--base", pico, "--device", "cpu", "--solver-steps", 1, "--runs", tmp_path / "runs", "--json", "--n", 2]

    def rebuilt(*words: object) -> dict[str, Any]:
        return w2w("reconstruct", tmp_path / "space.safetensors", dataset, *words, *common).json()

    by_weights, given = rebuilt("--out", tmp_path / "weights.png"), ["--encoder", tmp_path / "encoder.safetensors"]
    by_pictures = rebuilt(*given, "--out", tmp_path / "pictures.png")
    assert (by_weights["reading"], by_pictures["reading"]) == ("weights", "pictures") and by_weights["lost"] != by_pictures["lost"]
    _, lost = reconstruct(space, WeightDataset.load(dataset).rows([0, 1]), network.linear.bias.detach().expand(2, -1))
    assert list(by_pictures["lost"].values()) == pytest.approx(lost, rel=1e-3)
    for words, expected in (
        ([*given, "--reading", "weights"], "--reading weights reads none"),
        (["--reading", "pictures"], "has no encoder of its own"),
    ):
        ended = w2w("reconstruct", tmp_path / "space.safetensors", dataset, *words, *common, "--out", tmp_path / "none.png")
        assert ended.code == 2 and expected in ended.err and not (tmp_path / "none.png").exists()
