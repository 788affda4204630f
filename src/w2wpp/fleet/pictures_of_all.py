"""Pictures of every adapter of a dataset, or of every point of a file: group after group, resumable, by workers too."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.base.drawing import picture_rows
from w2wpp.base.identity import same_base
from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json
from w2wpp.common.mapping import Mapper, Work, absolute, asked_precision, begin_work, in_this_process
from w2wpp.common.names import file_names
from w2wpp.common.progress import track
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.lora.prompting import Prompting
from w2wpp.photos.images import Image, grid, read_image, write_image
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import load_points

TOGETHER = 32  # pictures that a task draws, or those of one model where they are more
SHEET_ROWS = 16  # the first models, which the sheet shows


@dataclass(frozen=True)
class Models:
    """Adapters by their place: rows of a dataset, or points of a space."""

    layout: Layout
    ids: list[str]
    weights: Callable[[Sequence[int]], Tensor]  # places -> [k, d] float32
    prompting: Prompting
    fingerprint: str  # 16 hex digits that identify all of them

    @classmethod
    def of_dataset(cls, source: str, base: BaseModel) -> "Models":
        """The rows of a dataset. Raises W2WError if they belong to another base."""
        data = WeightDataset.from_pretrained(source)
        if not same_base(data.base_id, base.id):
            raise W2WError(f"dataset {source} belongs to base {data.base_id}; {base.source} is {base.id}. Give its --base.")
        return cls(data.layout, data.ids, data.rows, data.prompting, data.fingerprint)

    @classmethod
    def of_points(cls, points: Path, space: Path, base: BaseModel) -> "Models":
        """The points of a file. Raises W2WError if they, or their space, belong to something else."""
        opened = Space.from_pretrained(space, device=base.device)
        opened.check(opened.layout, base.id, f"base {base.source}")
        z, ids = load_points(points, opened)

        @torch.no_grad()
        def weights(places: Sequence[int]) -> Tensor:
            return opened.decode(z[list(places)].to(opened.device)).cpu()

        return cls(opened.layout, ids, weights, opened.prompting, sha256(json.dumps(ids).encode() + z.numpy().tobytes()).hexdigest()[:16])


@dataclass(frozen=True)
class Words:
    """How each model is drawn, at the same image seeds."""

    prompt: str
    seeds: tuple[int, ...]
    guidance: float
    negative: str
    steps: int


def draw_all(models: Models, words: Words, base: BaseModel, folder: Path, mapper: Mapper | None = None) -> dict[str, Any]:
    """Write `folder`/pictures/<id>/<seed>.png of every model, and a sheet of the first ones; returns the counts and the sheet.

    Models whose pictures are there are left alone, in the groups that one run draws together, so that a run that was cut
    short is resumed to the same bytes. mapper: workers of an `AllRecipe` for the same.
    Raises W2WError if the folder holds pictures of other models or words.
    """
    settings = {"base_id": base.id, "models": models.fingerprint, **asdict(words), "seeds": list(words.seeds)}
    made = folder / "settings.json"
    if made.exists() and read_json(made) != settings:
        raise W2WError(f"{folder} holds pictures of other models or words ({made.name} says which). Choose another --out.")
    write_json(made, settings)
    names = file_names(models.ids)
    files = [[folder / "pictures" / name / f"{seed}.png" for seed in words.seeds] for name in names]
    groups = [range(s.start, s.stop) for s in batches(len(names), max(1, TOGETHER // len(words.seeds)))]
    todo = [group for group in groups if not all(file.exists() for i in group for file in files[i])]
    drawn = (mapper or in_this_process(drawing_work(models, words, base)))(todo)
    for group, rows in zip(todo, track(drawn, "draw", "groups of models", len(todo)), strict=True):
        for i, row in zip(group, rows, strict=True):
            for file, picture in zip(files[i], row, strict=True):
                write_image(file, picture)
    write_image(folder / "pictures.png", grid([[read_image(file) for file in row] for row in files[:SHEET_ROWS]]))
    return {"models": len(names), "drawn": sum(map(len, todo)), "sheet": folder / "pictures.png"}


def drawing_work(models: Models, words: Words, base: BaseModel) -> Work:
    """What draws some models, by their places."""

    def work(places: Sequence[int], _: Any) -> list[list[Image]]:
        how = {"guidance": words.guidance, "negative": words.negative, "steps": words.steps}
        return picture_rows(base, models.layout, models.weights(places), words.prompt, words.seeds, **how)  # type: ignore[arg-type]

    return work


@dataclass(frozen=True)
class AllRecipe:
    """What a worker needs to know to draw some models. Paths must mean the same files on every machine."""

    base: str
    base_id: str  # what the base must turn out to be
    dataset: str | None
    points: Path | None
    space: Path | None  # of the points
    fingerprint: str  # what the models must turn out to be
    words: Words
    device: str = "auto"
    dtype: torch.dtype | None = None  # of the base's networks
    precision: str = field(default_factory=asked_precision)

    def placed(self, device: str) -> "AllRecipe":
        """The same for workers in other folders, on a device."""
        paths = {name: absolute(getattr(self, name)) for name in ("points", "space")}
        dataset = str(absolute(self.dataset)) if self.dataset else None
        return replace(self, base=str(absolute(self.base)), dataset=dataset, device=device, **paths)

    def open(self, cores: int) -> Work:
        """Load the base and open the models; what draws some. Raises W2WError if they are others here."""
        begin_work(cores, self.precision)
        base = BaseModel.load(self.base, self.device, self.dtype)
        models = models_of(self.dataset, self.points, self.space, base)
        if (base.id, models.fingerprint) != (self.base_id, self.fingerprint):
            named = self.dataset or self.points
            raise W2WError(f"its {self.base} or {named} is not what this process has. Give all machines the same files.")
        return drawing_work(models, self.words, base)


def models_of(dataset: str | None, points: Path | None, space: Path | None, base: BaseModel) -> Models:
    """The models that were named: of a dataset, or of points, which need their space. Raises W2WError as these do."""
    if dataset:
        return Models.of_dataset(dataset, base)
    if not points or not space:
        raise W2WError(f"{points or 'nothing'} needs the space that it lies in. Give --space.")
    return Models.of_points(points, space, base)
