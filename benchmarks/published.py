"""The published inversions beside ours, on people of the val split, in one PCA of the embedded adapters.

    python benchmarks/published.py FACES --people 8

Each person gives one photo; pictures are scored against the person's other photos. Writes benchmarks/results/published.json.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from machine import machine
from w2wpp.base.model import BaseModel
from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.id_score import id_score
from w2wpp.inversion.gradient import PUBLISHED, InversionOptions
from w2wpp.inversion.invert_photos import invert_photos
from w2wpp.inversion.published import RAW, PublishedOptions
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.spaces.pca import PcaSpace

RECIPES: dict[str, Any] = {
    "published, raw coefficients (--published)": RAW,
    "published, raw coefficients, 800 steps at rate 1 (as out of distribution)": PublishedOptions(steps=800, lr=1.0),
    "published, in prior units": PUBLISHED,
    "ours": InversionOptions(),
}
RESULTS = Path(__file__).parent / "results" / "published.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--m", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--solver-steps", type=int, default=20)
    parser.add_argument("--recipe", dest="recipes", action="append", choices=RECIPES, help="Only these; rows of the others stay.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.recipes = given.recipes or list(RECIPES)
    base, data = BaseModel.load("tiny-faces"), WeightDataset.load("tiny-faces")
    space = PcaSpace.fit(data, m=given.m)
    faces = AlignedFaces.load(given.faces)
    people = [person for person in faces.of_split("val") if len(faces.people[person]) >= 2][: given.people]
    photos = {person: faces.photos(person) for person in people}
    rows = [row for row in read_json(given.out)["rows"] if row["recipe"] not in given.recipes] if given.out.exists() else []
    for name in given.recipes:
        options = RECIPES[name]
        begun = time.perf_counter()
        found = invert_photos(
            space, [photos[person][:1] for person in people], base=base, options=replace(options, seed=0), ids=people, align=False
        )
        seconds = time.perf_counter() - begun
        drawn = found.pictures(given.pictures, steps=given.solver_steps)
        scores = [id_score(pictures, photos[person][1:]) for person, pictures in zip(people, drawn, strict=True)]
        seen = [score.mean for score in scores if score.n_pairs]
        rows.append(
            {
                "recipe": name,
                "id_other": fmean(seen) if seen else None,
                "se": stdev(seen) / len(seen) ** 0.5 if len(seen) > 1 else None,
                "n": len(seen),
                "missed": sum(score.missed for score in scores),
                "pictures": given.pictures * len(people),
                "unet_evals": found.history.unet_evals,
                "norm": float(found.z.norm(dim=1).mean()),
                "seconds": seconds,
            }
        )
        write_json(
            given.out, {"command": command_line(), "machine": machine(), "versions": versions(), "split": "val", "m": given.m, "rows": rows}
        )


if __name__ == "__main__":
    main()
