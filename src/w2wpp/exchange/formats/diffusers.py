"""Write one adapter as a single safetensors file for diffusers' `load_lora_weights`."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from w2wpp.common.files import write_tensors
from w2wpp.exchange.formats.tensors import checked_matrices
from w2wpp.lora.layout import Layout, part_of

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


def write_diffusers(path: str | Path, layout: Layout, weights: Tensor, part: str = "unet") -> None:
    """Write weights [d] for `pipeline.load_lora_weights`; alpha is in the metadata, where diffusers looks for it.

    part: what the pipeline calls its denoiser, unet or transformer; text encoders keep their own names.
    Raises W2WError if the weights are not those of the layout, or not finite.
    """
    found = checked_matrices(layout, weights)
    matrices = {name if part_of(name) else f"{part}.{name}": matrix.float() for name, matrix in found.items()}
    metadata: dict[str, Any] = {}
    for one in layout.parts:
        # By their ends: transformers 5 has no `text_model` before them.
        names = [name.removeprefix(f"{one}.").removeprefix("text_model.") if one else name for name in layout.modules_of(one)]
        described = {"r": layout.rank, "lora_alpha": layout.alpha, "target_modules": names, "lora_dropout": 0.0, "bias": "none"}
        metadata |= {f"{one or part}.{key}": value for key, value in described.items()}
    write_tensors(path, matrices, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)})
