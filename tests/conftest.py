"""Shared fixtures: `pico`, a random pipeline of kilobytes in Stable Diffusion's folder format, and what grows on it."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before diffusers is imported: no test asks the network

from w2wpp.base_build import BaseSizes, build_pipeline
from w2wpp.base_model import BaseModel
from w2wpp.layout import Layout

PICO = BaseSizes(
    image_size=16,
    latent_channels=4,
    autoencoder_widths=(8, 16),
    unet_widths=(16, 32),
    attention_heads=2,
    norm_groups=8,
    text_width=16,
    text_layers=1,
    prompt_tokens=8,
)


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved random pipeline: 16x16 pictures, 4x8x8 latents, two people's names in its vocabulary."""
    folder = tmp_path_factory.mktemp("pico") / "pipeline"
    build_pipeline(PICO, names=("Ada Lovelace", "Grace Hopper")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(pico: Path) -> BaseModel:
    """The pico pipeline, loaded on the CPU."""
    return BaseModel.load(pico, device="cpu")


@pytest.fixture(scope="session")
def layout(base: BaseModel) -> Layout:
    """The default adapter of the pico pipeline: rank 1 on to_q and to_v, d = 1,344."""
    return Layout.of(base.pipeline.unet)
