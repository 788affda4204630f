"""Adapter folders of huggingface/peft: `adapter_config.json` and `adapter_model.safetensors`.

`PeftModel.from_pretrained(unet, folder)` loads what `write_peft` wrote. The scale alpha / rank lives in the
configuration alone, so that a reader of the tensors that ignores it gets a wrong model without an error.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, replacing, write_tensors
from w2wpp.exchange.formats.tensors import checked_matrices, read_header
from w2wpp.lora.layout import Layout, Matrix, part_of
from w2wpp.lora.state_dict import PEFT_PREFIX

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = PEFT_PREFIX
# Options that add more to a layer than a product and a scale.
OTHER_ARITHMETIC = ("fan_in_fan_out", "lora_bias", "modules_to_save")
# Kinds of adapters whose products are read, and what their configuration calls alpha.
ALPHA = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}

# Expressions for names of layers need few repeats, and none of a group, with which matching can take time exponential in a name.
REPEATED_GROUP = re.compile(r"\)[*+?{]")
REPEAT = re.compile(r"(?<!\()[*+?{]")
MOST_REPEATS = 4


@dataclass(frozen=True)
class Told:
    """What a configuration tells of ranks and scales. rank: None where only alpha is known."""

    rank: int | None
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)  # by a regular expression for the end of a layer's name
    alphas: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False  # rsLoRA (Kalajdzievski 2023): alpha / sqrt(r)
    dora: bool = False  # whether every layer has magnitudes

    def rank_for(self, layer: str) -> int | None:
        """The rank that a layer should have."""
        return _matching(self.ranks, layer, self.rank)

    def scale_for(self, layer: str, rank: int) -> float:
        """What the product of a layer is multiplied with."""
        return float(_matching(self.alphas, layer, self.alpha)) / (rank**0.5 if self.by_root else rank)


def _matching(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """The value of the first pattern that the end of a layer's name matches, as peft looks it up."""
    return next((value for key, value in patterns.items() if re.match(_ending(key), layer)), otherwise)


def _ending(pattern: str) -> str:
    """What peft makes of a pattern: the end of a layer's name."""
    return rf"(.*\.)?({pattern})$"


def write_peft(folder: str | Path, layout: Layout, weights: Tensor, base: str, rename: Mapping[str, str] | None = None) -> None:
    """Write one adapter, weights [d], as a peft folder; one with text encoders as a folder for each part, as peft's examples do.

    base: the base model's name or path, for the record. rename: what the base's own classes call layers that the layout
    calls otherwise. Raises W2WError if the weights are not those of the layout, or hold a NaN; the folder is then as it was.
    """
    matrices = checked_matrices(layout, weights)
    for part in layout.parts:
        layers = layout.modules_of(part)
        names = {layer: (rename or {}).get(layer, layer.removeprefix(f"{part}.") if part else layer) for layer in layers}
        place = Path(folder) if layout.parts == ("",) else Path(folder) / (part or "unet")
        keys = {name: name.rsplit(".lora_", 1) for name in matrices if part_of(name) == part}
        tensors = {f"{PREFIX}{names[layer]}.lora_{end}": matrices[name].float() for name, (layer, end) in keys.items()}
        targets = list(layout.targets) if layout.parts == ("",) else list(names.values())
        _write_part(place, tensors, layout, targets, base)


def _write_part(folder: Path, tensors: dict[str, Tensor], layout: Layout, targets: list[str], base: str) -> None:
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": layout.rank,
        "lora_alpha": int(layout.alpha) if layout.alpha.is_integer() else layout.alpha,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    # The tensors are written while the configuration waits aside: a full disk leaves both as they were.
    with replacing(folder / CONFIG) as aside:
        aside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tensors(folder / TENSORS, tensors)


