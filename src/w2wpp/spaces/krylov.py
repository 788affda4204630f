"""Principal components of a table that need not fit into memory, from few products with it.

Block Krylov iteration (Musco and Musco 2015, algorithm 2) on X'X with full reorthogonalisation, and a Rayleigh-Ritz step
after every pass that says how much variance is kept. Products are taken in bfloat16 and summed in float32 where the
processor does so. That tilts the span a little; the variances within it are then found in float32.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.memory import GIB
from w2wpp.common.seeds import generator
from w2wpp.spaces.streaming import CHUNK, Of, Rows, block_rows

MOST_PASSES = 60  # beyond those that fill the basis
SQUARE = 80  # bytes, times the basis' size squared, for Gram matrices and what their decomposition takes


def krylov_components(
    x: Rows, varying: Tensor, m: int, *, memory: float = 2.0, tolerance: float = 2e-4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The m largest squared singular values [m] float64, falling, and right singular vectors [m, d] float32, of x [n, d].

    varying: [d] bool, which columns of x are not zero. memory: GiB in all; less of it means smaller blocks and more passes.
    tolerance: stop when what further passes would add to the sum of the values is likely less than this share of it.
    Raises W2WError if the vectors do not fit into the memory.
    """
    n, d = x.shape
    vector = x.dtype.itemsize * (n + d)  # bytes of a vector of the basis and its image
    # Small blocks need fewer products in all, but more passes; they also take less memory.
    for size in [*range(32 * min(8, -(-m // 128)), 0, -32), 16, 8]:
        work = 32 * size * d + 8 * m * d  # of a block while it is made orthogonal; of the components
        # The first block is random: it need not lie in the span of x, what follows from it does.
        limit = min(n + size, int(varying.sum()))
        least, most = min(limit, m + 2 * size), min(limit, 4 * m + 4 * size)
        room = max(0.0, 0.8 * memory * GIB - work)
        fits = int((math.sqrt(vector**2 + 4 * SQUARE * room) - vector) / (2 * SQUARE))
        if fits >= least:
            break
    else:
        needed = (work + vector * least + SQUARE * least**2) / 0.8 / GIB
        raise W2WError(
            f"{m} components of {d:,} numbers take {needed:.1f} GiB while fitting; --memory is {memory:g}. Raise it, or lower --m."
        )
    most = min(most, fits)
    basis = _Basis(n, d, most, x.dtype)
    passes = _passes(x, memory - (work + vector * most + SQUARE * most**2) / GIB)
    fresh = torch.randn(d, min(size, limit), generator=generator(seed, "principal components")).mul_(varying[:, None])
    fresh = torch.linalg.qr(fresh)[0].T
    kept: list[float] = []
    for _ in range(-(-m // size) + MOST_PASSES):
        product = basis.extend(fresh, passes)
        if basis.size >= m:
            kept.append(float(basis.ritz_values(m).sum()))
            if basis.size == limit or _likely_rest(kept) <= tolerance * kept[-1]:
                break
        fresh = basis.orthogonal(product)[: limit - basis.size]
        if basis.size + len(fresh) > basis.most:
            basis.compress(m + size)
    return _refined(basis.directions(m), passes)


def _refined(directions: Tensor, passes: "Passes") -> tuple[Tensor, Tensor]:
    """The squared singular values and vectors of x within the span of orthonormal directions [m, d], in float32; one pass."""
    inner = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for of_block in passes(_inner_product, directions):
        inner += of_block
    values, mix = torch.linalg.eigh(inner)
    return values.flip(0).clamp_min(0), mix.flip(1).T.float() @ directions


def _likely_rest(kept: list[float]) -> float:
    """What further passes would add, if each adds the same share of what the one before it did as the last one has."""
    if len(kept) < 3:
        return float("inf")
    before, last = kept[-2] - kept[-3], kept[-1] - kept[-2]
    if last <= 0:
        return 0.0
    return last * last / (before - last) if last < before else float("inf")


def _inner_product(block: Tensor, directions: Tensor) -> Tensor:
    """[m, m] float64: how the rows' images under directions [m, d] multiply."""
    inner = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for part in block.split(min(256, len(directions))):
        images = part.float() @ directions.T
        inner += images.T @ images
    return inner


def _images(block: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' images x v [k, rows] under vectors [k, d], and what the rows give of x'x of them [k, d]."""
    images = vectors @ block.T
    return images, images @ block


Passes = Callable[..., Iterator[Any]]  # a function of a block, and what it takes beside the block -> its results, in order


def _passes(x: Rows, memory: float) -> Passes:
    """How to go through x again and again: held in memory where it fits, read anew each time otherwise.

    Workers read it anew each time, in the same blocks.
    """
    n, d = x.shape
    rows = block_rows(d, memory, 2 * (4 + x.dtype.itemsize))  # the last block is still in use while the next one is read
    part = min(rows, 1024)
    fits = n * d * x.dtype.itemsize + 4 * part * d < memory * GIB
    if fits and not x.far:
        held = list(x.split(part))
        return lambda of, *shared: (of(block, *shared) for block in held)

    def read(of: Of, *shared: Any) -> Iterator[Any]:
        return x.mapped(of, part if fits else rows, 0, *shared)

    return read


class _Basis:
    """Vectors [size, d], nearly orthonormal, and their images x v [size, n], with the Gram matrices of both."""

    def __init__(self, n: int, d: int, most: int, dtype: torch.dtype) -> None:
        self.most, self.size = most, 0
        self.vectors, self.images = torch.empty(most, d, dtype=dtype), torch.empty(most, n, dtype=dtype)
        # The Gram matrices of the vectors and of the images. Torch decomposes them: another library's threads would get in its way.
        self.inner = torch.zeros(most, most, dtype=torch.float64)
        self.outer = torch.zeros(most, most, dtype=torch.float64)

    def extend(self, fresh: Tensor, passes: Passes) -> Tensor:
        """Add vectors [k, d]; returns x'x of them, [k, d] float32. One pass over x."""
        new = slice(self.size, self.size + len(fresh))
        self.vectors[new] = fresh
        product, at = torch.zeros(fresh.shape), 0
        for images, part in passes(_images, self.vectors[new].clone()):  # a product depends, by a bit, on where its numbers lie
            self.images[new, at : at + images.shape[1]] = images
            product += part
            at += images.shape[1]
        self.size = new.stop
        self._measure(new)
        return product

    def orthogonal(self, vectors: Tensor) -> Tensor:
        """An orthonormal basis [k, d] of what the vectors [k, d] add to the span of this one; overwrites them."""
        for _ in range(2):  # once is not enough where hardly anything is added
            for part in self.vectors[: self.size].split(len(vectors)):
                wide = part.float()
                vectors.addmm_(vectors @ wide.T, wide, alpha=-1)
            vectors = torch.linalg.qr(vectors.T)[0].T
        return vectors

    def ritz_values(self, m: int) -> Tensor:
        """The m largest squared singular values of x within the span, falling, float64."""
        values: Tensor = torch.linalg.eigvalsh(self._reduced()[0])
        return values.flip(0)[:m].clamp_min(0)

    def directions(self, m: int) -> Tensor:
        """The right singular vectors of these values, [m, d] float32."""
        return self._mixed(self.vectors, self._mix(m))

    def compress(self, m: int) -> None:
        """Keep the Ritz vectors of the m largest values only (a thick restart, Wu and Simon 2000)."""
        mix = self._mix(m)
        for tensor in (self.vectors, self.images):
            self._mixed(tensor, mix, tensor)
        self.size = len(mix)
        self._measure(slice(0, self.size))

    def _reduced(self) -> tuple[Tensor, Tensor]:
        """The images' Gram matrix in an orthonormal basis of the span, and the vectors' lower Cholesky factor."""
        factor = torch.linalg.cholesky(self.inner[: self.size, : self.size])
        half = torch.linalg.solve_triangular(factor, self.outer[: self.size, : self.size], upper=False)
        whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
        return (whole + whole.T) / 2, factor

    def _mix(self, m: int) -> Tensor:
        """How to mix the vectors into the Ritz vectors of the m largest values, [m, size] float32."""
        whole, factor = self._reduced()
        vectors = torch.linalg.eigh(whole)[1].flip(1)[:, :m]
        return torch.linalg.solve_triangular(factor.T, vectors, upper=True).T.float()

    def _mixed(self, tensor: Tensor, mix: Tensor, out: Tensor | None = None) -> Tensor:
        """mix [m, size] times the first rows of a tensor, float32 unless told where to."""
        out = torch.empty(len(mix), tensor.shape[1]) if out is None else out
        for at in self._columns(tensor):
            out[: len(mix), at] = mix @ tensor[: self.size, at].float()
        return out

    def _measure(self, new: slice) -> None:
        """Fill in the Gram matrices of these vectors with all."""
        for tensor, gram in ((self.vectors, self.inner), (self.images, self.outer)):
            found = torch.zeros(new.stop - new.start, self.size, dtype=torch.float64)
            for at in self._columns(tensor):
                wide = tensor[: self.size, at].float()
                found += wide[new] @ wide.T
            gram[new, : self.size], gram[: self.size, new] = found, found.T

    def _columns(self, tensor: Tensor) -> list[slice]:
        """Slices of columns whose copy in float32 is small."""
        width = max(256, 2 * CHUNK // max(1, self.size))
        return [slice(at, at + width) for at in range(0, tensor.shape[1], width)]
