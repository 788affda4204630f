"""The layout of a weight vector: which numbers belong to which LoRA matrix, in which order.

A layout is data: made once from a UNet, saved with every artefact, and checked whenever two of them meet.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.errors import W2WError


@dataclass(frozen=True)
class Matrix:
    """One LoRA matrix: its peft key without prefix (`<module>.lora_A.weight`) and its shape."""

    name: str
    shape: tuple[int, int]

    @property
    def module(self) -> str:
        """The dotted name of the adapted linear layer."""
        return self.name.rsplit(".lora_", 1)[0]


@dataclass(frozen=True)
class Layout:
    """Ordered matrices of a rank-`rank` LoRA with scale `alpha / rank` on the layers named by `targets`."""

    matrices: tuple[Matrix, ...]
    rank: int
    alpha: float
    targets: tuple[str, ...]

    @classmethod
    def of(cls, unet: nn.Module, *, rank: int = 1, alpha: float = 27.0, targets: Sequence[str] = ("to_q", "to_v")) -> "Layout":
        """Lay out a LoRA on every linear layer of `unet` whose dotted name ends with one of `targets`.

        The order is the sorted peft key order (down, mid, up; `lora_A` before `lora_B`), which is the column order
        of the published dataset of Dravid et al. 2024. Works on the meta device.
        Raises W2WError if no layer matches.
        """
        matrices = []
        for name, module in unet.named_modules():
            if isinstance(module, nn.Linear) and any(name == t or name.endswith("." + t) for t in targets):
                matrices.append(Matrix(f"{name}.lora_A.weight", (rank, module.in_features)))
                matrices.append(Matrix(f"{name}.lora_B.weight", (module.out_features, rank)))
        if not matrices:
            raise W2WError(f"no linear layer of the UNet ends with {', '.join(targets)}. Name layers such as to_q to_v.")
        return cls(tuple(sorted(matrices, key=lambda m: m.name)), rank, float(alpha), tuple(targets))

    @cached_property
    def d(self) -> int:
        """How many numbers an adapter has."""
        return sum(math.prod(m.shape) for m in self.matrices)

    @property
    def scale(self) -> float:
        """What the product B A is multiplied with: alpha / rank."""
        return self.alpha / self.rank

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The adapted layers, in order."""
        return tuple(dict.fromkeys(m.module for m in self.matrices))

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
        return json.dumps(asdict(self))

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
            tuple(Matrix(str(m["name"]), (int(m["shape"][0]), int(m["shape"][1]))) for m in matrices),
            int(value["rank"]),
            float(value["alpha"]),
            tuple(str(t) for t in value["targets"]),
        )
