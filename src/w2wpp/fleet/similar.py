"""The nearest rows to an adapter, and groups of rows that are equal or nearly so, by the cosine of their products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from w2wpp.common.memory import GIB
from w2wpp.common.progress import track
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.weights import WeightDataset
from w2wpp.fleet.index import ProductIndex
from w2wpp.fleet.products import Products, chosen_layers, inner, squares

EQUAL = 1 - 1e-5  # cosine from which two products are the same but for rounding


RERANKED = 384  # rows that are read because the index takes them for the nearest


@dataclass(frozen=True)
class Neighbours:
    """Positions and cosines of the nearest rows, nearest first, and how many rows were read."""

    rows: list[int]
    cosines: list[float]
    read: int
    proved: bool = True  # whether no other row can be among them


def nearest_rows(
    dataset: WeightDataset,
    query: Products,
    k: int,
    *,
    words: Sequence[str] = (),
    index: ProductIndex | None = None,
    memory: float = 2.0,
    most: int = RERANKED,
) -> Neighbours:
    """The k rows with the largest cosine to a query's products.

    words: only layers whose names hold one of them. Without an index every row is read. With one, the `most` rows that it
    takes for the nearest are read and compared exactly; `proved` says whether it is certain that no other row is nearer.
    """
    layers = chosen_layers(dataset.layout, words)
    n, size = len(dataset), float(squares(query).sum()) ** 0.5
    k = min(k, n)
    first, proved = list(range(n)), True
    if index is not None and n > max(k, most):
        told, ceiling = index.cosines(dataset, query, layers)
        first = told.topk(max(k, most)).indices.sort().values.tolist()
        ceiling[first] = -1
    step = max(1, min(256, rows_within(memory, dataset.d, copies=6)))
    exact = torch.cat([cosines(dataset, first[at : at + step], query, layers, size) for at in range(0, len(first), step)])
    best = exact.topk(k)
    if len(first) < n:
        proved = float(ceiling.max()) <= float(best.values[-1])
    return Neighbours([first[i] for i in best.indices.tolist()], best.values.tolist(), len(first), proved)


def cosines(dataset: WeightDataset, places: Sequence[int], query: Products, layers: Sequence[str], size: float) -> torch.Tensor:
    """The cosines of some rows with a query in these layers, [k] float64."""
    part = Products.of_rows(dataset.layout, dataset.rows(list(places)), layers)
    return inner(part, query).sum(1) / (squares(part).sum(1).sqrt() * size).clamp_min(1e-30)


def by_layer(dataset: WeightDataset, places: Sequence[int], query: Products, layers: Sequence[str]) -> torch.Tensor:
    """The cosines of some rows with a query in each layer by itself: [k, layers] float64."""
    part = Products.of_rows(dataset.layout, dataset.rows(list(places)), layers)
    own = torch.zeros(len(layers), dtype=torch.float64)
    own[[list(layers).index(layer) for layer in query.down]] = squares(query)[0]
    return inner(part, query) / (squares(part) * own).sqrt().clamp_min(1e-30)


def duplicates(dataset: WeightDataset, threshold: float, index: ProductIndex, memory: float = 2.0) -> list[dict[str, Any]]:
    """Groups of rows whose products are equal (cosine above 1 - 1e-5) or nearly so (above `threshold`), largest first.

    Pairs are found by the index and then compared exactly. A group is what hangs together by such pairs.
    """
    n, layers = len(dataset), list(dataset.layout.modules)
    size = index.norms.square().sum(1).sqrt().clamp_min(1e-30)
    parents = list(range(n))
    closest: dict[tuple[int, int], float] = {}
    step = max(1, min(1024, int(memory * GIB / 4 / (4 * (n + index.phi.shape[1])))))
    for at in track(range(0, n, step), "compare", f"groups of {step} adapters"):
        stop = min(n, at + step)
        most = index.phi[at:stop] @ index.phi[at:].T + index.left[at:stop, None] * index.left[None, at:]
        most /= size[at:stop, None] * size[None, at:]
        pairs = (most.triu(1) >= threshold - 1e-5).nonzero() + at
        for i in pairs[:, 0].unique().tolist():
            others = pairs[pairs[:, 0] == i, 1].tolist()
            query = Products.of_rows(dataset.layout, dataset.rows([i]), layers)
            for part in range(0, len(others), 256):
                some = others[part : part + 256]
                for j, cosine in zip(some, cosines(dataset, some, query, layers, float(size[i])).tolist(), strict=True):
                    if cosine >= threshold:
                        closest[i, j] = cosine
                        parents[_root(parents, j)] = _root(parents, i)
    groups: dict[int, list[int]] = {}
    for i in range(n):
        groups.setdefault(_root(parents, i), []).append(i)
    least_of: dict[int, float] = {}
    for (i, _), cosine in closest.items():
        least_of[_root(parents, i)] = min(cosine, least_of.get(_root(parents, i), cosine))
    found = []
    for members in sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group[0])):
        least = least_of[_root(parents, members[0])]
        kind = "equal" if least >= EQUAL else "nearly equal"
        found.append({"ids": [dataset.ids[i] for i in members], "kind": kind, "least_cosine": least})
    return found


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = i = parents[parents[i]]
    return i
