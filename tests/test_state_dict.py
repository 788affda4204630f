"""An adapter in memory: what diffusers and peft draw with it is what they draw with the exported file, and what we draw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.diffusers import write_diffusers
from w2wpp.exchange.formats.peft import PREFIX
from w2wpp.lora.batched import adapted, initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.lora.state_dict import PEFT_PREFIX, lora_state_dict
from w2wpp.photos.images import read_image
from w2wpp.spaces.pca import PcaSpace


@pytest.fixture
def space(base: BaseModel, layout: Layout) -> PcaSpace:
    weights = initial_weights(layout) + 0.05 * torch.randn(8, layout.d, generator=torch.Generator().manual_seed(0))
    return PcaSpace.fit(weights, layout=layout, base_id=base.id, m=3)


def plain(pico: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(pico)  # no code of ours, no arguments


@torch.no_grad()
def predicted(unet: UNet2DConditionModel, base: BaseModel) -> Tensor:
    """What a UNet predicts for fixed noise, time and words."""
    x = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    return unet(x, torch.tensor([100, 700]), base.encode_text(["photo of sks person", ""])).sample


def test_a_plain_pipeline_draws_the_point(base: BaseModel, pico: Path, space: PcaSpace, tmp_path: Path) -> None:
    z = space.sample(1, seed=3)
    weights = space.decode(z)
    with adapted(base.pipeline.unet, space.layout, weights):
        ours = predicted(base.pipeline.unet, base)
    in_memory, from_file = plain(pico), plain(pico)
    in_memory.load_lora_weights(space.lora_state_dict(z))
    write_diffusers(tmp_path / "one.safetensors", space.layout, weights[0])
    from_file.load_lora_weights(tmp_path / "one.safetensors")
    assert (ours - predicted(base.pipeline.unet, base)).abs().max() > 1e-2
    torch.testing.assert_close(predicted(in_memory.unet, base), ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicted(in_memory.unet, base), predicted(from_file.unet, base), atol=1e-5, rtol=1e-5)


def test_peft_takes_the_same_numbers(base: BaseModel, pico: Path, space: PcaSpace) -> None:
    z, layout = space.sample(1, seed=3), space.layout
    config = LoraConfig(r=layout.rank, lora_alpha=int(layout.alpha), target_modules=list(layout.targets))
    model = get_peft_model(UNet2DConditionModel.from_pretrained(pico, subfolder="unet"), config).eval()
    left = set_peft_model_state_dict(model, space.lora_state_dict(z[0], "peft"))
    assert not left.unexpected_keys and PEFT_PREFIX == PREFIX
    with adapted(base.pipeline.unet, layout, space.decode(z)):
        torch.testing.assert_close(predicted(model, base), predicted(base.pipeline.unet, base), atol=1e-5, rtol=1e-5)


def test_more_than_one_or_an_unknown_format_is_refused(space: PcaSpace) -> None:
    with pytest.raises(W2WError, match="not one point of m = 3"):
        space.lora_state_dict(space.sample(2))
    with pytest.raises(W2WError, match="not one adapter"):
        lora_state_dict(space.layout, space.decode(space.sample(2)))
    with pytest.raises(W2WError, match="no format 'kohya'"):
        space.lora_state_dict(space.sample(1), "kohya")  # type: ignore[arg-type]


def test_the_readmes_example_draws_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = readme.split("## From Python")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    steps = "num_inference_steps=20"
    assert steps in example
    exec(compile(example.replace(steps, "num_inference_steps=2"), "README.md", "exec"), {})
    assert np.ptp(read_image(tmp_path / "person.png")) > 50
