"""What `invert_photos` returns: people's models in a space, drawn, saved and exported."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.base.drawing import picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.names import file_names
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.exporting import Chosen, Form, export
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.inversion.gradient import Inverted
from w2wpp.photos.images import Image, grid, write_image, write_rows
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import save_points


@dataclass(frozen=True)
class InvertedPhotos:
    """The models of k people in a space."""

    base: BaseModel
    space: Space
    ids: list[str]
    photos: list[list[Image]]  # of each person, as the base sees them: [size, size, 3] uint8
    history: Inverted  # the points, and on the way to them losses and path
    start: str  # zero or encoder
    prompt: str  # with which the photos were inverted

    @property
    def z(self) -> Tensor:
        """The points [k, m] float32 in prior units, on the CPU."""
        return self.history.z

    @cached_property
    def weights(self) -> Tensor:
        """The points' adapters [k, d] float32, on the CPU."""
        with torch.no_grad():
            return self.space.decode(self.z.to(self.space.device)).cpu()

    def pictures(
        self,
        seeds: int | Sequence[int] = 4,
        prompt: str | None = None,
        *,
        guidance: float | None = None,
        negative: str = "",
        steps: int = 20,
    ) -> list[list[Image]]:
        """Draw each person at each image seed, or at the first `seeds` of them -> k rows of pictures [h, w, 3] uint8.

        prompt: the one that the photos were inverted with, unless given. guidance: the space's; it leads away from `negative`.
        steps: of the solver.
        """
        at = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
        caption = self.prompt if prompt is None else prompt
        scale = self.space.prompting.guidance if guidance is None else guidance
        return picture_rows(self.base, self.space.layout, self.weights, caption, at, guidance=scale, negative=negative, steps=steps)

    def save(
        self,
        folder: str | Path,
        pictures: int | Sequence[int] = 4,
        prompt: str | None = None,
        *,
        guidance: float | None = None,
        negative: str = "",
        steps: int = 20,
    ) -> Path:
        """Write everything to a folder; returns the sheet `inverted.png`: each person's photo, then pictures of the model.

        Also points.safetensors, the dataset `weights` of full weights, one peft folder per person in `adapters`, and
        `pictures`. pictures and the rest: as for `pictures`. A save that was cut short may be repeated.
        Raises W2WError if the folder's dataset holds other people.
        """
        folder, names = Path(folder), file_names(self.ids)
        self._append(folder / "weights")
        save_points(folder / "points.safetensors", self.z, self.ids, self.space)
        for name, adapter in zip(names, self.weights, strict=True):
            write_peft(folder / "adapters" / name, self.space.layout, adapter, self.base.source)
        seeds = list(range(pictures)) if isinstance(pictures, int) else list(pictures)
        rows = self.pictures(seeds, prompt, guidance=guidance, negative=negative, steps=steps)
        write_rows(folder, self.ids, rows, seeds)
        write_image(folder / "inverted.png", self.sheet(rows))
        return folder / "inverted.png"

    def sheet(self, rows: Sequence[Sequence[Image]]) -> Image:
        """One picture with one row per person: the first photo, then the pictures."""
        return grid([[images[0], *row] for images, row in zip(self.photos, rows, strict=True)])

    def export(self, folder: str | Path, format: Form = "peft", *, licence: str = "unknown") -> Path:
        """Write the adapters for other tools, one per person in a new folder; returns the model card.

        format: `peft`, `diffusers`, `kohya` (ComfyUI, A1111) or `w2w`. licence: of the adapters, for the card.
        Raises W2WError if the folder is taken.
        """
        origin = {"space": f"{self.space.kind}, m = {self.space.m}", "method": "inverted by w2wpp", "seed": "unknown"}
        chosen = Chosen(self.space.layout, self.ids, [{} for _ in self.ids], lambda places: self.weights[list(places)], origin)
        return export(chosen, folder, format, Denoiser.of(self.base), licence=licence, folder=True)

    def _append(self, folder: Path) -> None:
        """Rows of full weights; those of a save that was cut short stay as they are."""
        meta = {"space": str(self.space.source), "prompting": self.space.prompting.to_dict()}
        dataset = WeightDataset.load_or_create(folder, self.space.layout, self.base.id, meta)
        if strangers := sorted(set(dataset.ids) - set(self.ids)):
            raise W2WError(f"{folder} holds {strangers[0]}, which is none of these people. Choose another folder.")
        have = set(dataset.ids)
        todo = [i for i, name in enumerate(self.ids) if name not in have]
        if todo:
            dataset.append(self.weights[todo], [self.ids[i] for i in todo])
