"""Which model a LoRA file is made for: by what its metadata says, and by the shapes of its tensors, which cannot lie."""

import re
from dataclasses import dataclass

from w2wpp.exchange.formats.keys import split_key
from w2wpp.exchange.formats.tensors import Header


@dataclass(frozen=True)
class Family:
    """Models of one structure. width: of the text that a UNet's attention reads."""

    name: str
    base: str  # a hub id
    part: str = "unet"
    width: int | None = None
    version: str = ""  # what kohya calls it, `ss_base_model_version`
    told_as: tuple[str, ...] = ()  # beginnings of what metadata calls it


SD15 = Family("Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet", 768, "sd_v1", ("sd_v1", "stable-diffusion-v1"))
SD2 = Family("Stable Diffusion 2", "stabilityai/stable-diffusion-2-1", "unet", 1024, "sd_v2", ("sd_v2", "stable-diffusion-v2"))
XL_BASE, SD3_BASE = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-3-medium-diffusers"
XL = Family("Stable Diffusion XL", XL_BASE, "unet", 2048, "sdxl_base_v1-0", ("sdxl", "stable-diffusion-xl"))
FLUX = Family("Flux", "black-forest-labs/FLUX.1-dev", "transformer", None, "flux1", ("flux",))
SD3 = Family("Stable Diffusion 3", SD3_BASE, "transformer", None, "sd3m", ("sd3", "stable-diffusion-3"))
FAMILIES = (SD15, SD2, XL, FLUX, SD3)


def family_for(part: str, width: int | None, kind: str) -> Family | None:
    """The family of a base, by what its pipeline calls the denoiser, the width of the text it reads, and its class."""
    if part == "transformer":
        return {"FluxTransformer2DModel": FLUX, "SD3Transformer2DModel": SD3}.get(kind)
    return next((family for family in FAMILIES if width and family.width == width), None)


def family_of(header: Header) -> Family | None:
    """The family of a file, by its shapes where they say it, else by its metadata; None for no known one."""
    return _by_shapes(header) or _by_metadata(header)


def _by_shapes(header: Header) -> Family | None:
    keys = list(header.entries)
    if any(re.search(r"single_(transformer_)?blocks[._]", key) or "double_blocks" in key for key in keys):
        return FLUX
    if any("joint_blocks" in key or re.search(r"transformer_blocks[._]\d+[._]attn[._]add_q_proj", key) for key in keys):
        return SD3
    for key, entry in header.entries.items():
        if not re.search(r"attn2[._](processor[._])?to_[kv]", key):
            continue
        split = split_key(key)
        if split and split[1] in ("down", "hada_w1_b") and len(entry.shape) in (2, 4):
            return next((family for family in FAMILIES if family.width == entry.shape[1]), None)
    return XL if any(key.startswith(("lora_te2_", "text_encoder_2.", "lora_unet_input_blocks_4_1")) for key in keys) else None


def _by_metadata(header: Header) -> Family | None:
    told = [header.metadata.get(key, "").lower() for key in ("ss_base_model_version", "modelspec.architecture")]
    return next((family for family in reversed(FAMILIES) if any(word.startswith(family.told_as) for word in told if word)), None)
