"""Read a LoRA from the files people have: peft folders, diffusers files (four key styles), kohya's, LyCORIS', the first of all.

First a `LoraPlan`, from headers alone. Then a `Lora`: for each adapted layer two factors and the scale of their product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats import products
from w2wpp.exchange.formats.lora_plan import MOST, LoraPlan, Piece, plain_name, plan_lora
from w2wpp.lora.layout import sides_of


@dataclass(frozen=True)
class Lora:
    """One adapter, layer by layer: W x + scale * up @ down @ x. Factors are float32, [out, r] and [r, in]."""

    source: str
    down: dict[str, Tensor]  # by the dotted name of the adapted layer
    up: dict[str, Tensor]
    scale: dict[str, float]
    left_out: float = 0.0  # the squared norm of what the file's products have beyond these

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(factor.shape[0] for factor in self.down.values())


def read_lora(path: str | Path, base: Denoiser | nn.Module, *, alpha: float | None = None, drop_text_encoder: bool = False) -> Lora:
    """Read one adapter of `base` (or of a UNet): a peft folder, or a safetensors file of any tool. See `plan_lora`."""
    base = base if isinstance(base, Denoiser) else Denoiser(base, "this UNet")
    return load_lora(plan_lora(path, base, alpha=alpha, drop_text_encoder=drop_text_encoder), base)


def load_lora(plan: LoraPlan, base: Denoiser, most: int = MOST) -> Lora:
    """Read the numbers of a planned adapter. most: the largest rank of what is no plain LoRA.

    Raises W2WError if they are not finite, or an alpha is not above 0.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    for header in {id(piece.header): piece.header for piece in plan.pieces}.values():
        mine = [piece for piece in plan.pieces if piece.header is header]
        alphas = {piece.keys["alpha"] for piece in mine if "alpha" in piece.keys}
        tensors[str(header.file)] = header.read((key for piece in mine for key in piece.keys.values()), integers=alphas)
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    left_out = 0.0
    for piece in plan.pieces:
        numbers = {role: tensors[str(piece.header.file)][key] for role, key in piece.keys.items()}
        alpha = numbers.pop("alpha", None)
        weight = torch.cat([base.weight(layer) for layer in piece.layers]) if "magnitude" in numbers else None
        scale = _scale(plan, piece, alpha)
        (a, b), scale, left = products.factors_of(numbers, weight, scale, max(most, MOST))
        left_out += left
        for layer, (own_down, own_up) in zip(piece.layers, split_fused(a, b, piece.layers, base), strict=True):
            down[layer], up[layer], scales[layer] = own_down, own_up, scale
    return Lora(str(plan.path), down, up, scales, left_out)


def split_fused(down: Tensor, up: Tensor, layers: Sequence[str], base: Denoiser) -> list[tuple[Tensor, Tensor]]:
    """The factors of each of some layers that a file fuses, whose outputs lie one after another.

    Where `up` is diagonal in blocks, as where the factors of several were put together, each layer gets its own rank back.
    """
    if len(layers) == 1:
        return [(down, up)]
    ups = up.split([side[1] for layer in layers if (side := sides_of(base.layers[layer]))])
    rank, rest = divmod(down.shape[0], len(layers))
    if rank and not rest:
        own = [slice(i * rank, (i + 1) * rank) for i in range(len(layers))]
        if all(float(part.abs().sum()) == float(part[:, mine].abs().sum()) for part, mine in zip(ups, own, strict=True)):
            return [(down[mine], part[:, mine]) for part, mine in zip(ups, own, strict=True)]
    return [(down, part) for part in ups]


def _scale(plan: LoraPlan, piece: Piece, alpha: Tensor | None) -> float:
    """The scale of a layer: from its own alpha, else from what the file tells for all, else 1, as diffusers reads it."""
    layer, rank = piece.layers[0], products.rank_of(piece.shapes)
    if alpha is not None and (alpha.numel() != 1 or not float(alpha) > 0):
        raise W2WError(f"{plan.path}: alpha of {layer} is {str(alpha.tolist())[:40]}; one number above 0 was expected.")
    if not rank:  # a LoKr of two whole parts
        return 1.0
    if alpha is not None:
        return float(alpha) / rank
    return piece.told.scale_for(plain_name(layer), rank) if piece.told else 1.0
