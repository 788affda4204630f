"""What `sd15.py` runs on: a pipeline of Stable Diffusion 1.5's shapes with random weights, faces, adapters and published files.

python benchmarks/sd15_files.py FOLDER base|faces|adapters|published [--pixels 512] [--tiny]
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from w2wpp.base.identity import identity
from w2wpp.common.files import write_text
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.torch_files import write_table
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import write_image

BLOCK = 500  # rows drawn at a time


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    widths: tuple[int, ...]  # of the UNet
    groups: int  # of its norms
    autoencoder: tuple[int, ...]
    text: tuple[int, int, int, int]  # width, inner width, layers, heads
    words: int  # rows of the text encoder's table
    n: int  # adapters
    components: int  # of V.pt
    projected: int  # of them, those with projections
    vae: str  # widths of VAE-w2w
    m: int  # its latents, and the components that PCA keeps


TRUE = Sizes((320, 640, 1280, 1280), 32, (128, 256, 512, 512), (768, 3072, 12, 12), 49_408, 2000, 10_000, 1000, "4096,2048,1024", 512)
TINY = Sizes((16, 16, 32, 32), 8, (8, 8, 16, 16), (32, 64, 2, 4), 600, 80, 60, 20, "64,32,16", 16)


def sizes(tiny: bool) -> Sizes:
    """Those of the true pipeline, or of one to rehearse with."""
    return TINY if tiny else TRUE


def unet_of(given: Sizes, pixels: int) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet for pictures of so many pixels."""
    return UNet2DConditionModel(
        sample_size=pixels // 8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=given.widths,
        norm_num_groups=given.groups,
        cross_attention_dim=given.text[0],
        attention_head_dim=8,
    )


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte, at the end of a word and within, and joins none."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps({word: i for i, word in enumerate(words)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def write_base(folder: Path, given: Sizes, pixels: int) -> None:
    """Save the pipeline with the random weights that its modules draw, in float32."""
    torch.manual_seed(0)
    width, inner, layers, heads = given.text
    tokenizer = write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=given.words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    levels = len(given.autoencoder)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=given.autoencoder,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=given.groups,
        sample_size=pixels,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet_of(given, pixels),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def resized_base(source: Path, folder: Path, pixels: int) -> None:
    """The same weights, linked, for pictures of another size."""
    for file in source.rglob("*"):
        if file.is_file():
            there = folder / file.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                there.write_bytes(file.read_bytes())
            else:
                os.link(file, there)
    for part, size in (("unet", pixels // 8), ("vae", pixels)):
        config = folder / part / "config.json"
        write_text(config, json.dumps({**json.loads(config.read_text()), "sample_size": size}))


def write_faces(folder: Path, pixels: int) -> None:
    """Aligned faces of two people, a photo each, of noise: nobody's."""
    lines = []
    for i, person in enumerate(("Person_A", "Person_B")):
        write_image(folder / person / "0.png", np.random.default_rng(i).integers(0, 256, (pixels, pixels, 3), np.uint8))
        lines.append({"person": person, "photo": "0.jpg", "size": pixels, "status": "ok", "labels": {"split": "train"}})
    write_text(folder / "faces.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def layout_of(given: Sizes) -> Layout:
    """Where the default adapters sit."""
    with torch.device("meta"):
        return Layout.of(unet_of(given, 512))


def base_id(base: Path) -> str:
    """The identity of the pipeline in a folder."""
    return identity(UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=True), base)


def drawn(n: int, d: int) -> Iterator[Tensor]:
    """Synthetic adapters [n, d], block by block: 64 directions, and noise."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(64, d, generator=draw)
    for at in range(0, n, BLOCK):
        rows = min(BLOCK, n - at)
        yield 0.002 * (torch.randn(rows, 64, generator=draw) @ directions + torch.randn(rows, d, generator=draw))


def write_adapters(folder: Path, given: Sizes, base: Path, n: int) -> None:
    """A weight dataset of synthetic adapters, every other one of a man."""
    layout, at = layout_of(given), 0
    data = WeightDataset.create(folder, layout, base_id(base))
    for block in drawn(n, layout.d):
        ids = [f"person-{at + i:05d}" for i in range(len(block))]
        labels = [{"person": name, "gender": "man" if int(name[-1]) % 2 else "woman"} for name in ids]
        data.append(block, ids, labels, torch.float16)
        at += len(block)


def write_published(folder: Path, given: Sizes) -> None:
    """`files/` as it was published: V.pt [d, components], written block by block, and its companions; orthogonal columns are not."""
    layout, files = layout_of(given), folder / "files"
    files.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    d, k = layout.d, given.components
    write_table(files / "V.pt", d, k, (torch.randn(min(BLOCK, d - at), k, generator=draw) / d**0.5 for at in range(0, d, BLOCK)))
    std = 0.01 * torch.rand(d, generator=draw).add(0.1) * torch.where(torch.rand(d, generator=draw) < 0.3, -1.0, 1.0)
    names = {f"base_model.model.{m.name}": [torch.Size([m.shape[0] * m.shape[1]]), torch.Size(m.shape)] for m in layout.matrices}
    written: dict[str, Any] = {
        "mean.pt": 0.002 * torch.randn(d, generator=draw),
        "std.pt": std,
        "proj_1000pc.pt": torch.randn(given.n, given.projected, generator=draw),
        "weight_dimensions.pt": names,
    }
    for name, value in written.items():
        torch.save(value, files / name)


def main() -> None:
    """Write one part into its own folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=("base", "faces", "adapters", "published"))
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--n", type=int)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    given, folder, pixels = sizes(options.tiny), options.folder, options.pixels
    base = folder / f"base-{pixels}"
    if options.part == "base":
        other = next((path for path in folder.glob("base-*") if (path / "model_index.json").is_file()), None)
        resized_base(other, base, pixels) if other else write_base(base, given, pixels)
    elif options.part == "faces":
        write_faces(folder / f"faces-{pixels}", pixels)
    elif options.part == "adapters":
        write_adapters(folder / f"adapters-{pixels}", given, base, options.n or given.n)
    else:
        write_published(folder / "published", given)


if __name__ == "__main__":
    main()
