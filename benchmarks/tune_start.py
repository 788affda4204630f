"""How training that begins where an encoder puts the photos was tuned: ID Score on val people, from one photo and from half.

    python benchmarks/tune_start.py faces64 [space] [encoder]

Prints, for each set of options, the ID Score against photos that were not seen, against the input photo and against other
people's, and the pictures without a face. Writes benchmarks/results/tune_start.json; an interrupted run resumes.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tune_adapters import KEYS, mean_face, rows_so_far
from w2wpp.adapters.train import AdapterOptions, from_start
from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.files import write_json
from w2wpp.evaluation.table1_methods import Subject, dreambooth
from w2wpp.inversion.encoder import PhotoEncoder, encoder_start
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import embed_pictures
from w2wpp.photos.images import Image
from w2wpp.spaces.base import Space

PICTURES, GUIDANCE, SOLVER_STEPS, SEED, GROUP = 6, 2.0, 20, 5, 76
RESULTS = Path(__file__).parent / "results" / "tune_start.json"

CHOSEN = from_start(KEYS)  # how the adapters of the first edition were trained
WHOLE = replace(CHOSEN, blend=1.0)
TRIED = [
    replace(WHOLE, lr=5e-3),
    WHOLE,
    replace(WHOLE, lr=1e-3),
    replace(WHOLE, steps=45),
    replace(WHOLE, prior_weight=1.0),
    replace(CHOSEN, blend=0.75),
    CHOSEN,
    replace(CHOSEN, blend=0.25),
    replace(CHOSEN, lr=5e-3),
]


def main(folder: str, file: str = "tiny-faces", network: str = "tiny-faces") -> None:
    base, faces, space = BaseModel.load("tiny-faces"), AlignedFaces.load(folder), Space.load(file)
    start = encoder_start(space, PhotoEncoder.load(network))
    subjects = scorable([Subject.of(p, faces.photos(p)) for p in faces.of_split("val") if len(faces.people[p]) > 1])
    command = " ".join(["python benchmarks/tune_start.py", folder, file, network])
    about = {"command": command, "start": start.name, "people": len(subjects), "pictures": PICTURES}
    rows = rows_so_far(RESULTS, about)
    done = [(row["many"], AdapterOptions.of(row["options"]) if row["options"] else None) for row in rows]
    for many in (False, True):
        for options in (None, *TRIED):
            if (many, options) in done:
                continue
            if options is None:
                weights = start.weights([s.seen if many else s.seen[:1] for s in subjects])
            else:
                weights = dreambooth(base, subjects, options, GROUP, many=many, start=start).weights
            people = [subject.person for subject in subjects]
            drawn = generate_for(
                base, space.layout, weights, people, CHOSEN.prompt, PICTURES, guidance=GUIDANCE, steps=SOLVER_STEPS, seed=SEED, group=GROUP
            )
            rows.append({"many": many, "options": asdict(options) if options else None, **scores(subjects, drawn)})
            print(rows[-1], flush=True)
            write_json(RESULTS, {**about, "rows": rows})


def scorable(subjects: Sequence[Subject]) -> list[Subject]:
    """Those in whose input photo and held-out photos the face recogniser finds a face."""
    return [s for s in subjects if embed_pictures([s.input_photo])[0] is not None and mean_face(s.held_out) is not None]


def scores(subjects: Sequence[Subject], drawn: Sequence[Sequence[Image]]) -> dict[str, Any]:
    """Means over people whose pictures show a face, and the pictures that show none."""
    found = [mean_face(pictures) for pictures in drawn]
    shown = [i for i, vector in enumerate(found) if vector is not None]
    pictures, unseen, inputs = (
        np.stack(vectors)
        for vectors in (
            [found[i] for i in shown],
            [mean_face(subjects[i].held_out) for i in shown],
            [mean_face([subjects[i].input_photo]) for i in shown],
        )
    )
    against = pictures @ unseen.T  # means of unit vectors: means over pairs
    own = np.eye(len(shown), dtype=bool)
    missed = sum(vector is None for group in drawn for vector in embed_pictures(group))
    means = {"id_other": against[own].mean(), "id_input": (pictures * inputs).sum(1).mean(), "id_strangers": against[~own].mean()}
    se = against[own].std(ddof=1) / len(shown) ** 0.5
    return {**{key: float(value) for key, value in means.items()}, "id_other_se": float(se), "missed": missed}


if __name__ == "__main__":
    main(*sys.argv[1:])