def read_peft(folder: str | Path) -> tuple[Layout, Tensor]:
    """Read a peft folder of a denoiser's LoRA of one rank and scale: its layout and weights [d] float32.

    Raises W2WError if a file is missing or cut short, if the adapter is no plain LoRA of one rank, or holds a NaN.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    told, targets = told_by(config, folder / CONFIG), config.get("target_modules")
    if used := [option for option in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(option)]:
        raise W2WError(f"{folder / CONFIG} uses {', '.join(used)}; a plain LoRA of one rank was expected. `w2w import` makes a row of it.")
    if not isinstance(targets, list) or not targets:
        found = f"target_modules {targets!r}; a list of layer names was expected, such as to_q, to_v"
        raise W2WError(f"{folder / CONFIG} has {found}. `w2w import` makes a row of it.")
    header = read_header(folder / TENSORS)
    names = {key: _name(key, folder) for key in header.entries}
    tensors = header.read(names)
    kernels = {name: tensors[key].shape[2:] for key, name in names.items() if tensors[key].dim() == 4 and ".lora_A." in name}
    matrices = {name: tensors[key].flatten(1) if tensors[key].dim() == 4 else tensors[key] for key, name in names.items()}
    for name, matrix in matrices.items():
        down = ".lora_A." in name
        pair = name.replace(".lora_A.", ".lora_B.") if down else name.replace(".lora_B.", ".lora_A.")
        if pair not in matrices:
            raise W2WError(f"{folder} has {name} without {pair}. Export the adapter again.")
        if matrix.dim() != 2 or matrix.shape[0 if down else 1] != told.rank:
            raise W2WError(f"{name} in {folder} has shape {list(matrix.shape)}, but {CONFIG} says rank {told.rank}. Export it again.")
    if not matrices or told.rank is None:
        raise W2WError(f"{folder / TENSORS} holds no matrix. Export the adapter again.")
    ordered = tuple(
        Matrix(name, (matrices[name].shape[0], matrices[name].shape[1]), (kernels[name][0], kernels[name][1]) if name in kernels else None)
        for name in sorted(matrices)
    )
    layout = Layout(ordered, told.rank, told.alpha, tuple(str(target) for target in targets))
    return layout, layout.flatten(matrices)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration. Raises W2WError unless it is of an adapter whose products are read: LoRA, LoHa or LoKr."""
    config: Any = read_json(path)
    if not isinstance(config, dict) or str(config.get("peft_type")) not in ALPHA:
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise W2WError(f"{path} does not describe a LoRA (peft_type {found!r}, not LORA, LOHA or LOKR). Give a LoRA folder of peft.")
    return config


def told_by(config: Mapping[str, Any], path: Path) -> Told:
    """Rank, alpha and what differs by layer. Raises W2WError if they are no numbers above 0, or if more than products is meant."""
    used = [option for option in OTHER_ARITHMETIC if config.get(option)]
    if used:
        raise W2WError(f"{path} uses {', '.join(used)}; only products of matrices can be read. Train one without.")
    for option in ("use_rslora", "use_dora"):  # the text "false" would count as true
        if not isinstance(config.get(option), bool | None):
            raise W2WError(f"{path} says {option} is {str(config[option])[:40]!r}; true or false was expected. Export the adapter again.")
    rank, alpha = check_scale(config.get("r"), config.get(ALPHA.get(str(config.get("peft_type")), "lora_alpha")), path)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    try:
        for pattern in (*ranks, *alphas):
            re.compile(_ending(pattern))
            if REPEATED_GROUP.search(pattern) or len(REPEAT.findall(pattern)) > MOST_REPEATS:
                raise W2WError(f"{path} has the pattern {pattern[:40]!r}, which may take for ever to match. Write plain names of layers.")
        for value in (*ranks.values(), *alphas.values()):
            check_scale(rank, value, path)
    except (re.error, AttributeError, TypeError) as error:
        raise W2WError(f"{path} has an unusable rank_pattern or alpha_pattern ({error}). Export the adapter again.") from error
    return Told(rank, alpha, ranks, alphas, bool(config.get("use_rslora")), bool(config.get("use_dora")))


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
