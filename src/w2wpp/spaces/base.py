"""What every space can do: encode adapters to points, decode points to adapters, sample, save and load.

A new space is one file with a subclass of `Space`, one line in `REGISTRY`, and one row in `tests/test_spaces.py`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from w2wpp.base_model import ASSETS
from w2wpp.errors import W2WError
from w2wpp.files import read_checked, write_checked
from w2wpp.layout import Layout
from w2wpp.seeds import generator
from w2wpp.weights import WeightDataset

FORMAT = "w2wpp-space-1"
TINY_SPACES = ASSETS / "tiny_faces" / "space"  # an anchored VAE over the embedded adapters, and its encoder

# kind -> where its class is. Names, so that loading one space does not import the others.
REGISTRY = {
    "pca": "w2wpp.spaces.pca:PcaSpace",
    "anchored-vae": "w2wpp.spaces.anchored_vae:AnchoredVaeSpace",
    "vae": "w2wpp.spaces.vae:VaeSpace",
}


class Space(nn.Module, ABC):
    """Points z [n, m] that stand for adapters weights [n, d] of one layout on one base.

    z is in prior units: over the adapters that the space was fitted to, each z is meant to be N(0, 1).
    Tensors are parameters and buffers, frozen once fitted, so `to(device)` and `state_dict` are PyTorch's.
    """

    kind: ClassVar[str]
    m: int

    def __init__(self, layout: Layout, base_id: str) -> None:
        super().__init__()
        self.layout, self.base_id = layout, base_id
        self.source = "this space"  # how errors call it; the file's path once loaded

    @abstractmethod
    def encode(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> points z [n, m] float32. Raises W2WError for another d or NaN."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Points z [n, m] -> adapters weights [n, d] float32 in their own units; differentiable in z."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `blank` needs, beside layout and base, to build this space without its numbers. Plain JSON."""

    @classmethod
    @abstractmethod
    def blank(cls, layout: Layout, base_id: str, config: Mapping[str, Any]) -> Self:
        """A space of this kind whose tensors have the right shapes and no meaning yet."""

    @property
    def device(self) -> torch.device:
        """Where the space computes; inputs are moved there."""
        return next(iter(self.state_dict().values())).device

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw n points from the prior N(0, I): [n, m] float32 on the CPU. Point i does not depend on n."""
        return torch.stack([torch.randn(self.m, generator=generator(seed, "point", i)) for i in range(n)])

    def check(self, layout: Layout, base_id: str, who: str) -> None:
        """Raise W2WError naming the difference unless adapters of `who` belong to this space."""
        self.layout.check_same(layout, self.source, who)
        if base_id != self.base_id:
            raise W2WError(f"{self.source} was fitted on base {self.base_id}; {who} belongs to base {base_id}. Refit with `w2w fit`.")

    def given(self, weights: Tensor) -> Tensor:
        """The weights that a caller gave, checked: [n, d] float32 on this space's device."""
        self.layout.check_width(weights.shape[-1], "what was given")
        return finite(weights.to(self.device, torch.float32))

    def frozen(self) -> Self:
        """This space, with nothing left to train."""
        return self.requires_grad_(False).eval()

    def save(self, path: str | Path) -> None:
        """Write the space as one safetensors file, whole or not at all; its header says what it is."""
        header = {"kind": self.kind, "layout": self.layout.to_json(), "base_id": self.base_id, "config": json.dumps(self.config())}
        write_checked(path, self.state_dict(), {"format": FORMAT, **header})


def load_space(path: str | Path, device: str | torch.device = "cpu") -> Space:
    """Read what `Space.save` wrote, or `tiny-faces`, the embedded space; it decodes exactly as it did.

    Raises W2WError if the file is no whole space, or was altered.
    """
    path = TINY_SPACES / "space.safetensors" if str(path) == "tiny-faces" else path
    tensors, header = read_checked(path, "space", device)
    if header.get("format") != FORMAT or header.get("kind") not in REGISTRY:
        found = f"format {header.get('format')!r}, kind {header.get('kind')!r}"
        raise W2WError(f"{path} is no space ({found}; expected {FORMAT!r} and {' or '.join(REGISTRY)}). Make one with `w2w fit`.")
    module, name = REGISTRY[header["kind"]].split(":")
    try:
        # On the meta device nothing is computed or drawn: the numbers come from the file.
        with torch.device("meta"):
            space = getattr(import_module(module), name).blank(
                Layout.from_json(header["layout"]), header["base_id"], json.loads(header["config"])
            )
        space.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise W2WError(f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Refit with `w2w fit`.") from error
    space.source = str(path)
    return space.frozen()


@dataclass(frozen=True)
class Adapters:
    """What a space is fitted to."""

    layout: Layout
    base_id: str
    people: list[str]  # whose adapter each row is; two adapters of a person share a name
    rows: Callable[[Sequence[int]], Tensor]  # positions -> weights [k, d] float32

    def __len__(self) -> int:
        return len(self.people)

    @classmethod
    def of(cls, data: WeightDataset | Tensor, layout: Layout | None = None, base_id: str = "") -> "Adapters":
        """From a dataset, read as needed, or from weights [n, d] with their layout and base.

        Raises W2WError for NaN, or weights that do not fit the layout.
        """
        if isinstance(data, WeightDataset):
            people = [labels.get("person", name) for name, labels in zip(data.ids, data.labels, strict=True)]
            return cls(data.layout, data.base_id, people, data.rows)
        if layout is None:
            raise TypeError("weights given as a tensor need their layout")
        layout.check_width(data.shape[-1], "what was given")
        weights = finite(data.float())
        return cls(layout, base_id, [str(i) for i in range(len(weights))], lambda indices: weights[torch.as_tensor(indices)])

    def check_m(self, m: int) -> None:
        """Raise W2WError unless m dimensions can be told from these n adapters: n points span n - 1 directions."""
        most = min(len(self) - 1, self.layout.d)
        if not 1 <= m <= most:
            raise W2WError(f"m = {m} is not possible: {len(self)} adapters of {self.layout.d} weights span {most} directions. Lower --m.")


def finite(weights: Tensor) -> Tensor:
    """The same weights [n, d]. Raises W2WError naming the first row that holds NaN or infinity."""
    bad = (~torch.isfinite(weights)).any(-1).nonzero()
    if len(bad):
        raise W2WError(f"row {int(bad[0][0])} of {len(weights)} has weights that are not numbers. Leave it out or train it again.")
    return weights
