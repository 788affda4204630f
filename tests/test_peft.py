"""A peft folder is the same adapter: to peft itself, and read back."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.peft import CONFIG, TENSORS, read_peft, write_peft
from w2wpp.lora.batched import adapted
from w2wpp.lora.layout import Layout


@pytest.fixture
def weights(layout: Layout) -> torch.Tensor:
    return torch.randn(layout.d, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def folder(tmp_path: Path, layout: Layout, weights: torch.Tensor) -> Path:
    write_peft(tmp_path / "adapter", layout, weights, "pico")
    return tmp_path / "adapter"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value is not None}))


def edit_tensors(folder: Path, **changes: torch.Tensor) -> None:
    tensors = load_file(folder / TENSORS)
    save_file({**{key: tensor.clone() for key, tensor in tensors.items()}, **changes}, folder / TENSORS)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 27.0), (3, 4.5)])
def test_peft_computes_what_adapted_computes(pico: Path, base: BaseModel, tmp_path: Path, rank: int, alpha: float) -> None:
    layout = Layout.of(base.pipeline.unet, rank=rank, alpha=alpha)
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(layout.d, generator=draw) * 0.1
    write_peft(tmp_path, layout, weights, str(pico))
    unet = UNet2DConditionModel.from_pretrained(pico, subfolder="unet", torch_dtype=torch.float32).eval()
    x = torch.randn(2, *base.latent_shape, generator=draw)
    context = base.encode_text(["photo of sks person"]).float().expand(2, -1, -1)
    t = torch.tensor([100, 700])
    with torch.no_grad():
        alone = unet(x, t, context).sample
        with adapted(unet, layout, weights[None]):
            ours = unet(x, t, context).sample
        theirs = PeftModel.from_pretrained(unet, tmp_path)(x, t, context).sample
    assert (ours - alone).abs().max() > 1e-2  # the adapter matters, so equality says something
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_reading_gives_back_the_layout_and_every_number(folder: Path, layout: Layout, weights: torch.Tensor) -> None:
    found_layout, found = read_peft(folder)
    assert found_layout == layout
    assert torch.equal(found, weights)


def test_a_folder_that_peft_saved_reads_the_same(pico: Path, folder: Path, tmp_path: Path, weights: torch.Tensor) -> None:
    unet = UNet2DConditionModel.from_pretrained(pico, subfolder="unet")
    PeftModel.from_pretrained(unet, folder).save_pretrained(tmp_path / "again")
    layout, found = read_peft(tmp_path / "again")
    assert (layout.rank, layout.alpha, set(layout.targets)) == (1, 27.0, {"to_q", "to_v"})
    assert torch.equal(found, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 2}, "says rank 2"),
        ({"lora_alpha": None}, "no usable r and lora_alpha"),
        ({"use_dora": True}, "uses use_dora"),
        ({"peft_type": "IA3"}, "does not describe a LoRA"),
        ({"target_modules": ".*to_q"}, "target_modules"),
    ],
)
def test_another_kind_of_adapter_is_one_clear_line(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(W2WError, match=message) as error:
        read_peft(folder)
    assert "\n" not in str(error.value)


def test_damaged_tensors_are_one_clear_line(folder: Path, layout: Layout) -> None:
    name = "base_model.model." + layout.matrices[0].name
    edit_tensors(folder, **{name: torch.full(layout.matrices[0].shape, torch.nan)})
    with pytest.raises(W2WError, match="not finite"):
        read_peft(folder)
    edit_tensors(folder, **{name.replace("lora_A", "lora_magnitude"): torch.zeros(1)})
    with pytest.raises(W2WError, match="has the key"):
        read_peft(folder)
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-40])
    with pytest.raises(W2WError, match="whole safetensors file"):
        read_peft(folder)
    (folder / TENSORS).unlink()
    with pytest.raises(W2WError, match="cannot read"):
        read_peft(folder)
    with pytest.raises(W2WError, match=f"cannot read .*{CONFIG}"):
        read_peft(folder / "elsewhere")


def test_a_refused_adapter_leaves_the_folder_as_it_was(folder: Path, layout: Layout, weights: torch.Tensor) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(W2WError, match="the layout expects"):
        write_peft(folder, layout, weights[:-1], "pico")
    with pytest.raises(W2WError, match="not numbers"):
        write_peft(folder, layout, weights / 0, "pico")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
