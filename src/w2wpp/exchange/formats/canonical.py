"""Bring LoRAs to one rank and one gauge, so that equal products have equal vectors.

A product B A is the same for B G and G^-1 A, whatever the invertible G. Here G is fixed by the singular value
decomposition: B = U sqrt(S), A = sqrt(S) V', singular values falling, and of each row of A the number that is largest
in size is positive. (With two equal singular values a rotation stays free; trained adapters have none.)
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.exchange.formats.lora_file import Lora
from w2wpp.lora.layout import Layout

AT_ONCE = 2**19  # numbers of factors that are decomposed at a time, so that they stay in the processor's cache
DEPENDENT = 1e-3  # of the largest on a triangle's diagonal


def to_weights(lora: Lora, layout: Layout) -> tuple[Tensor, float]:
    """One adapter as a row of `layout`: weights [d] float32, and the relative error of its products. See `to_rows`."""
    rows, errors = to_rows([lora], layout)
    return rows[0], errors[0]


def to_rows(loras: Sequence[Lora], layout: Layout) -> tuple[Tensor, list[float]]:
    """Adapters as rows of `layout`: weights [n, d] float32, and the relative error of each one's products.

    The products of all layers are refactored to the layout's rank and scale; the error is the Frobenius norm of what a
    smaller rank leaves out over that of everything, 0 where the rank suffices. A layer that an adapter does not adapt
    gets zeros, which is what it means. Layers of one shape are decomposed together.
    """
    rows = torch.zeros(len(loras), layout.d)
    everything, left_out = [lora.left_out for lora in loras], [lora.left_out for lora in loras]
    alike: dict[tuple[int, int, int], list[tuple[str, int]]] = defaultdict(list)
    for i, lora in enumerate(loras):
        for layer, down in lora.down.items():
            alike[*down.shape, lora.up[layer].shape[0]].append((layer, i))
    for (r, inputs, outputs), places in alike.items():
        places.sort()  # a layer's rows of many adapters are written together
        step = max(1, AT_ONCE // (r * (inputs + outputs)))
        for at in range(0, len(places), step):
            part = places[at : at + step]
            down = torch.stack([loras[i].down[layer] for layer, i in part])
            up = torch.stack([loras[i].up[layer] for layer, i in part])
            scales = torch.tensor([loras[i].scale[layer] / layout.scale for layer, i in part], dtype=torch.float64)
            a, b, values = canonical(down, up, layout.rank, scales)
            squares = (values * layout.scale).square()
            for layer, first, i, count in _stretches(part):
                rows[i : i + count, layout.slices[f"{layer}.lora_A.weight"]] = a[first : first + count].flatten(1)
                rows[i : i + count, layout.slices[f"{layer}.lora_B.weight"]] = b[first : first + count].flatten(1)
            for (_, i), whole, left in zip(part, squares.sum(1).tolist(), squares[:, layout.rank :].sum(1).tolist(), strict=True):
                everything[i] += whole
                left_out[i] += left
    return rows, [(left / whole) ** 0.5 if whole else 0.0 for left, whole in zip(left_out, everything, strict=True)]


def _stretches(places: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int, int, int]]:
    """Stretches of one layer of adapters that follow each other: the layer, where it begins, the first adapter, how many."""
    first = 0
    for k in range(1, len(places) + 1):
        layer, i = places[first]
        if k == len(places) or places[k] != (layer, i + k - first):
            yield layer, first, i, k - first
            first = k


def canonical(down: Tensor, up: Tensor, rank: int, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Factors [..., r, in] and [..., out, r] of any rank -> the canonical ones of rank `rank` of scale up down, and all singular values.

    The product [out, in] is never formed, only r x r numbers. Computed in float64.
    """
    down, up = down.double(), up.double()
    left, right = _split(up.mT), _split(down)
    core = left.mix.mT @ right.mix
    u, values, v = torch.linalg.svd(core * (scale[..., None, None] if isinstance(scale, Tensor) else scale), full_matrices=False)
    kept = min(rank, values.shape[-1])
    root = values[..., :kept].sqrt()
    a = right.times(root[..., None] * v[..., :kept, :])
    b = left.times(root[..., None] * u[..., :kept].mT)
    signs = torch.where(a.amax(-1, keepdim=True) < -a.amin(-1, keepdim=True), -1.0, 1.0)
    a, b = (a * signs).float(), (b * signs).float().mT
    if kept < rank:
        a = torch.nn.functional.pad(a, (0, 0, 0, rank - kept))
        b = torch.nn.functional.pad(b, (0, rank - kept))
    return a, b, values


@dataclass(frozen=True)
class _Split:
    """Rows [..., r, n] as mix [..., r, k] times orthonormal ones [..., k, n], which are made only where they have to be."""

    rows: Tensor
    mix: Tensor
    orthonormal: Tensor | None

    def times(self, factor: Tensor) -> Tensor:
        """factor [..., j, k] times the orthonormal rows: [..., j, n]."""
        if self.orthonormal is not None:
            return factor @ self.orthonormal
        return torch.linalg.solve_triangular(self.mix, factor, upper=False, left=False) @ self.rows


def _split(rows: Tensor) -> _Split:
    """By Cholesky's decomposition of the Gram matrix, which reads the rows once; by QR where they are nearly dependent, as
    the Gram matrix has the square of their condition."""
    if rows.shape[-2] <= rows.shape[-1]:
        mix, failed = torch.linalg.cholesky_ex(rows @ rows.mT)
        diagonal = mix.diagonal(dim1=-2, dim2=-1)
        if not failed.any() and bool((diagonal.amin(-1) > DEPENDENT * diagonal.amax(-1)).all()):
            return _Split(rows, mix, None)
    q, r = torch.linalg.qr(rows.mT)
    return _Split(rows, r.mT, q.mT)
