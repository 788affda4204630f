"""Datasets and spaces remember with which words and guidance their adapters are drawn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.common.files import read_checked, write_checked
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.lora.prompting import Prompting
from w2wpp.photos.images import read_image
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

TOLD = Prompting("photo of Ada Lovelace", "photo of a person", 3.0)


@pytest.fixture
def told(tmp_path: Path, base: BaseModel, layout: Layout) -> WeightDataset:
    """Ten adapters of a training with another prompt, whose guidance was told."""
    meta = {"adapters": {"prompt": TOLD.prompt, "prior_prompt": TOLD.prior_prompt, "rank": 1}, "prompting": {"guidance": 3.0}}
    data = WeightDataset.create(tmp_path / "told", layout, base.id, meta)
    data.append(0.05 * torch.randn(10, layout.d, generator=torch.Generator().manual_seed(0)), [f"person-{i}" for i in range(10)])
    return data


def test_what_a_dataset_says_of_its_origin_is_its_prompting() -> None:
    assert Prompting.of({}) == Prompting("photo of sks person", "photo of a person", 2.0)
    assert Prompting.of({"imported": {"published": True}}) == Prompting("sks person", "person", 3.0)
    assert Prompting.of({"imported": {"rank": 4}, "prompting": {"prompt": "a cat", "later": 1}}).prompt == "a cat"


def test_every_space_keeps_its_adapters_prompting(told: WeightDataset, tmp_path: Path) -> None:
    pca = PcaSpace.fit(told, m=4)
    vae = VaeSpace.fit(told, VaeOptions(m=2, widths=(8,), epochs=1, batch=4), device="cpu")
    anchored = AnchoredVaeSpace.fit(told, AnchoredOptions(m=2, components=4, hidden=4, steps=1), device="cpu")
    for space in (pca, vae, anchored, pca.truncate(2), pca.update(0.05 * torch.randn(3, told.d))):
        space.save(tmp_path / "space.safetensors")
        assert space.prompting == Space.load(tmp_path / "space.safetensors").prompting == TOLD


def test_a_file_of_before_has_the_defaults(told: WeightDataset, tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    PcaSpace.fit(told, m=2).save(path)
    tensors, header = read_checked(path, "space")
    write_checked(path, {name: tensor.clone() for name, tensor in tensors.items()}, {k: v for k, v in header.items() if k != "prompting"})
    assert Space.load(path).prompting == Prompting()


def test_verbs_draw_with_what_is_remembered(w2w: Callable[..., Ended], told: WeightDataset, pico: Path, tmp_path: Path) -> None:
    PcaSpace.fit(told, m=2).save(tmp_path / "space.safetensors")
    words = ["sample", tmp_path / "space.safetensors", "--n", 1, "--pictures", 1, "--solver-steps", 2]
    words += ["--base", pico, "--device", "cpu", "--runs", tmp_path / "runs", "--json"]

    def drawn(*more: object) -> bytes:
        return read_image(w2w(*words, *more).json()["sheet"]).tobytes()

    assert drawn() == drawn("--prompt", TOLD.prompt, "--guidance", 3.0) != drawn("--prompt", "photo of sks person", "--guidance", 2.0)
