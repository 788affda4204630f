"""What an inversion has done so far, one file per group of people, so that a run that was cut short resumes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from w2wpp.common.errors import W2WError
from w2wpp.common.files import checksum, read_checked, write_checked
from w2wpp.inversion.gradient import Inverted
from w2wpp.photos.images import Image
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import alike, fingerprint

FORMAT = "w2wpp-inversion-1"


@dataclass
class Progress:
    """The finished people of one inversion, in the files `inversion/NNNNNN.safetensors` of a folder."""

    folder: Path
    space: torch.Tensor  # the fingerprint of the space
    settings: Mapping[str, Any]  # what decides the points beside space and photos
    photos: Mapping[str, str]  # id -> a checksum of the person's photos
    done: dict[str, Inverted]

    @classmethod
    def load(
        cls, folder: str | Path, space: Space, settings: Mapping[str, Any], ids: Sequence[str], photos: Sequence[Sequence[Image]]
    ) -> Self:
        """Read what a folder holds of this inversion; nothing if it is new.

        Raises W2WError if it holds models of another space, of other settings, photos or people, or of unknown origin.
        """
        folder = Path(folder)
        sums = {key: _sum(images) for key, images in zip(ids, photos, strict=True)}
        progress = cls(folder / "inversion", fingerprint(space), json.loads(json.dumps(dict(settings))), sums, {})
        files = sorted(progress.folder.glob("*.safetensors"))
        if not files and (folder / "points.safetensors").exists():
            raise W2WError(f"{folder} holds points already that this run did not make. Choose another --out.")
        for file in files:
            progress._take(file)
        return progress

    def unfinished(self, keys: Sequence[str]) -> Path:
        """The file of where the inversion of some people stands, a file of its own for each group and settings."""
        about = json.dumps([self.settings, {key: self.photos[key] for key in keys}], sort_keys=True)
        return self.folder / f"unfinished-{checksum({'space': self.space}, {'about': about})}.pt"

    def add(self, keys: Sequence[str], found: Inverted) -> None:
        """Keep the points of some people, which are finished."""
        about = {"format": FORMAT, "settings": json.dumps(self.settings), "unet_evals": str(found.unet_evals)}
        about |= {"photos": json.dumps({key: self.photos[key] for key in keys})}
        tensors = {"losses": found.losses, "path": found.path, "space": self.space}
        write_checked(self.folder / f"{len(list(self.folder.glob('*.safetensors'))):06d}.safetensors", tensors, about)
        self.unfinished(keys).unlink(missing_ok=True)

    def _take(self, file: Path) -> None:
        tensors, about = read_checked(file, "inverted points")
        try:
            settings, photos, evals = json.loads(about["settings"]), json.loads(about["photos"]), float(about["unet_evals"])
            found = Inverted(tensors["path"][-1], tensors["losses"], tensors["path"], evals)
        except (KeyError, ValueError) as error:
            raise W2WError(f"{file} is no file of inverted points ({error!r}). Choose another --out.") from error
        out = self.folder.parent
        if not alike(tensors["space"], self.space):
            raise W2WError(f"{out} holds models that were inverted in another space. Choose another --out.")
        if differing := [key for key in {**settings, **self.settings} if settings.get(key) != self.settings.get(key)]:
            old, new = (of.get(differing[0]) for of in (settings, self.settings))
            raise W2WError(
                f"{out} holds models inverted with {differing[0]} {old}; this run has {new}. Choose another --out, or the same options."
            )
        for i, (key, photo) in enumerate(photos.items()):
            if self.photos.get(key) != photo:
                what = "another photo of" if key in self.photos else "a model of"
                raise W2WError(f"{out} holds {what} {key}, which is not among the photos given. Choose another --out, or the same photos.")
            self.done[key] = found.of(i)


def _sum(images: Sequence[Image]) -> str:
    return checksum({str(i): torch.from_numpy(image.copy()) for i, image in enumerate(images)}, {})
