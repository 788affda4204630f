"""From other people's LoRA files to a weight dataset: one rank, one scale, one gauge."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2wpp.alignment import read_labels
from w2wpp.denoiser import Denoiser
from w2wpp.errors import W2WError
from w2wpp.formats.gauge import to_weights
from w2wpp.formats.lora_file import layers_of, list_loras, pickles, read_lora
from w2wpp.layout import Layout
from w2wpp.progress import track
from w2wpp.shards import rows_within
from w2wpp.weights import WeightDataset

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"  # what `save_lora_weights` calls every file


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

    rank: of the rows; that of the rows in `out`, or the largest among the files, unless given. alpha: likewise; the rank
    (scale 1) for a new dataset. labels: a csv whose column `file` holds paths below `source`. memory: GiB that rows
    may take at a time. The files are all checked before the first row is written; those already in `out` are left alone.
    Raises W2WError at the first file that is no whole LoRA of this base, or a label of none of them.
    """
    source, out, unet = Path(source), Path(out), base.module
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise W2WError(f"{out} lies in {source}, whose files are to be imported. Choose another --out.")
    files = list_loras(source)
    names = {file: file.name if file == source else file.relative_to(source).as_posix() for file in files}
    ids = {file: _id(file, source) for file in files}
    counts = Counter(ids.values())
    if twice := [file for file in files if counts[ids[file]] > 1]:
        raise W2WError(f"{' and '.join(names[file] for file in twice[:2])} would both be called {ids[twice[0]]}. Rename one.")
    known = read_labels(labels) if labels else {}
    if strangers := sorted(known.keys() - set(names.values())):
        raise W2WError(f"{labels} names {strangers[0]}, which is no LoRA below {source}; {names[files[0]]} is one.")
    layers: set[str] = set()
    largest = 1
    for file in track(files, "check"):
        lora = read_lora(file, unet, drop_text_encoder=drop_text_encoder)
        layers.update(layers_of([lora]))
        largest = max(largest, lora.rank)
    layout = _of_rows(out, layers, rank, alpha) or layout_of(unet, layers, rank or largest, alpha or float(rank or largest))
    rank = layout.rank
    dataset = WeightDataset.open_or_create(out, layout, base.id, {"base": base.source, "imported": {"rank": rank, "gauge": "svd"}})
    have, errors = set(dataset.ids), {}
    todo = [file for file in files if ids[file] not in have]
    rows = min(256, rows_within(memory, layout.d))
    for group in track([todo[i : i + rows] for i in range(0, len(todo), rows)], f"import {rows} at a time"):
        weights = []
        for file in group:
            row, errors[ids[file]] = to_weights(read_lora(file, unet, drop_text_encoder=drop_text_encoder), layout)
            weights.append(row)
        told = [{**known.get(names[file], {}), "rank_error": errors[ids[file]]} for file in group]
        dataset.append(torch.stack(weights), [ids[file] for file in group], told, dtype)
    worst = max(errors, key=lambda name: errors[name]) if errors else None
    left = [file.relative_to(source).as_posix() for file in pickles(source)]
    done = {"imported": len(todo), "already_there": len(files) - len(todo), "pickles_left_out": left}
    return {**dataset.info(), **done, "worst_rank_error": {"id": worst, "error": errors[worst]} if worst else None}


def _id(file: Path, source: Path) -> str:
    """What a LoRA's row is called: its path below the source; the folder's where the file has diffusers' own name."""
    named = file.parent if file.name == DIFFUSERS_NAME else file.with_suffix("") if file.is_file() else file
    return named.name if named == source or file == source else named.relative_to(source).as_posix()


def _of_rows(out: Path, layers: set[str], rank: int | None, alpha: float | None) -> Layout | None:
    """The layout of the rows that `out` holds already, or None. Raises W2WError if rows of these layers, rank, alpha do not fit it."""
    rows = WeightDataset.open(out) if (out / "dataset.json").exists() else None
    if rows is None or not rows.ids:
        return None
    layout = rows.layout
    if strangers := sorted(layers - set(layout.modules)):
        raise W2WError(f"{strangers[0]} is adapted here, and not in {out}. Import all of them together, into a new folder.")
    if (rank or layout.rank, alpha or layout.alpha) != (layout.rank, layout.alpha):
        asked = f"rank {rank or layout.rank}, alpha {alpha or layout.alpha:g}"
        raise W2WError(
            f"{out} holds rows of rank {layout.rank}, alpha {layout.alpha:g}, not {asked}. Leave them out, or choose another --out."
        )
    return layout


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
