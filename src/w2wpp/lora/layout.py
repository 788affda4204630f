"""The layout of a weight vector: which numbers belong to which LoRA matrix, in which order.

A layout is data: made once from a UNet, saved with every artefact, and checked whenever two of them meet.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Matrix:
    """One LoRA matrix: its peft key without prefix (`<module>.lora_A.weight`) and its shape.

    kernel: height and width of a convolution, for its `lora_A`, whose rows are [c, height, width] laid flat; None otherwise.
    """

    name: str
    shape: tuple[int, int]
    kernel: tuple[int, int] | None = None

    @property
    def module(self) -> str:
        """The dotted name of the adapted layer."""
        return self.name.rsplit(".lora_", 1)[0]

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape as other tools write it: a convolution's matrices have four dimensions. Needs the kernel, so of `lora_A` alone."""
        if self.kernel is None:
            return self.shape
        return (self.shape[0], self.shape[1] // (self.kernel[0] * self.kernel[1]), *self.kernel)


def part_of(layer: str) -> str:
    """The part of the pipeline that a layer's name belongs to: `text_encoder` and its like, or "" for the denoiser."""
    first = layer.split(".", 1)[0]
    return first if first in TEXT_ENCODERS else ""


def sides_of(module: nn.Module) -> tuple[int, int, tuple[int, int] | None] | None:
    """What a low-rank product on this layer has: inputs, outputs, kernel of a convolution; None for a layer that takes none."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, None
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        height, width = module.kernel_size
        return module.in_channels * height * width, module.out_channels, (height, width)
    return None


@dataclass(frozen=True)
class Layout:
    """Ordered matrices of a rank-`rank` LoRA with scale `alpha / rank` on the layers named by `targets`."""

    matrices: tuple[Matrix, ...]
    rank: int
    alpha: float
    targets: tuple[str, ...]

    @classmethod
    def of(cls, unet: nn.Module, *, rank: int = 1, alpha: float = 27.0, targets: Sequence[str] = ("to_q", "to_v")) -> "Layout":
        """Lay out a LoRA on every linear layer and convolution of `unet` whose dotted name ends with one of `targets`.

        The order is the sorted peft key order (down, mid, up; `lora_A` before `lora_B`), which is the column order
        of the published dataset of Dravid et al. 2024. Works on the meta device.
        Raises W2WError if no layer matches.
        """
        layers = {name: module for name, module in unet.named_modules() if any(name == t or name.endswith("." + t) for t in targets)}
        layout = cls.on(layers, rank=rank, alpha=alpha, targets=targets)
        if not layout.matrices:
            raise W2WError(f"no linear layer or convolution of the UNet ends with {', '.join(targets)}. Name layers such as to_q to_v.")
        return layout

    @classmethod
    def on(cls, layers: Mapping[str, nn.Module], *, rank: int, alpha: float, targets: Sequence[str]) -> "Layout":
        """Lay out a LoRA on those of these layers, by dotted name, that are linear or convolutions, in the order of `of`."""
        matrices = []
        for name, module in layers.items():
            if sides := sides_of(module):
                matrices.append(Matrix(f"{name}.lora_A.weight", (rank, sides[0]), sides[2]))
                matrices.append(Matrix(f"{name}.lora_B.weight", (sides[1], rank)))
        return cls(tuple(sorted(matrices, key=lambda m: m.name)), rank, float(alpha), tuple(targets))

    @cached_property
    def d(self) -> int:
        """How many numbers an adapter has."""
        return sum(math.prod(m.shape) for m in self.matrices)

    @property
    def scale(self) -> float:
        """The factor of the product B A: alpha / rank."""
        return self.alpha / self.rank

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The adapted layers, in order."""
        return tuple(dict.fromkeys(m.module for m in self.matrices))

    def modules_of(self, part: str) -> tuple[str, ...]:
        """The adapted layers of a part, in order, with the part's name: "" for the denoiser, `text_encoder`, ..."""
        return tuple(name for name in self.modules if part_of(name) == part)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the pipeline that have adapted layers; "" is the denoiser."""
        return tuple(sorted({part_of(name) for name in self.modules}))

    def check_denoiser_alone(self) -> None:
        """Raise W2WError if these adapters adapt a text encoder, for work that would leave it out."""
        if self.parts != ("",):
            raise W2WError(
                f"these adapters adapt the {' and '.join(part for part in self.parts if part)} too, and this moves the denoiser's alone. "
                "Import them with `w2w import --drop-text-encoder`."
            )

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The columns of each matrix, by name."""
        slices, start = {}, 0
        for m in self.matrices:
            stop = start + math.prod(m.shape)
            slices[m.name] = slice(start, stop)
            start = stop
        return slices

    def unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """Split weights [..., d] into views {name: [..., *shape]}. Raises W2WError at another d."""
        self.check_width(weights.shape[-1], "these weights")
        return {m.name: weights[..., self.slices[m.name]].unflatten(-1, m.shape) for m in self.matrices}

    def flatten(self, matrices: dict[str, Tensor]) -> Tensor:
        """Join {name: [..., *shape]} into weights [..., d]. Raises W2WError on a missing, unknown or misshapen one."""
        unknown = set(matrices) - set(self.slices)
        if unknown:
            raise W2WError(f"the layout has no matrix {min(unknown)}; it has {len(self.matrices)} such as {self.matrices[0].name}.")
        parts = []
        for m in self.matrices:
            if m.name not in matrices:
                raise W2WError(f"matrix {m.name} is missing; the layout expects {len(self.matrices)} matrices.")
            found = matrices[m.name]
            if tuple(found.shape[-2:]) != m.shape:
                raise W2WError(f"matrix {m.name} has shape {list(found.shape[-2:])}, expected {list(m.shape)} (rank {self.rank}).")
            parts.append(found.flatten(-2))
        return torch.cat(parts, dim=-1)

    def check_width(self, found: int, who: str) -> None:
        """Raise W2WError unless `found` numbers are as many as this layout has."""
        if found != self.d:
            raise W2WError(f"the layout expects {self.d:,} weights (rank {self.rank}); {who} has {found:,}.")

    def check_same(self, other: "Layout", mine: str, theirs: str) -> None:
        """Raise W2WError naming the first difference between this layout (of `mine`) and that of `theirs`."""
        if self == other:
            return
        if self.d != other.d:
            difference = f"expects {self.d:,} weights (rank {self.rank}); {theirs} has {other.d:,} (rank {other.rank})"
        elif (self.rank, self.alpha) != (other.rank, other.alpha):
            difference = f"has rank {self.rank}, alpha {self.alpha:g}; {theirs} has rank {other.rank}, alpha {other.alpha:g}"
        else:
            names = [(a.name, b.name) for a, b in zip(self.matrices, other.matrices, strict=False) if a != b]
            difference = f"adapts {names[0][0]} where {theirs} adapts {names[0][1]}" if names else "names other targets"
        raise W2WError(f"{mine} {difference}. Refit with `w2w fit`, or choose adapters of one layout.")

    def to_json(self) -> str:
        """Serialise for a safetensors header or a JSON file; `from_json` is the inverse."""
        matrices = [{"name": m.name, "shape": m.shape} | ({"kernel": m.kernel} if m.kernel else {}) for m in self.matrices]
        return json.dumps({"matrices": matrices, "rank": self.rank, "alpha": self.alpha, "targets": self.targets})

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """Read what `to_json` wrote. Raises W2WError if it is not a layout."""
        try:
            return cls._from_dict(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            raise W2WError(f"not a layout ({error!r}). Was the file written by w2w?") from error

    @classmethod
    def _from_dict(cls, value: dict[str, Any]) -> "Layout":
        matrices: Iterable[dict[str, Any]] = value["matrices"]
        return cls(
            tuple(Matrix(str(m["name"]), _pair(m["shape"]), _pair(m["kernel"]) if m.get("kernel") else None) for m in matrices),
            int(value["rank"]),
            float(value["alpha"]),
            tuple(str(t) for t in value["targets"]),
        )


def layout_of(unet: nn.Module | Mapping[str, nn.Module], layers: set[str], rank: int, alpha: float) -> Layout:
    """The layout that adapts exactly these layers: named by their last words where that says it all, else in full.

    unet: a network, or its layers and those of text encoders by dotted name.
    Raises W2WError if one is no linear layer or convolution of it.
    """
    known = dict(unet.named_modules()) if isinstance(unet, nn.Module) else unet
    usable = {name: module for name, module in known.items() if sides_of(module)}
    if strangers := layers - usable.keys():
        raise W2WError(f"layer {min(strangers)} is no linear layer or convolution of this base. Give the adapters' --base.")
    for words in (1, 2):  # to_k; attn2.to_k
        targets = tuple(sorted({_ending(layer, words) for layer in layers}))
        if {name for name in usable if any(name == t or name.endswith("." + t) for t in targets)} == layers:
            break
    else:
        targets = tuple(sorted(layers))
    return Layout.on({name: usable[name] for name in layers}, rank=rank, alpha=alpha, targets=targets)


def _pair(value: Sequence[Any]) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _ending(layer: str, words: int) -> str:
    """The last words of a layer's name. A number goes with its word: peft would find a plain `2` anywhere."""
    return ".".join(re.findall(r"[^.]+(?:\.\d+)*", layer)[-words:])
