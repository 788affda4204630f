"""The published files of Weights2Weights: `all_weights.pt` [n, d] and `weight_dimensions.pt`, read without unpickling code."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.base_model import BaseModel
from w2wpp.errors import W2WError
from w2wpp.formats import peft
from w2wpp.importing import layout_of
from w2wpp.progress import track
from w2wpp.weights import WeightDataset

WEIGHTS, DIMENSIONS = "all_weights.pt", "weight_dimensions.pt"


def import_published(
    base: BaseModel, folder: str | Path, out: str | Path, *, alpha: float = 27.0, rows: int = 1024, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Import a folder of the published dataset into `out`, a shard of `rows` adapters at a time; returns the info.

    alpha: the published adapters' 27, which their files do not hold. Rows are named by their position. The table is
    mapped, never loaded whole. An interrupted import goes on where it stopped.
    Raises W2WError if a file is missing, needs code to load, or does not fit the base.
    """
    folder = Path(folder)
    dimensions = _load(folder / DIMENSIONS)
    weights = _load(folder / WEIGHTS, mmap=True)
    if not isinstance(dimensions, dict) or not dimensions or not isinstance(weights, Tensor) or weights.dim() != 2:
        raise W2WError(f"{folder}: {DIMENSIONS} should hold a dict of key -> [(numbers,), shape], and {WEIGHTS} a table [n, d].")
    shapes = {_matrix(key, folder): _shape(key, value, folder) for key, value in dimensions.items()}
    ranks = {shape[0] if ".lora_A." in name else shape[1] for name, shape in shapes.items()}
    if len(ranks) != 1:
        raise W2WError(f"{folder / DIMENSIONS} has matrices of ranks {sorted(ranks)}; one rank was expected.")
    layers = {name.rsplit(".lora_", 1)[0] for name in shapes}
    layout = layout_of(base.pipeline.unet, layers, ranks.pop(), alpha)
    columns, start = {}, 0
    for name, (height, width) in shapes.items():
        columns[name] = torch.arange(start, start := start + height * width).view(height, width)
    order = layout.flatten(columns)
    layout.check_width(weights.shape[1], f"{folder / WEIGHTS}")
    dataset = WeightDataset.open_or_create(out, layout, base.id, {"base": base.source, "imported": {"published": True}})
    first = len(dataset)
    for at in track(range(first, len(weights), rows), f"import {rows} at a time"):
        block = weights[at : at + rows][:, order]
        dataset.append(block.float(), [f"{i:06d}" for i in range(at, at + len(block))], None, dtype)
    return {**dataset.info(), "imported": len(dataset) - first}


def _load(path: Path, mmap: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise W2WError(f"{path} holds more than tensors and would have to run code to load; it was not loaded.") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise W2WError(f"cannot read {path}: {str(error).splitlines()[0]}. Is it a whole .pt file?") from error


def _matrix(key: Any, folder: Path) -> str:
    """A layout's matrix name for a published key, such as `base_model.model.<layer>.lora_A.identity1.weight`."""
    found = re.fullmatch(r"(?:base_model\.model\.)?(?P<layer>.+)\.(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight", str(key))
    if not found:
        raise W2WError(f"{folder / DIMENSIONS} has the key {key}; {peft.PREFIX}<layer>.lora_A.weight and lora_B.weight were expected.")
    return f"{found['layer']}.{found['factor']}.weight"


def _shape(key: str, value: Any, folder: Path) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in value[-1])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise W2WError(f"{folder / DIMENSIONS} says {value!r} of {key}; [(numbers,), (rows, columns)] was expected.") from error
    return height, width
