"""What all visitors share: one model in memory, the space with its people, and how pictures of it are drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

import w2wpp as w2w
from w2wpp.base.drawing import edited_rows
from w2wpp.common.errors import W2WError
from w2wpp.exchange.exporting import Form, export, of_points
from w2wpp.exchange.one_adapter import read_adapter
from w2wpp.explore.visit import Person
from w2wpp.inversion.from_adapter import points_of_adapters
from w2wpp.photos.images import Image
from w2wpp.spaces.edits import Direction, encode_rows, telling_directions
from w2wpp.spaces.points import principal_directions

PICTURES = 4
SHEET = 8
AXES = 4  # principal directions with a slider
MOST_SLIDERS = 12
LONGEST = 500  # characters of a prompt


class Words(NamedTuple):
    """How pictures are drawn: the fields of the tab Prompt, in its order."""

    prompt: str
    negative: str
    guidance: float
    steps: int
    seed: int

    @classmethod
    def of(cls, prompt: str, negative: str, guidance: float, steps: float, seed: float) -> Self:
        """What the fields hold. Raises W2WError for one that is empty, and for a prompt that is too long."""
        if max(len(prompt), len(negative)) > LONGEST:
            raise W2WError(f"the prompt has more than {LONGEST} characters. Write a shorter one.")
        return cls(prompt, negative, number(guidance), int(number(steps)), int(number(seed)))

    @property
    def how(self) -> dict[str, Any]:
        """The options of what draws."""
        return {"guidance": self.guidance, "negative": self.negative, "steps": self.steps}

    @property
    def seeds(self) -> range:
        """The image seeds of a row of pictures."""
        return range(self.seed, self.seed + PICTURES)


@dataclass
class Studio:
    """A base, a space, and the dataset whose people stand on the map."""

    base: w2w.BaseModel
    space: w2w.Space
    source: str  # how commands name the space
    encoder: w2w.PhotoEncoder | None = None
    data: w2w.WeightDataset | None = None
    encoder_file: Path | None = None  # if it is not the space's own

    @cached_property
    def z(self) -> Tensor:
        """The points of the dataset's people [n, m]; none without a dataset."""
        return encode_rows(self.space, self.data) if self.data else torch.zeros(0, self.space.m)

    @cached_property
    def ids(self) -> list[str]:
        """The names of the dataset's people."""
        return list(self.data.ids) if self.data else []

    @cached_property
    def axes(self) -> Tensor:
        """The first principal directions of the people's points [k, m]."""
        return principal_directions(self.z, AXES)

    @cached_property
    def places(self) -> Tensor:
        """Where the people stand on the map: [n, 2], along the first two principal directions."""
        return self.z @ self.axes[:2].T if len(self.axes) else torch.zeros(0, 2)

    @cached_property
    def directions(self) -> dict[str, Direction]:
        """The attributes that have a slider, by name."""
        return telling_directions(self.space, self.data, self.z, MOST_SLIDERS) if self.data else {}

    def rows(self, z: Tensor, words: Words, seeds: Sequence[int]) -> list[list[Image]]:
        """Pictures of points [n, m] at image seeds: n rows."""
        return w2w.picture_rows(self.base, self.space.layout, self.decoded(z), words.prompt, seeds, **words.how)

    def draw(self, z: Tensor, words: Words) -> list[Image]:
        """Pictures of one point [m], as `w2w generate` draws them."""
        return self.rows(z[None], words, words.seeds)[0]

    def each(self, z: Tensor, words: Words) -> list[Image]:
        """One picture of each point [n, m], all at the first image seed."""
        return [row[0] for row in self.rows(z, words, words.seeds[:1])]

    def draw_edited(self, before: Tensor, after: Tensor, inject_at: float, words: Words) -> list[Image]:
        """Pictures of a point [m] that was edited, as `w2w edit` draws them."""
        pair = self.decoded(before[None]), self.decoded(after[None])
        return edited_rows(self.base, self.space.layout, *pair, words.prompt, words.seeds, inject_at=inject_at, **words.how)[0]

    def decoded(self, z: Tensor) -> Tensor:
        """Points [n, m] as adapters [n, d]."""
        return self.space.decode(z.to(self.space.device))

    def edit(self, z: Tensor, strengths: Mapping[str, float], held: Sequence[str], along: Sequence[float]) -> Tensor:
        """A point [m] moved by attributes' strengths, with `held` ones kept, and along the principal directions."""
        if strengths:
            others = [self.directions[name] for name in held if name not in strengths]
            z = w2w.edit(z[None], [w2w.debias(self.directions[name], others) for name in strengths], list(strengths.values()))[0]
        return z + torch.tensor(list(along), dtype=z.dtype) @ self.axes if any(along) else z

    def read(self, path: Path) -> tuple[Tensor, float]:
        """An adapter's point [m], and the share of it that the space loses. path: a peft folder, or a safetensors file."""
        weights = read_adapter(path, w2w.Denoiser.of(self.base), self.space.layout)[None]
        lost = w2w.reconstruct(self.space, weights)[1][0]
        if self.encoder:
            return points_of_adapters(self.base, self.space, self.encoder, weights, [path.name])[0], lost
        return self.space.encode(weights)[0].cpu(), lost

    def write(self, person: Person, form: str, folder: Path) -> list[Path]:
        """A person as files in a new folder: its point, or an adapter for peft, diffusers or kohya."""
        file, denoiser = folder / f"{person.stem}.safetensors", w2w.Denoiser.of(self.base)
        if form == "point":
            w2w.save_points(file, person.z[None], [person.name], self.space)
        else:
            chosen = of_points(self.space, person.z[None], [person.name], denoiser)
            export(chosen, folder if form == "peft" else file, cast(Form, form), denoiser)
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def number(given: float | None) -> float:
    """A number that a field holds. Raises W2WError if it is empty."""
    if given is None or not math.isfinite(given):
        raise W2WError("a field that should hold a number is empty. Fill it in.")
    return given
