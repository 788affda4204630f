"""SD 1.5, 2.1, XL and 3 at random and tiny: an adapter that diffusers saved goes in, comes out, and diffusers and peft compute the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.lora.batched import adapted

Command = Callable[..., Ended]
WIDTHS: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "cross_attention_dim": 16,
    "norm_num_groups": 8,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "layers_per_block": 2,
    },
    "sd21": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "layers_per_block": 1,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
}
PIPELINES: dict[str, Any] = {
    "sd15": StableDiffusionPipeline,
    "sd21": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}
NONE: dict[str, None] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
TWO: dict[str, None] = {**NONE, **dict.fromkeys(("text_encoder_2", "tokenizer_2"))}


def made(kind: str) -> Any:
    """A pipeline of a random denoiser and nothing else."""
    torch.manual_seed(0)
    if kind == "sd3":
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
        )
        third = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
        return StableDiffusion3Pipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **TWO, **third)
    unet = UNet2DConditionModel(**WIDTHS, **UNETS[kind])
    scheduler = DDPMScheduler(prediction_type="v_prediction" if kind == "sd21" else "epsilon")
    if kind == "sdxl":
        return StableDiffusionXLPipeline(unet=unet, scheduler=scheduler, **TWO)
    return StableDiffusionPipeline(unet=unet, scheduler=scheduler, **NONE, safety_checker=None, feature_extractor=None)


def denoiser_of(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or pipeline.unet


@torch.no_grad()
def output(denoiser: Any) -> torch.Tensor:
    """What the denoiser says of fixed noise."""
    draw = torch.Generator().manual_seed(1)
    x, context, pooled = (torch.randn(2, *shape, generator=draw) for shape in ((4, 8, 8), (5, 16), (16,)))
    t = torch.tensor([100, 700])
    config = denoiser.config if hasattr(denoiser, "config") and hasattr(denoiser.config, "get") else denoiser.base_model.model.config
    if config.get("joint_attention_dim"):
        return denoiser(hidden_states=x, encoder_hidden_states=context, pooled_projections=pooled, timestep=t).sample
    extra = {}
    if config.get("addition_embed_type"):
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.ones(2, 6)}}
    return denoiser(x, t, context, **extra).sample


def saved_by_diffusers(pipeline: Any, folder: Path) -> torch.Tensor:
    """Give the pipeline's denoiser a random LoRA by peft, save it by diffusers; returns what the adapted denoiser says."""
    denoiser = denoiser_of(pipeline)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "to_v", "to_out.0", "ff.net.2"], init_lora_weights=False)
    torch.manual_seed(2)
    denoiser.add_adapter(config)
    part = "transformer" if hasattr(pipeline, "transformer") else "unet"
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(denoiser), f"{part}_lora_adapter_metadata": config.to_dict()}
    type(pipeline).save_lora_weights(folder, **layers)
    return output(denoiser)


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft", "w2w"])
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl", "sd3"])
def test_in_and_out_by_the_real_library(w2w: Command, tmp_path: Path, kind: str, form: str) -> None:
    pipeline = made(kind)
    pipeline.save_pretrained(tmp_path / "base")
    alone = output(denoiser_of(pipeline))
    wanted = saved_by_diffusers(pipeline, tmp_path / "in")
    assert (wanted - alone).abs().max() > 1e-2  # the adapter matters, so equality says something
    common = ("--base", tmp_path / "base", "--runs", tmp_path / "runs", "--json")
    w2w("import", tmp_path / "in", "--out", tmp_path / "data", *common).json()
    out = tmp_path / ("out.safetensors" if form in ("diffusers", "kohya") else "out")
    ended = w2w("export", "--dataset", tmp_path / "data", "--format", form, "--out", out, *common)
    ended.json()
    fresh = made(kind)
    if form == "w2w" or (kind, form) == ("sd3", "kohya"):  # diffusers reads no file of kohya's for Stable Diffusion 3
        if form == "kohya":
            assert any(key.startswith("lora_unet_joint_blocks_0_x_block_attn_qkv.") for key in load_file(out))
        w2w("import", out, "--alpha", 3, "--out", tmp_path / "again", *common).json()
        data = WeightDataset.load(tmp_path / "again")
        with adapted(denoiser_of(fresh), data.layout, data.rows()):
            found = output(denoiser_of(fresh))
    elif form == "peft":
        found = output(PeftModel.from_pretrained(denoiser_of(fresh), out))
    else:
        if kind == "sdxl" and form == "kohya":
            assert any(key.startswith("lora_unet_input_blocks_4_1_transformer_blocks_1_") for key in load_file(out))
        fresh.load_lora_weights(tmp_path, weight_name=out.name)
        found = output(denoiser_of(fresh))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_a_base_that_cannot_draw_is_one_clear_line(tmp_path: Path) -> None:
    for kind in ("sdxl", "sd3"):
        made(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(W2WError, match=rf"{PIPELINES[kind].__name__}; only `w2w import` and `w2w export`"):
            BaseModel.load(tmp_path / kind, device="cpu")
    with pytest.raises(W2WError, match="does not load"):
        Denoiser.load(tmp_path)


def test_a_denoiser_and_its_base_model_are_one_base(base: BaseModel, pico: Path) -> None:
    assert Denoiser.load(pico).id == Denoiser.of(base).id == base.id
