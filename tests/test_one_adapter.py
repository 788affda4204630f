"""One adapter of anybody's as a row of a layout."""

from pathlib import Path

import pytest
import torch

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.exporting import Form, export, of_points
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.exchange.one_adapter import read_adapter
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace


def products(layout: Layout, weights: torch.Tensor) -> torch.Tensor:
    """Every layer's scale * B A, in one row: what an adapter does, whatever its gauge and rank."""
    named = layout.unflatten(weights)
    return torch.cat([(layout.scale * named[f"{m}.lora_B.weight"] @ named[f"{m}.lora_A.weight"]).flatten() for m in layout.modules])


@pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
def test_a_point_that_was_exported_is_read_as_the_same_adapter(base: BaseModel, dataset: Path, tmp_path: Path, form: Form) -> None:
    space, denoiser = PcaSpace.fit(WeightDataset.load(dataset), m=4), Denoiser.of(base)
    z = space.sample(1, seed=3)
    file = tmp_path / ("peft" if form == "peft" else "person.safetensors")
    export(of_points(space, z, ["person"], denoiser), file, form, denoiser)
    row, made = read_adapter(file, denoiser, space.layout), space.decode(z)[0]
    torch.testing.assert_close(products(space.layout, row), products(space.layout, made), atol=1e-6, rtol=1e-4)
    if form == "peft":  # of the layout's own gauge, so number by number
        assert torch.equal(row, made)


def test_another_rank_is_brought_to_the_layouts_and_other_layers_are_refused(base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    wide = Layout.of(base.pipeline.unet, rank=2, alpha=2)
    row = torch.randn(wide.d, generator=torch.Generator().manual_seed(0))
    for matrix in wide.matrices:  # of rank 1, though there is room for 2
        part = row[wide.slices[matrix.name]].view(matrix.shape)
        (part[1] if ".lora_A." in matrix.name else part[:, 1]).zero_()
    write_peft(tmp_path / "wide", wide, row, base.source)
    read = read_adapter(tmp_path / "wide", Denoiser.of(base), layout)
    torch.testing.assert_close(products(layout, read), products(wide, row), atol=1e-5, rtol=1e-4)
    others = Layout.of(base.pipeline.unet, targets=("to_k",))
    write_peft(tmp_path / "others", others, torch.ones(others.d), base.source)
    with pytest.raises(W2WError, match=r"to_k.*to_q"):
        read_adapter(tmp_path / "others", Denoiser.of(base), layout)


def test_a_space_of_another_base_is_refused(base: BaseModel, dataset: Path) -> None:
    space = PcaSpace.fit(WeightDataset.load(dataset), m=4)
    space.base_id = "another"
    with pytest.raises(W2WError, match="another"):
        of_points(space, space.sample(1, seed=0), ["a"], Denoiser.of(base))
