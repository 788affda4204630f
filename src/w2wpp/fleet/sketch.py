"""Random sketches of products: a few hundred numbers whose inner products are those of B A, but for a random error.

TensorSketch (Pham and Pagh 2013, algorithm 2): the count sketch of an outer product b a' is the circular convolution of count
sketches of b and of a, so that the product [out, in] is never formed. The sketches of all layers are added: <s, s'> has the
mean <B A, D C>, summed over the layers, and an error of some |B A| |D C| / sqrt(size).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from w2wpp.common.seeds import generator
from w2wpp.fleet.products import Products


@dataclass(frozen=True)
class ProductSketch:
    """Sketches of `size` numbers. Their hashes follow from `size` and each layer's name and width alone."""

    size: int

    @cached_property
    def _hashes(self) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        return {}

    def of(self, products: Products) -> Tensor:
        """The sketches of n adapters, [n, size] float32."""
        some = next(iter(products.down.values()))
        total = torch.zeros(len(some), self.size // 2 + 1, dtype=torch.complex64)
        for layer, down in products.down.items():
            a = torch.fft.rfft(self._counted(down, f"{layer} A"))
            b = torch.fft.rfft(self._counted(products.up[layer].mT, f"{layer} B"))
            total += (a * b).sum(1)
        return torch.fft.irfft(total, self.size)

    def _counted(self, vectors: Tensor, side: str) -> Tensor:
        """The count sketch of vectors [n, r, width]: signs and buckets at random, the buckets filled evenly. [n, r, size]."""
        width = vectors.shape[-1]
        if (side, width) not in self._hashes:
            draw = generator(0, f"sketch {side} {width}")
            signs = torch.randint(0, 2, (width,), generator=draw).float() * 2 - 1
            padded = -(-width // self.size) * self.size
            places = torch.randperm(padded, generator=draw)
            self._hashes[side, width] = torch.cat([signs, torch.zeros(padded - width)])[places], places.clamp_max(width - 1)
        signs, places = self._hashes[side, width]
        return (vectors[..., places] * signs).unflatten(-1, (-1, self.size)).sum(-2)
