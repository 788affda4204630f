"""Shared fixtures: `pico`, a random pipeline of kilobytes in Stable Diffusion's folder format, and what grows on it."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from w2wpp.base_model import BaseModel
from w2wpp.layout import Layout

WORDS = ["sks", "photo", "of", "a", "person", "man", "woman", "smiling", "ada", "grace"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; a word outside `WORDS` is `<unk>`."""
    specials = ["<pad>", "<unk>", "<start>", "<end>"]
    vocabulary = {word: i for i, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>", model_max_length=8
    )


def build_pico(seed: int = 0) -> StableDiffusionPipeline:
    """A random pipeline: 16x16 pictures, 4x8x8 latents, a UNet of two levels with cross-attention."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=1.0,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type="v_prediction")
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved pico pipeline."""
    folder = tmp_path_factory.mktemp("pico") / "pipeline"
    build_pico().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(pico: Path) -> BaseModel:
    """The pico pipeline, loaded on the CPU."""
    return BaseModel.load(pico, device="cpu")


@pytest.fixture(scope="session")
def layout(base: BaseModel) -> Layout:
    """The default adapter of the pico pipeline: rank 1 on to_q and to_v."""
    return Layout.of(base.pipeline.unet)
