"""What every space can do: encode adapters to points, decode points to adapters, sample, save and load.

A new space is one file with a subclass of `Space`, one line in `REGISTRY`, and one row in `tests/test_spaces.py`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from w2wpp.base.identity import same_base
from w2wpp.common.assets import located
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.common.hub import Token, fetched, pushed
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.lora.prompting import Prompting
from w2wpp.lora.state_dict import Keys, lora_state_dict
from w2wpp.spaces.pretrained import PATTERNS, Encoder, files_of, write_folder

FORMAT = "w2wpp-space-1"

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
        self.prompting = Prompting()  # with which its adapters are drawn; kept in its file, as the history
        self.history: dict[str, Any] = {}  # what its training saw
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

    @torch.no_grad()
    def lora_state_dict(self, z: Tensor, format: Keys = "diffusers") -> dict[str, Tensor]:
        """One point z [m] or [1, m] -> its adapter's matrices by name, float32 on the CPU.

        `pipe.load_lora_weights(space.lora_state_dict(z))` draws the person in a plain pipeline of diffusers.
        format: `diffusers` or `peft`, as of `lora.state_dict.lora_state_dict`. Raises W2WError for more than one point.
        """
        if z.numel() != self.m:
            raise W2WError(f"points {list(z.shape)} are not one point of m = {self.m}. Give one row of them.")
        return lora_state_dict(self.layout, self.decode(z.reshape(1, -1).to(self.device))[0], format)

    def check(self, layout: Layout, base_id: str, who: str) -> None:
        """Raise W2WError naming the difference unless adapters of `who` belong to this space."""
        self.layout.check_same(layout, self.source, who)
        if not same_base(base_id, self.base_id):
            raise W2WError(f"{self.source} was fitted on base {self.base_id}; {who} belongs to base {base_id}. Refit with `w2w fit`.")

    def given(self, weights: Tensor) -> Tensor:
        """The weights that a caller gave, checked: [n, d] float32 on this space's device."""
        self.layout.check_width(weights.shape[-1], "what was given")
        return finite(weights.to(self.device, torch.float32))

    def frozen(self) -> Self:
        """This space, with nothing left to train."""
        return self.requires_grad_(False).eval()

    def save(self, path: str | Path) -> None:
        """Write the space as one safetensors file, or object at an address, whole or not at all; its header says what it is."""
        header = {"kind": self.kind, "layout": self.layout.to_json(), "base_id": self.base_id}
        header |= {"config": json.dumps(self.config()), "history": json.dumps(self.history)}
        header |= {"prompting": json.dumps(self.prompting.to_dict())}
        write_checked(path, self.state_dict(), {"format": FORMAT, **header})

    def save_pretrained(
        self, folder: str | Path, *, encoder: Encoder | None = None, base_model: str = "", licence: str = "unknown"
    ) -> None:
        """Write a new folder, also at an address: space.safetensors, encoder.safetensors if given, config.json with the layout, and a card.

        encoder: the space's `PhotoEncoder`. base_model: the base's hub id, for the card. licence: for the card.
        Raises W2WError if the folder holds something, or the encoder was trained for another space.
        """
        write_folder(self, folder, encoder, base_model, licence, Path(folder).name)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: Token = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load a space from disk or an address, as `load`, or from the Hugging Face hub by its id.

        What is on disk comes first. revision: a branch, tag or commit. token: of the hub; True for the saved one.
        local_files_only: only what was fetched before. Raises W2WError as `load`, or if the hub does not have it.
        """
        found = fetched(source, PATTERNS, revision=revision, token=token, local_files_only=local_files_only)
        return cls.load(found, device)

    def push_to_hub(
        self,
        repo: str,
        *,
        encoder: Encoder | None = None,
        base_model: str = "",
        licence: str = "unknown",
        revision: str | None = None,
        token: Token = None,
        private: bool | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to a repository of the hub, made if need be; returns the commit's URL.

        revision: the branch. Raises W2WError if the hub refuses, or the encoder was trained for another space.
        """
        files = files_of(self, encoder, base_model, licence, repo)
        return pushed(repo, files, message=f"A {self.kind} space, m = {self.m}", revision=revision, token=token, private=private)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read what `save` wrote, a folder of `save_pretrained`, or `tiny-faces`, the embedded space; it decodes as it did.

        `Space.load` reads a space of any kind; a subclass only its own. Raises W2WError if the file is no whole space of
        such a kind, or was altered.
        """
        path = str(located(path, "space/space.safetensors"))
        tensors, header = read_checked(path, "space", device)
        if header.get("format") != FORMAT or header.get("kind") not in REGISTRY:
            found = f"format {header.get('format')!r}, kind {header.get('kind')!r}"
            raise W2WError(f"{path} is no space ({found}; expected {FORMAT!r} and {' or '.join(REGISTRY)}). Make one with `w2w fit`.")
        module, name = REGISTRY[header["kind"]].split(":")
        space_class = getattr(import_module(module), name)
        if not issubclass(space_class, cls):
            raise W2WError(f"{path} is a space of kind {header['kind']}; {cls.__name__} was expected. Load it with Space.load.")
        try:
            # On the meta device nothing is computed or drawn: the numbers come from the file.
            with torch.device("meta"):
                space = space_class.blank(Layout.from_json(header["layout"]), header["base_id"], json.loads(header["config"]))
            space.load_state_dict(tensors, assign=True)
            space.history = json.loads(header.get("history", "{}"))
            space.prompting = Prompting.known(json.loads(header.get("prompting", "{}")))
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError, RuntimeError, W2WError) as error:
            raise W2WError(f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Refit with `w2w fit`.") from error
        space.source = path
        return space.frozen()


@dataclass(frozen=True)
class Adapters:
    """What a space is fitted to."""

    layout: Layout
    base_id: str
    people: list[str]  # whose adapter each row is; two adapters of a person share a name
    rows: Callable[[Sequence[int]], Tensor]  # positions -> weights [k, d] float32
    prompting: Prompting = field(default_factory=Prompting)

    def __len__(self) -> int:
        return len(self.people)

    @classmethod
    def of(cls, data: WeightDataset | Tensor, layout: Layout | None = None, base_id: str = "") -> "Adapters":
        """From a dataset, read as needed, or from weights [n, d] with their layout and base.

        Raises W2WError for NaN, or weights that do not fit the layout.
        """
        if isinstance(data, WeightDataset):
            people = [labels.get("person", name) for name, labels in zip(data.ids, data.labels, strict=True)]
            return cls(data.layout, data.base_id, people, data.rows, data.prompting)
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
