"""Stable Diffusion 1.5 is the same code: its UNet, without weights, has the paper's layout."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from sd15 import rows as benchmark_rows
from sd15_files import TRUE, layout_of, write_tokenizer
from test_pages import COMMANDS, verb_of
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.lora.layout import Layout

# unet/config.json of Stable Diffusion 1.5.
SD15_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}


@pytest.fixture(scope="module")
def sd15_layout() -> Layout:
    with torch.device("meta"):
        return Layout.of(UNet2DConditionModel(**SD15_UNET))


def test_default_adapter_has_the_papers_numbers(sd15_layout: Layout) -> None:
    assert (sd15_layout.d, len(sd15_layout.matrices), len(sd15_layout.modules)) == (99_648, 128, 64)
    assert (sd15_layout.rank, sd15_layout.alpha) == (1, 27)
    # 7 x 12,480 + 16 x 768: what the widths of the attention layers add up to.
    assert sd15_layout.d == 7 * 12_480 + 16 * 768


def test_order_is_the_sorted_key_order_of_the_published_dataset(sd15_layout: Layout) -> None:
    names = [m.name for m in sd15_layout.matrices]
    assert names == sorted(names)
    assert names[0] == "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert names[1] == "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    assert names[-1] == "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.lora_B.weight"


def test_slices_cover_every_number_once(sd15_layout: Layout) -> None:
    numbers = [i for s in sd15_layout.slices.values() for i in range(s.start, s.stop)]
    assert numbers == list(range(sd15_layout.d))


def test_layout_survives_json_and_tells_ranks_apart(sd15_layout: Layout) -> None:
    assert Layout.from_json(sd15_layout.to_json()) == sd15_layout
    with torch.device("meta"):
        rank_2 = Layout.of(UNet2DConditionModel(**SD15_UNET), rank=2)
    assert rank_2.d == 2 * sd15_layout.d
    with pytest.raises(W2WError, match=r"expects 99,648 weights \(rank 1\); adapters has 199,296 \(rank 2\)"):
        sd15_layout.check_same(rank_2, "space", "adapters")


def test_a_pipeline_with_stable_diffusions_autoencoder_encodes_to_the_posteriors_mean(pico: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pico, safety_checker=None)
    pipeline.register_modules(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.5,
        )
    )
    pipeline.save_pretrained(tmp_path / "base")
    base = BaseModel.load(tmp_path / "base", device="cpu")
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean = base.pipeline.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(base.encode_images(pixels), 0.5 * mean)
    assert base.generate("photo of a person", [0], steps=2)[0].shape == (16, 16, 3)


def test_the_rows_of_the_benchmark_parse_and_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    for tiny in (True, False):
        rows = list(benchmark_rows(tmp_path, tiny))
        assert len({(row.name, row.pixels) for row in rows}) == len(rows)
        for row in rows:
            assert bool(row.program) != bool(row.words)
            if row.words:
                verb, rest = verb_of(list(row.words))
                COMMANDS[verb].make_context("w2w", list(rest))  # raises for an option that is not there


def test_the_benchmarks_tokenizer_spells_any_word_and_its_unet_is_sd15s(tmp_path: Path, sd15_layout: Layout) -> None:
    tokens = write_tokenizer(tmp_path)("photo of sks person, naïve").input_ids
    assert len(tokens) > 20 and tokens[0] == 512 and tokens[-1] == 513 and 513 not in tokens[1:-1]
    assert layout_of(TRUE) == sd15_layout
