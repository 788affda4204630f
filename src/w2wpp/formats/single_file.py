"""Write one adapter as a single safetensors file: for diffusers, or for kohya, ComfyUI and A1111."""

import json
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.errors import W2WError
from w2wpp.files import write_tensors
from w2wpp.formats.names import original_name
from w2wpp.layout import Layout

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


def write_diffusers(path: str | Path, layout: Layout, weights: Tensor, part: str = "unet") -> None:
    """Write weights [d] for `pipeline.load_lora_weights`; alpha is in the metadata, where diffusers looks for it.

    part: what the pipeline calls its denoiser, unet or transformer.
    Raises W2WError if the weights are not those of the layout, or not finite.
    """
    matrices = {f"{part}.{name}": matrix.float() for name, matrix in _checked(layout, weights).items()}
    described = {"r": layout.rank, "lora_alpha": layout.alpha, "target_modules": list(layout.modules), "lora_dropout": 0.0, "bias": "none"}
    metadata = {f"{part}.{key}": value for key, value in described.items()}
    write_tensors(path, matrices, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)})


def write_kohya(path: str | Path, layout: Layout, weights: Tensor, xl_blocks: int | None = None) -> None:
    """Write weights [d] in kohya's keys, with an alpha a layer, as ComfyUI and A1111 read them.

    xl_blocks: layers a level of a Stable Diffusion XL UNet, whose layers kohya names by the original code; None for SD 1 and 2.
    Raises W2WError if the weights are not those of the layout, or not finite, or XL's names have none for a layer.
    """
    tensors: dict[str, Tensor] = {}
    for name, matrix in _checked(layout, weights).items():
        layer, factor = name.removesuffix(".weight").rsplit(".lora_", 1)
        spelt = original_name(layer, xl_blocks) if xl_blocks else layer
        if spelt is None:
            raise W2WError(
                f"kohya's files of Stable Diffusion XL are written for attention layers; {layer} is none. Use --format diffusers."
            )
        stem = "lora_unet_" + spelt.replace(".", "_")
        tensors[f"{stem}.lora_{'down' if factor == 'A' else 'up'}.weight"] = matrix.float()
        tensors[f"{stem}.alpha"] = torch.tensor(float(layout.alpha))
    metadata = {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(layout.rank)}
    write_tensors(path, tensors, {**metadata, "ss_network_alpha": f"{layout.alpha:g}"})


def _checked(layout: Layout, weights: Tensor) -> dict[str, Tensor]:
    if not torch.isfinite(weights).all():
        raise W2WError(
            f"the adapter has {int((~torch.isfinite(weights)).sum())} weights that are not numbers. Train it again at a lower --lr."
        )
    return layout.unflatten(weights)
