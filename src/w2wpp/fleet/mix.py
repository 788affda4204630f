"""One adapter out of several, and adapters of a smaller rank: products are mixed, and taken apart again with their error."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.canonical import canonical, to_rows
from w2wpp.exchange.formats.lora_file import Lora
from w2wpp.lora.layout import Layout

Method = Literal["weighted", "spherical", "ties", "dare"]


def mixed(loras: Sequence[Lora], weights: Sequence[float], method: Method = "weighted", density: float = 0.5, seed: int = 0) -> Lora:
    """The mix of some adapters of one base, exactly; `to_rows` brings it to a rank.

    weighted: the sum of weight times product. spherical: of two, along the great circle between their products, whose
    place is the second weight over their sum (Shoemake 1985). ties (Yadav et al. 2023) and dare (Yu et al. 2024): by peft's own
    functions, on the products; density: the share of numbers that is kept.
    Raises W2WError for another number of weights than adapters, or more than two that are to be mixed spherically.
    """
    if len(weights) != len(loras) or len(loras) < 2:
        raise W2WError(f"{len(loras)} adapters and {len(weights)} weights; two or more, and as many weights, were expected.")
    if method == "spherical":
        weights = spherical_weights(loras, weights)
    layers = sorted({layer for lora in loras for layer in lora.down})
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for layer in layers:
        own = [(lora, weight) for lora, weight in zip(loras, weights, strict=True) if layer in lora.down]
        if method in ("weighted", "spherical"):
            down[layer] = torch.cat([lora.down[layer] for lora, _ in own])
            up[layer] = torch.cat([lora.up[layer] * lora.scale[layer] * weight for lora, weight in own], 1)
        else:
            deltas = [lora.up[layer] @ lora.down[layer] * lora.scale[layer] for lora, _ in own]
            whole = _merged(deltas, [weight for _, weight in own], method, density, layer, seed)
            eye = torch.eye(min(whole.shape))
            down[layer], up[layer] = (eye, whole) if whole.shape[0] >= whole.shape[1] else (whole, eye)
    return Lora("a mix", down, up, dict.fromkeys(layers, 1.0))


def _merged(deltas: list[Tensor], weights: list[float], method: Method, density: float, layer: str, seed: int) -> Tensor:
    """One layer's differences [out, in] by peft's TIES or DARE."""
    theirs = import_module("peft.utils.merge_utils")
    if method == "ties":
        return theirs.ties(deltas, torch.tensor(weights), density)
    with torch.random.fork_rng(devices=[]):  # peft drops numbers by torch's global generator
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(seed, "dare", layer))))
        return theirs.dare_linear(deltas, torch.tensor(weights), density)


def spherical_weights(loras: Sequence[Lora], weights: Sequence[float]) -> list[float]:
    """What the two products are multiplied with to stand between them on the great circle."""
    if len(loras) != 2:
        raise W2WError(f"{len(loras)} adapters cannot be mixed spherically; two were expected. Use --method weighted.")
    first, second = loras
    t = weights[1] / sum(weights) if sum(weights) else 0.5
    squares = [_inner(lora, lora) for lora in loras]
    cosine = max(-1.0, min(1.0, _inner(first, second) / max(1e-30, (squares[0] * squares[1]) ** 0.5)))
    angle = torch.acos(torch.tensor(cosine, dtype=torch.float64))
    if float(angle.sin()) < 1e-6:  # the same direction, or opposite ones
        return [1 - t, t]
    return [float(((1 - t) * angle).sin() / angle.sin()), float((t * angle).sin() / angle.sin())]


def _inner(a: Lora, b: Lora) -> float:
    total = 0.0
    for layer in a.down.keys() & b.down.keys():
        core = (a.up[layer].double().T @ b.up[layer].double()) * (a.down[layer].double() @ b.down[layer].double().T)
        total += float(core.sum()) * a.scale[layer] * b.scale[layer]
    return total


def as_lora(layout: Layout, weights: Tensor, source: str) -> Lora:
    """A row of a dataset, weights [d], as the products that it stands for."""
    matrices = layout.unflatten(weights)
    down = {layer: matrices[f"{layer}.lora_A.weight"] for layer in layout.modules}
    return Lora(source, down, {x: matrices[f"{x}.lora_B.weight"] for x in down}, dict.fromkeys(down, layout.scale))


def rank_that_keeps(loras: Sequence[Lora], keep: float) -> int:
    """The smallest rank at which every one of these adapters keeps this share of the squared norm of its products."""
    if not 0 < keep <= 1:
        raise W2WError(f"--keep {keep:g} is no share; a number above 0, up to 1, was expected.")
    needed = 1
    for lora in loras:
        spectra = []
        for layer, down in lora.down.items():
            spectra.append(canonical(down, lora.up[layer], 1, lora.scale[layer])[2].square())
        longest = max(len(values) for values in spectra)
        total = torch.stack([torch.nn.functional.pad(values, (0, longest - len(values))) for values in spectra]).sum(0)
        kept = total.cumsum(0) / total.sum().clamp_min(1e-300)
        needed = max(needed, int((kept < keep - 1e-9).sum()) + 1)
    return needed


def resized_layout(layout: Layout, rank: int) -> Layout:
    """The same layers at another rank, scale and all else kept."""
    shapes = [(rank, m.shape[1]) if ".lora_A." in m.name else (m.shape[0], rank) for m in layout.matrices]
    matrices = tuple(type(m)(m.name, shape, m.kernel) for m, shape in zip(layout.matrices, shapes, strict=True))
    return Layout(matrices, rank, layout.scale * rank, layout.targets)


def resize_dataset(dataset: WeightDataset, out: str, rank: int | None, keep: float | None, memory: float = 2.0) -> dict[str, object]:
    """Copy a dataset at another rank: that given, or the smallest that keeps a share of every row; returns its info and errors.

    An interrupted copy resumes. Raises W2WError for a dataset of no rows, and if `out` holds other rows, or rows of another change
    of rank.
    """
    if not len(dataset):
        raise W2WError(f"{dataset.folder} has no rows; one or more were expected.")
    step = min(256, rows_within(memory, dataset.d, copies=8))
    groups = [range(at, min(len(dataset), at + step)) for at in range(0, len(dataset), step)]

    def loras(places: range) -> list[Lora]:
        return [as_lora(dataset.layout, row, dataset.ids[i]) for i, row in zip(places, dataset.rows(places), strict=True)]

    wanted = rank or max(rank_that_keeps(loras(places), keep or 1.0) for places in groups)
    layout = resized_layout(dataset.layout, wanted)
    meta = {**dataset.meta, "resized": {"from": dataset.layout.rank, "to": wanted}}
    made = WeightDataset.load_or_create(out, layout, dataset.base_id, meta)
    if made.ids != dataset.ids[: len(made)]:
        raise W2WError(f"{out} holds {len(made)} rows that are not the first of {dataset.folder}. Choose another --out.")
    errors = {name: float(labels["rank_error"]) for name, labels in zip(made.ids, made.labels, strict=True)}
    for places in [range(at, min(len(dataset), at + step)) for at in range(len(made), len(dataset), step)]:
        rows, lost = to_rows(loras(places), layout)
        ids: Mapping[int, str] = {i: dataset.ids[i] for i in places}
        labels = [{**dataset.labels[i], "rank_error": error} for i, error in zip(places, lost, strict=True)]
        made.append(rows, list(ids.values()), labels)
        errors |= dict(zip(ids.values(), lost, strict=True))
    worst = max(errors, key=lambda name: errors[name])
    return {**made.info(), "worst_rank_error": {"id": worst, "error": errors[worst]}}
