"""Adapters as products, layer by layer, and their inner products in closed form.

<B A, D C> = tr(A' B' D C) = sum of (B' D) * (A C'), element by element: r x r numbers of each layer, never [out, in].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.base.identity import same_base
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.lora_file import Lora, read_lora
from w2wpp.lora.layout import Layout


@dataclass(frozen=True)
class Products:
    """n adapters of the same layers: down [n, r, in] and up [n, out, r] of each layer, the scale in `up`. float32."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @classmethod
    def of_rows(cls, layout: Layout, rows: Tensor, layers: Sequence[str]) -> "Products":
        """Those of weights [n, d], for some of the layout's layers."""
        matrices = layout.unflatten(rows)
        down = {layer: matrices[f"{layer}.lora_A.weight"] for layer in layers}
        return cls(down, {layer: matrices[f"{layer}.lora_B.weight"] * layout.scale for layer in layers})

    @classmethod
    def of_lora(cls, lora: Lora, layers: Sequence[str]) -> "Products":
        """That of one file, at its own ranks; layers that it does not adapt are left out."""
        own = [layer for layer in layers if layer in lora.down]
        return cls({x: lora.down[x][None] for x in own}, {x: lora.up[x][None] * lora.scale[x] for x in own})


def inner(a: Products, b: Products) -> Tensor:
    """Inner products of n adapters with one: [n, layers] float64, the layers of `a` in its order; 0 where `b` has none."""
    columns = []
    for layer, down in a.down.items():
        if layer not in b.down:
            columns.append(torch.zeros(len(down), dtype=torch.float64))
            continue
        left = torch.einsum("nor,os->nrs", a.up[layer].double(), b.up[layer][0].double())
        right = torch.einsum("nri,si->nrs", down.double(), b.down[layer][0].double())
        columns.append((left * right).sum((1, 2)))
    return torch.stack(columns, 1)


def inners(a: Products, b: Products) -> Tensor:
    """Inner products of n adapters with m, summed over the layers that both have: [n, m] float64, each layer's in float32."""
    n, m = (len(next(iter(x.down.values()))) for x in (a, b))
    total = torch.zeros(n, m, dtype=torch.float64)
    for layer in (layer for layer in a.down if layer in b.down):
        left = a.up[layer].mT.flatten(0, 1) @ b.up[layer].mT.flatten(0, 1).T  # [n r, m s]
        right = a.down[layer].flatten(0, 1) @ b.down[layer].flatten(0, 1).T
        both = left.mul_(right).view(n, len(left) // n, m, -1)
        total += both.sum((1, 3)) if both.shape[1] * both.shape[3] > 1 else both[:, 0, :, 0]
    return total


def squares(a: Products) -> Tensor:
    """The squared norm of each adapter's product in each layer: [n, layers] float64."""
    columns = []
    for layer, down in a.down.items():
        up = a.up[layer].double()
        columns.append(((up.mT @ up) * (down.double() @ down.double().mT)).sum((1, 2)))
    return torch.stack(columns, 1)


def chosen_layers(layout: Layout, wanted: Sequence[str] = ()) -> list[str]:
    """The layers whose names hold one of these words; all without. Raises W2WError if there is none."""
    found = [layer for layer in layout.modules if not wanted or any(word in layer for word in wanted)]
    if not found:
        raise W2WError(f"no adapted layer has {' or '.join(wanted)} in its name; {layout.modules[0]} is one.")
    return found


def query_of(what: str, dataset: WeightDataset, base: Denoiser | None, layers: Sequence[str]) -> tuple[Products, float]:
    """The products of a LoRA file, or of a row of the dataset by its id, and the share of its squared norm in other layers.

    Raises W2WError if it is neither, or a file of another base.
    """
    if what in dataset.ids:
        return Products.of_rows(dataset.layout, dataset.rows([dataset.index_of(what)]), layers), 0.0
    if not Path(what).exists():
        raise W2WError(f"{what} is neither a file nor an id of {dataset.folder}, which has {', '.join(dataset.ids[:3])}.")
    if base is None or not same_base(base.id, dataset.base_id):
        raise W2WError(f"{dataset.folder} holds adapters of base {dataset.base_id}. Give it as --base to read {what}.")
    lora = read_lora(what, base)
    found = Products.of_lora(lora, layers)
    if not found.down:
        raise W2WError(f"{what} adapts none of the {len(layers)} layers of {dataset.folder} that are compared.")
    everything = float(squares(Products.of_lora(lora, list(lora.down))).sum())
    outside = (
        float(squares(Products.of_lora(lora, [x for x in lora.down if x not in dataset.layout.modules])).sum())
        if set(lora.down) - set(dataset.layout.modules)
        else 0.0
    )
    return found, outside / everything if everything else 0.0
