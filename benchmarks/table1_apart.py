"""Table 1 where the GPU and the face networks are on two machines: drawn on the one, scored on the other.

    python benchmarks/table1_apart.py pack FACES --split test --out apart        # here: who is scored, and descriptions of their photos
    python benchmarks/table1_apart.py draw FACES apart --space S --encoder E     # there: all pictures, into apart/
    python benchmarks/table1_apart.py score FACES apart --space S --encoder E --table docs/results/table1.json  # here again

What is drawn and how it is scored is `w2w evaluate`'s; give `draw` and `score` the same spaces and options.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from w2wpp.base.model import BaseModel
from w2wpp.common.files import read_json, write_json
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.table1 import Subjects, table1
from w2wpp.evaluation.table1_methods import Subject, Table1Options, adapter_options
from w2wpp.evaluation.table1_parts import Part, Scored, Scorer
from w2wpp.photos import descriptors
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Face, embed_pictures
from w2wpp.photos.images import Image
from w2wpp.spaces.vae_options import VaeOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "draw", "score"))
    parser.add_argument("faces", type=Path, help="a folder that `w2w faces align` made")
    parser.add_argument("folder", type=Path, help="what travels between the machines")
    parser.add_argument("--split", default="test")
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--dataset", default="tiny-faces")
    parser.add_argument("--space", action="append", default=[], help="a trained space; its --encoder in the same order")
    parser.add_argument("--encoder", action="append", default=[])
    parser.add_argument("--ms", default="32,128,512", help="latents of the spaces that are fitted here")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--solver-steps", type=int, default=15)
    parser.add_argument("--group", type=int, default=40)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--table", type=Path, help="score: where the table goes")
    args = parser.parse_args()
    faces = AlignedFaces.load(args.faces)
    if args.what == "pack":
        return pack(faces, args.split, args.folder)
    options = Table1Options(
        ms=tuple(int(m) for m in args.ms.split(",") if m),
        pictures=args.pictures,
        solver_steps=args.solver_steps,
        group=args.group,
        patience=args.patience,
        vae=VaeOptions(widths=(1024, 1024, 512)),
        trained=tuple(zip(args.space, args.encoder, strict=True)),
    )
    # On a GPU as on a CPU: networks in float32, products in bfloat16 where that is fast.
    base, dataset = BaseModel.load(args.base, dtype=torch.float32), WeightDataset.load(args.dataset)
    if args.what == "draw":
        return draw(base, dataset, faces, options, args.split, args.folder)
    table = table1(base, dataset, faces, args.split, options=options, folder=args.folder / "table", mapper=Drawn(args.folder))
    write_json(args.table, {**table, "drawn_on": read_json(args.folder / "drawn.json")["device"]})


def pack(faces: AlignedFaces, split: str, folder: Path) -> None:
    """Write who can be scored, and the descriptions of their photos, by the checksums of their pixels."""
    people = [subject.person for subject in Subjects.of(faces, split, None).people]
    photos = [photo for person in people for photo in faces.photos(person)]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(zip(map(checksum, photos), descriptors.describe_faces(photos), strict=True)), folder / "described.safetensors")
    write_json(folder / "people.json", people)


def draw(base: BaseModel, dataset: WeightDataset, faces: AlignedFaces, options: Table1Options, split: str, folder: Path) -> None:
    """Draw all pictures of the table; a row that `folder` has is not drawn again."""
    told = load_file(folder / "described.safetensors")
    descriptors.describe_faces = lambda images: np.stack([told[checksum(image)] for image in images])
    people = read_json(folder / "people.json")
    known = replace(faces, people={person: faces.people[person] for person in people})
    recorder = Recorder(folder, base, dataset, known, options)
    table1(base, dataset, known, split, options=options, recogniser=Blind(), mapper=recorder)
    device = torch.cuda.get_device_name() if base.device.type == "cuda" else "CPU"
    write_json(folder / "drawn.json", {"device": device, "rows": recorder.told})


def checksum(image: Image) -> str:
    """Which picture this is."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


class Blind:
    """A face recogniser that finds a face in every picture and sees nobody in it."""

    def detect(self, image: Image) -> list[Face]:
        return [Face((0.0, 0.0, 1.0, 1.0), 1.0, np.zeros((5, 2), np.float32))]

    def embed(self, image: Image, face: Face) -> NDArray[np.float32]:
        return np.zeros(512, np.float32)


class Recorder:
    """Draws each part of the table and keeps its pictures, a file a part."""

    def __init__(self, folder: Path, base: BaseModel, dataset: WeightDataset, faces: AlignedFaces, options: Table1Options) -> None:
        def subject(person: str) -> Subject:
            return Subject.of(person, faces.photos(person))

        self.folder, self.told = folder, dict[str, Any]()
        self.scorer = Scorer(base, dataset, adapter_options(dataset), options, 0, Blind(), subject)

    def __call__(self, tasks: Sequence[Any], shared: Any = None) -> Iterator[Any]:
        for i, task in enumerate(tasks):
            if not isinstance(task, Part):
                yield self.scorer(task, None)
                continue
            made = self.scorer(replace(task, shown=len(task.people)), shared)
            assert isinstance(made, Scored)
            pictures = np.stack([np.stack(row) for row in made.pictures])[..., 0]  # of tiny-faces, which is grey
            save_file({"pictures": pictures}, self.folder / f"part-{i}.safetensors")
            self.told[str(i)] = {"photos": made.photos, "unet_evals": made.unet_evals, "seconds": made.seconds}
            print(json.dumps({"part": i, "method": task.method, **self.told[str(i)]}), flush=True)
            yield made


class Drawn:
    """Scores the parts that were drawn elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, read_json(folder / "drawn.json")["rows"]

    def __call__(self, tasks: Sequence[Any], shared: Any = None) -> Iterator[Any]:
        for i, task in enumerate(tasks):
            if not isinstance(task, Part):  # a space: nothing is fitted here
                yield None
                continue
            grey = load_file(self.folder / f"part-{i}.safetensors")["pictures"]
            drawn = [[np.repeat(picture[..., None], 3, -1) for picture in row] for row in grey]
            yield Scored([embed_pictures(row) for row in drawn], drawn[: task.shown], **self.told[str(i)])


if __name__ == "__main__":
    main()
