"""Adapter folders of huggingface/peft: `adapter_config.json` and `adapter_model.safetensors`.

`PeftModel.from_pretrained(unet, folder)` loads what `write_peft` wrote. The scale alpha / rank lives in the
configuration alone, so that a reader of the tensors that ignores it gets a wrong model without an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.errors import W2WError
from w2wpp.files import read_json, replacing, write_tensors
from w2wpp.formats.tensors import finite_floats, opened
from w2wpp.layout import Layout, Matrix

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's two wrappers around the UNet
# Options that change the arithmetic of a LoRA: with one of them B A alpha / rank is not what peft computes.
OTHER_ARITHMETIC = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "modules_to_save")


def write_peft(folder: str | Path, layout: Layout, weights: Tensor, base: str) -> None:
    """Write one adapter, weights [d], as a peft folder.

    base: the base model's name or path, for the record. Raises W2WError if the weights are not those of the layout,
    or hold a NaN; the folder is then as it was.
    """
    _check_finite(weights, "the adapter")
    matrices = {PREFIX + name: matrix.float() for name, matrix in layout.unflatten(weights).items()}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": layout.rank,
        "lora_alpha": int(layout.alpha) if layout.alpha.is_integer() else layout.alpha,
        "target_modules": list(layout.targets),
        "bias": "none",
        "inference_mode": True,
    }
    # The tensors are written while the configuration waits aside: a full disk leaves both as they were.
    with replacing(Path(folder) / CONFIG) as aside:
        aside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tensors(Path(folder) / TENSORS, matrices)


def read_peft(folder: str | Path) -> tuple[Layout, Tensor]:
    """Read a peft folder: its layout and weights [d] float32.

    Raises W2WError if a file is missing or cut short, if the adapter is no plain LoRA of one rank, or holds a NaN.
    """
    folder = Path(folder)
    rank, alpha, targets = read_config(folder / CONFIG)
    with opened(folder / TENSORS) as tensors:
        names = {key: _name(key, folder) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        matrices = {name: finite_floats(tensors, key, folder / TENSORS) for key, name in names.items()}
    for name, matrix in matrices.items():
        down = ".lora_A." in name
        pair = name.replace(".lora_A.", ".lora_B.") if down else name.replace(".lora_B.", ".lora_A.")
        if pair not in matrices:
            raise W2WError(f"{folder} has {name} without {pair}. Export the adapter again.")
        if matrix.dim() != 2 or matrix.shape[0 if down else 1] != rank:
            raise W2WError(f"{name} in {folder} has shape {list(matrix.shape)}, but {CONFIG} says rank {rank}. Export it again.")
    if not matrices:
        raise W2WError(f"{folder / TENSORS} holds no matrix. Export the adapter again.")
    ordered = tuple(Matrix(name, (matrices[name].shape[0], matrices[name].shape[1])) for name in sorted(matrices))
    layout = Layout(ordered, rank, alpha, targets)
    return layout, layout.flatten(matrices)


def read_config(path: Path) -> tuple[int, float, tuple[str, ...]]:
    """Rank, alpha and targets. Raises W2WError unless this is a plain LoRA."""
    config: Any = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise W2WError(f"{path} does not describe a LoRA (no peft_type LORA). Give a LoRA folder of peft.")
    check_arithmetic(config, path)
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise W2WError(f"{path} has target_modules {targets!r}; a list of layer names was expected, such as to_q, to_v.")
    rank, alpha = check_scale(config.get("r"), config.get("lora_alpha"), path)
    return rank, alpha, tuple(str(target) for target in targets)


def check_arithmetic(config: Mapping[str, Any], path: Path) -> None:
    """Raise W2WError if a configuration asks for more than B A alpha / rank."""
    used = [option for option in OTHER_ARITHMETIC if config.get(option)]
    if used:
        raise W2WError(f"{path} uses {', '.join(used)}; only a plain LoRA of one rank can be read. Train one without.")


def check_scale(rank: Any, alpha: Any, path: Path) -> tuple[int, float]:
    """A configuration's rank and alpha. Raises W2WError unless they are a whole number and a number above 0."""
    numbers = type(rank) is int and type(alpha) in (int, float)  # True is no rank
    if not numbers or not 0 < rank < 2**31 or not 0 < alpha < 2**31:
        found = f"r {str(rank)[:40]} and lora_alpha {str(alpha)[:40]}"
        raise W2WError(f"{path} has no usable r and lora_alpha ({found}); numbers above 0 were expected. Export the adapter again.")
    return rank, float(alpha)


def _name(key: str, folder: Path) -> str:
    """A layout's matrix name for a peft key."""
    if not key.startswith(PREFIX) or not key.endswith((".lora_A.weight", ".lora_B.weight")):
        raise W2WError(f"{folder} has the key {key}; {PREFIX}<module>.lora_A.weight and lora_B.weight were expected.")
    return key.removeprefix(PREFIX)


def _check_finite(weights: Tensor, who: str) -> None:
    if not torch.isfinite(weights).all():
        raise W2WError(f"{who} has {int((~torch.isfinite(weights)).sum())} weights that are not numbers. Train it again at a lower --lr.")
