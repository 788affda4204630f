"""An index of a dataset's products: a few hundred numbers a row, made in one pass, that say which rows are worth reading.

Landmarks are rows spread over the dataset. With k(x) the inner products of x's products with theirs and K those among
themselves, phi(x) = W' k(x), W W' = K^-1, are the coordinates of x's orthogonal projection on what they span (Nystrom; Williams
and Seeger 2001). What is left of norm R(x) is kept as a random sketch s(x), so that <x, y> is phi(x)' phi(y) + s(x)' s(y) but
for a random error in proportion to R(x) R(y); and it surely differs from phi(x)' phi(y) by R(x) R(y) at most (Cauchy and Schwarz).
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.common.assets import TINY_FACES, located
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.common.memory import GIB
from w2wpp.common.progress import track
from w2wpp.common.storage import Address
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.weights import WeightDataset
from w2wpp.fleet.products import Products, inners, squares
from w2wpp.fleet.sketch import ProductSketch

SIZES = (256, 128, 64, 32, 16, 8)  # of sketches; half as many landmarks
WEAKEST = 1e-4  # of the strongest: directions of the landmarks below are left to the sketch, where rounding counts less
FORM = "landmarks and sketches"


@dataclass(frozen=True)
class ProductIndex:
    """Of n rows: phi [n, m], sketch [n, size], left (R) [n], norms [n, layers]; and the landmarks, weights [k, d]. float32."""

    landmarks: Tensor
    whiten: Tensor  # W [k, m]
    hidden: Tensor  # what the sketch of a row holds of phi: [m, size]
    phi: Tensor
    sketch: Tensor
    left: Tensor
    norms: Tensor

    @classmethod
    def build(cls, dataset: WeightDataset, memory: float = 2.0) -> "ProductIndex":
        """Read the dataset once. memory: GiB, half of it for the index, whose size follows from it."""
        layers, n = dataset.layout.modules, len(dataset)
        if not n:
            raise W2WError(f"{dataset.folder} has no rows.")
        room = memory * GIB / 2
        size = next((s for s in SIZES if 4 * (n * (3 * s // 2 + 1 + len(layers)) + s // 2 * dataset.d) <= room), SIZES[-1])
        step = -(-n // min(n, size // 2))
        landmarks = dataset.rows(range(0, n, step))
        whiten, hidden = cls._frame(Products.of_rows(dataset.layout, landmarks, layers), size)
        phi, sketch = torch.empty(n, whiten.shape[1]), torch.empty(n, size)
        left, norms = torch.empty(n), torch.empty(n, len(layers))
        index = cls(landmarks, whiten, hidden, phi, sketch, left, norms)
        rows = min(512, rows_within(memory / 2, dataset.d, copies=6))
        marks, sketches = Products.of_rows(dataset.layout, landmarks, layers), ProductSketch(size)
        for at in track(range(0, n, rows), "index", f"groups of {rows} adapters"):
            stop = min(n, at + rows)
            part = Products.of_rows(dataset.layout, dataset.rows(range(at, stop)), layers)
            kept = squares(part)
            norms[at:stop] = kept.sqrt()
            phi[at:stop], sketch[at:stop], left[at:stop] = index._placed(part, marks, sketches, kept.sum(1))
        return index

    @staticmethod
    def _frame(marks: Products, size: int) -> tuple[Tensor, Tensor]:
        """W, and the sketches of the directions that it makes of the landmarks."""
        gram = inners(marks, marks)
        if not torch.isfinite(gram).all():
            raise W2WError("some adapters are so large that their products are no numbers. `w2w dataset select` can leave them out.")
        values, vectors = torch.linalg.eigh(gram)
        strong = values > WEAKEST * values[-1]
        whiten = (vectors[:, strong] / values[strong].sqrt()).float()
        return whiten, whiten.T @ ProductSketch(size).of(marks)

    def _placed(self, part: Products, marks: Products, sketches: ProductSketch, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi, sketch and R of some adapters. kept: their squared norms."""
        phi = (inners(part, marks) @ self.whiten.double()).float()
        left = (kept - phi.double().square().sum(1)).clamp_min(0).sqrt().float()
        return phi, sketches.of(part) - phi @ self.hidden, left

    @classmethod
    def of(cls, dataset: WeightDataset, memory: float = 2.0) -> "ProductIndex":
        """The index that lies beside the dataset, if it is of these rows; else a new one, kept there where that can be written."""
        if isinstance(dataset.folder, Address):  # nothing is written there unasked
            return cls.build(dataset, memory)
        path = dataset.folder / "products.index"
        if path.is_file():
            with suppress(W2WError):  # of other rows, or damaged: it is made again
                return cls.load(path, dataset)
        index = cls.build(dataset, memory)
        if dataset.folder != located(TINY_FACES, "weights"):  # the package's own files stay as they are
            with suppress(W2WError):  # a dataset that cannot be written to has no index beside it
                index.save(path, dataset)
        return index

    def save(self, path: Path, dataset: WeightDataset) -> None:
        """Write the index, whole or not at all."""
        write_checked(path, dict(vars(self)), {"rows": dataset.fingerprint, "form": FORM})

    @classmethod
    def load(cls, path: Path, dataset: WeightDataset) -> "ProductIndex":
        """Read what `save` wrote. Raises W2WError if it is damaged, or not of the dataset's rows."""
        tensors, about = read_checked(path, "index")
        if (about.get("rows"), about.get("form")) != (dataset.fingerprint, FORM):
            raise W2WError(f"{path} is of other rows than {dataset.folder} has. Take it away.")
        try:
            return cls(**tensors)
        except TypeError as error:
            raise W2WError(f"{path} does not hold what an index has ({error}). Take it away.") from error

    def cosines(self, dataset: WeightDataset, query: Products, layers: list[str]) -> tuple[Tensor, Tensor]:
        """Of every row, its cosine with a query of these layers as the index tells it, and what it is at most: [n] each."""
        kept = squares(query).sum(1)
        marks = Products.of_rows(dataset.layout, self.landmarks, list(query.down))
        phi, sketch, left = self._placed(query, marks, ProductSketch(self.sketch.shape[1]), kept)
        places = [dataset.layout.modules.index(layer) for layer in layers]
        theirs = (self.norms[:, places] if len(places) < self.norms.shape[1] else self.norms).square().sum(1).sqrt()
        size = (kept.sqrt().float() * theirs).clamp_min(1e-30)
        sure, unsure = self.phi @ phi[0], self.left * left
        told = sure + (self.sketch @ sketch[0]).clamp(-unsure, unsure)
        return told / size, (sure + unsure) / size + 1e-5
