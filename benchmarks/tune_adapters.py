"""How the adapter options of the first edition of `tiny-faces` were chosen: ID Score on val people, one photo each to learn from.

    python benchmarks/tune_adapters.py faces64 [base]

Prints, for each set of options, the ID Score against photos that were not seen and against other people's, and the
pictures without a face. Writes benchmarks/results/tune_adapters.json.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2wpp.adapters.portraits import photo_latents
from w2wpp.adapters.train import AdapterOptions, prior_latents, train_adapters
from w2wpp.base.model import BaseModel
from w2wpp.common.files import read_json, write_json
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Embedding, embed_pictures
from w2wpp.photos.images import Image

PICTURES, GUIDANCE, SOLVER_STEPS, FIRST_SEED, LEAST_PHOTOS = 3, 2.0, 15, 1000, 3
RESULTS = Path(__file__).parent / "results" / "tune_adapters.json"

CROSS = ("attn2.to_q", "attn2.to_v")
START = AdapterOptions(
    alpha=9.0,
    targets=CROSS,
    prompt="photo of sks person",
    prior_prompt="photo of a person",
    prior_weight=0.25,
    prior_pictures=64,
    steps=60,
    batch=2,
    lr=2e-2,
    final_lr=0.0,
)
EVERY = (*(f"to_{part}" for part in ("q", "k", "v", "out.0")), "ff.net.0.proj", "ff.net.2")
SECOND = replace(START, steps=90, batch=3, prior_weight=0.1)
KEYS = replace(SECOND, targets=("attn2.to_k", "attn2.to_v"))
WHOLE = replace(SECOND, targets=EVERY, lr=1e-2)
TRIED = [
    START,
    replace(START, steps=120),
    replace(START, targets=("to_q", "to_v")),
    replace(START, targets=("attn2.to_k", "attn2.to_v")),
    replace(START, lr=4e-2),
    SECOND,
    replace(START, targets=EVERY, lr=1e-2),
    # Second round: what was ahead, on more of cross-attention.
    KEYS,
    replace(SECOND, targets=("attn2.to_k", "attn2.to_v", "attn2.to_out.0")),
    replace(SECOND, targets=("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"), lr=1e-2),
    # What rank, every layer and longer training cost and give, at the same scale alpha / rank.
    replace(KEYS, rank=2, alpha=18.0),
    replace(KEYS, rank=4, alpha=36.0),
    WHOLE,
    replace(WHOLE, steps=360),
    replace(WHOLE, steps=360, rank=4, alpha=36.0, lr=5e-3),
    replace(WHOLE, steps=360, lr=3e-3),
    replace(WHOLE, steps=360, lr=1.5e-3),
    replace(KEYS, steps=360, lr=5e-3),
]


def main(folder: str, source: str = "tiny-faces") -> None:
    base, faces = BaseModel.load(source), AlignedFaces.load(folder)
    people = [person for person in faces.of_split("val") if len(faces.people[person]) >= LEAST_PHOTOS]
    photos = [faces.photos(person) for person in people]
    unseen = mean_faces([own[(len(own) + 1) // 2 :] for own in photos])
    latents = [photo_latents(base, own[:1], person) for person, own in zip(people, photos, strict=True)]
    seeds = [FIRST_SEED + i for _ in people for i in range(PICTURES)]
    prior = prior_latents(base, START)
    command = " ".join(["python benchmarks/tune_adapters.py", folder, source])
    about = {"command": command, "base_id": base.id, "people": len(people), "pictures": PICTURES}
    rows = rows_so_far(RESULTS, about)
    done = [AdapterOptions.of(row["options"]) for row in rows]
    for options in TRIED:
        if options in done:
            continue
        layout = options.layout_of(base)
        trained = train_adapters(base, layout, latents, people, options, prior, "train")
        adapters = trained.weights.repeat_interleave(PICTURES, 0)
        drawn = base.generate(options.prompt, seeds, layout=layout, weights=adapters, guidance=GUIDANCE, steps=SOLVER_STEPS, batch=120)
        groups = [drawn[i : i + PICTURES] for i in range(0, len(drawn), PICTURES)]
        scores = mean_faces(groups) @ unseen.T  # means of unit vectors: means over pairs
        own = np.eye(len(people), dtype=bool)
        missed = sum(vector is None for vector in embed_pictures(drawn))
        row = {"id": scores[own].mean(), "se": scores[own].std() / len(people) ** 0.5, "others": scores[~own].mean(), "missed": missed}
        rows.append({key: float(value) for key, value in row.items()} | {"d": layout.d, "options": asdict(options)})
        print({key: value for key, value in rows[-1].items() if key != "options"}, options, flush=True)
        write_json(RESULTS, {**about, "rows": rows})


def rows_so_far(results: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """What an interrupted run of the same command has written."""
    kept = read_json(results) if results.exists() else {}
    return kept["rows"] if {key: kept.get(key) for key in about} == about else []


def mean_faces(people: Sequence[Sequence[Image]]) -> np.ndarray:
    """A row a person [n, 512]; zeros for one whose pictures show no face."""
    found = [mean_face(pictures) for pictures in people]
    return np.stack([np.zeros(512) if vector is None else vector for vector in found])


def mean_face(pictures: Sequence[Image]) -> Embedding:
    """The mean of the pictures' embeddings [512]; None where none shows a face."""
    vectors = [vector for vector in embed_pictures(pictures) if vector is not None]
    return np.mean(vectors, axis=0) if vectors else None


if __name__ == "__main__":
    main(*sys.argv[1:])
