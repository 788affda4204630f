"""From other people's LoRA files to a weight dataset: one rank, one scale, one gauge."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2wpp.alignment import read_labels
from w2wpp.denoiser import Denoiser
from w2wpp.errors import W2WError
from w2wpp.formats.gauge import to_weights
from w2wpp.formats.lora_file import layers_of, list_loras, read_lora
from w2wpp.layout import Layout
from w2wpp.progress import track
from w2wpp.shards import rows_within
from w2wpp.weights import WeightDataset


def import_loras(
    base: Denoiser,
    source: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    drop_text_encoder: bool = False,
    labels: str | Path | None = None,
    memory: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Import every LoRA under `source` as rows of the dataset `out`; returns the dataset's info and the errors of a smaller rank.

    rank: of the rows; the largest among the files unless given. alpha: of the rows; the rank (scale 1) unless given.
    labels: a csv whose column `file` holds paths relative to `source`. memory: GiB that rows may take at a time.
    The files are all checked before the first row is written; those already in `out` are left alone.
    Raises W2WError at the first file that is no whole LoRA of this base.
    """
    source, unet = Path(source), base.module
    files = list_loras(source)
    ids = {file: file.relative_to(source).with_suffix("").as_posix() if file != source else file.stem for file in files}
    known = read_labels(labels) if labels else {}
    layers: set[str] = set()
    largest = 1
    for file in track(files, "check"):
        lora = read_lora(file, unet, drop_text_encoder=drop_text_encoder)
        layers.update(layers_of([lora]))
        largest = max(largest, lora.rank)
    rank = rank or largest
    layout = layout_of(unet, layers, rank, alpha or float(rank))
    dataset = WeightDataset.open_or_create(out, layout, base.id, {"base": base.source, "imported": {"rank": rank, "gauge": "svd"}})
    have, errors = set(dataset.ids), {}
    todo = [file for file in files if ids[file] not in have]
    rows = min(256, rows_within(memory, layout.d))
    for group in track([todo[i : i + rows] for i in range(0, len(todo), rows)], f"import {rows} at a time"):
        weights = []
        for file in group:
            row, errors[ids[file]] = to_weights(read_lora(file, unet, drop_text_encoder=drop_text_encoder), layout)
            weights.append(row)
        told = [{**known.get(file.relative_to(source).as_posix(), {}), "rank_error": errors[ids[file]]} for file in group]
        dataset.append(torch.stack(weights), [ids[file] for file in group], told, dtype)
    worst = max(errors, key=lambda name: errors[name]) if errors else None
    return {**dataset.info(), "imported": len(todo), "worst_rank_error": {"id": worst, "error": errors[worst]} if worst else None}


def layout_of(unet: nn.Module, layers: set[str], rank: int, alpha: float) -> Layout:
    """The layout that adapts exactly these layers: named by their last words where that says it all, else in full.

    Raises W2WError if one is not a linear layer of the UNet.
    """
    for words in (1, 2, None):  # to_k; attn2.to_k; the whole name
        targets = tuple(sorted({_ending(layer, words) for layer in layers}))
        layout = Layout.of(unet, rank=rank, alpha=alpha, targets=targets)
        if set(layout.modules) == layers:
            return layout
    raise W2WError(f"layer {min(layers - set(layout.modules))} is not a linear layer of this base. Give the adapters' --base.")


def _ending(layer: str, words: int | None) -> str:
    """The last words of a layer's name, all of it for None. A number goes with its word: peft would find a plain `2` anywhere."""
    return layer if words is None else ".".join(re.findall(r"[^.]+(?:\.\d+)*", layer)[-words:])
