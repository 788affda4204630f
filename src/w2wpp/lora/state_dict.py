"""One adapter in memory as other libraries take it: keys of diffusers or of peft."""

from typing import Literal

from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.lora.layout import Layout

Keys = Literal["diffusers", "peft"]
PEFT_PREFIX = "base_model.model."  # peft's two wrappers around the UNet


def lora_state_dict(layout: Layout, weights: Tensor, format: Keys = "diffusers") -> dict[str, Tensor]:
    """Weights [d] of one adapter -> its matrices by name, float32 on the CPU.

    format: `diffusers` for `pipe.load_lora_weights(...)`: keys `unet.<layer>.lora_A.weight`. A dictionary carries no alpha,
    and diffusers takes alpha = rank, so lora_B is multiplied by alpha / rank.
    `peft` for `peft.set_peft_model_state_dict`: keys `base_model.model.<layer>.lora_A.weight` and the numbers as they are;
    the model's `LoraConfig` needs r = layout.rank, lora_alpha = layout.alpha and target_modules = layout.targets.
    Raises W2WError for more than one adapter, another d, or another format.
    """
    if format not in ("diffusers", "peft"):
        raise W2WError(f"adapters have no format {format!r} in memory. Choose diffusers or peft; `w2w export` writes files of more kinds.")
    flat = weights.detach().to("cpu").float()
    if flat.dim() == 2 and len(flat) == 1:
        flat = flat[0]
    if flat.dim() != 1:
        raise W2WError(f"weights {list(weights.shape)} are not one adapter. Give one row of them.")
    matrices = layout.unflatten(flat)
    if format == "peft":
        return {PEFT_PREFIX + name: matrix.clone() for name, matrix in matrices.items()}
    return {f"unet.{name}": matrix * (layout.scale if ".lora_B." in name else 1.0) for name, matrix in matrices.items()}
