"""What Ray costs where it is not needed: one worker on one core, against one process on one core.

    python benchmarks/ray_overhead.py --people 64 --rounds 3

Both train the same people on tiny-faces with the same groups, in turn; the datasets must be equal byte for byte. The clock runs from the
first group to the last row on disk, once the base is loaded and the pictures of the class are drawn; what Ray and its worker take
before that is told beside it. Photos are pictures that the base draws. Writes benchmarks/results/ray_overhead.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from machine import machine
from w2wpp.adapters.group_training import Engine, GroupTrainer
from w2wpp.adapters.population import train_population
from w2wpp.adapters.train import AdapterOptions, options_for
from w2wpp.base.model import BaseModel
from w2wpp.common.files import write_json, write_text
from w2wpp.common.runs import command_line
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.images import write_image
from w2wpp.scale.training import TrainingRecipe, ray_workers

RESULTS = Path(__file__).parent / "results" / "ray_overhead.json"
WAYS = ("one process", "Ray, one worker")


@dataclass
class Prepared(GroupTrainer):
    """One process whose pictures of the class are drawn before the clock runs, as a worker's are."""

    drawn: Tensor | None = None

    def prior(self) -> Tensor | None:
        """Those pictures' latents."""
        return self.drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of Adam; those of tiny-faces unless given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = BaseModel.load("tiny-faces", "cpu")
    options = options_for("tiny-faces")
    options = replace(options, steps=args.steps or options.steps)
    with tempfile.TemporaryDirectory() as place:
        faces = drawn_faces(base, Path(place) / "faces", args.people)
        rounds = [one_round(base, faces, options, args.group, Path(place) / str(i)) for i in range(args.rounds)]
    more = [found["Ray, one worker"]["seconds"] / found["one process"]["seconds"] - 1 for found in rounds]
    about = {
        "people": args.people,
        "group": args.group,
        "steps": options.steps,
        "seconds": {way: median(found[way]["seconds"] for found in rounds) for way in WAYS},
        "seconds_before": {way: median(found[way]["before"] for found in rounds) for way in WAYS},
        "overhead": median(more),
        "overheads": more,
        "rounds": rounds,
    }
    write_json(RESULTS, {"command": command_line(), "machine": machine("cpu"), **about})
    print(json.dumps(about, indent=2))


def one_round(base: BaseModel, faces: AlignedFaces, options: AdapterOptions, group: int, place: Path) -> dict[str, dict[str, float]]:
    """Both ways, one after the other. Raises AssertionError if the datasets differ."""
    found, made = {}, []
    for way in WAYS:
        out, start = place / way.replace(" ", "-"), time.perf_counter()
        with engine_of(way, base, faces, options) as engine:
            ready = time.perf_counter()
            train_population(base, faces, list(faces.people), out, options, group=group, halves_from=99, engine=engine)
            found[way] = {"before": ready - start, "seconds": time.perf_counter() - ready}
        made.append({name: (out / name).read_bytes() for name in WeightDataset.load(out).files})
        print(way, found[way], file=sys.stderr)
    assert made[0] == made[1], "the datasets differ"
    return found


@contextmanager
def engine_of(way: str, base: BaseModel, faces: AlignedFaces, options: AdapterOptions) -> Iterator[Engine]:
    """Who trains, with everything loaded."""
    if way == "one process":
        trainer = Prepared(base, faces, options)
        trainer.drawn = GroupTrainer.prior(trainer)
        yield trainer
        return
    recipe = TrainingRecipe(base.source, base.id, faces.folder, options)
    with ray_workers("local", recipe, cores=1, workers=1) as engine:
        engine.group_size()  # answered once the worker is ready
        yield engine


def drawn_faces(base: BaseModel, folder: Path, people: int) -> AlignedFaces:
    """A folder of faces that the base draws, two for each person."""
    pictures = base.generate("photo of a person", range(2 * people), steps=4)
    lines: list[dict[str, Any]] = []
    for i in range(people):
        for k in range(2):
            write_image(folder / f"Person_{i:03}" / f"{k}.png", pictures[2 * i + k])
            line = {"person": f"Person_{i:03}", "photo": f"{k}.jpg", "size": base.image_size, "status": "ok", "labels": {"split": "train"}}
            lines.append(line)
    write_text(folder / "faces.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return AlignedFaces.load(folder)


if __name__ == "__main__":
    main()
