"""The judge against the figures it was published to us with: FaceNet's cosines on real photos of train people.

    python benchmarks/judge.py faces64

Takes the first two photos of people of the train split, by name. Writes benchmarks/results/judge.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from w2wpp.alignment import AlignedFaces
from w2wpp.faces import embed_pictures
from w2wpp.files import write_json

# ../shared/faces/README.md: 60 people with two photos each, reduced to 64x64.
REFERENCE = {"same": 0.698, "different": 0.112, "different_sd": 0.146, "rank1": 0.949}
RESULTS = Path(__file__).parent / "results" / "judge.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", help="what `w2w faces align` made")
    parser.add_argument("--people", type=int, default=60)
    args = parser.parse_args()
    faces = AlignedFaces.open(args.faces)
    people = [person for person in faces.of_split("train") if len(faces.people[person]) > 1][: args.people]
    pairs = [embed_pictures(faces.photos(person)[:2]) for person in people]
    found = np.stack([pair for pair in pairs if all(vector is not None for vector in pair)])  # [n, 2, 512]
    own = np.eye(len(found), dtype=bool)
    across = found[:, 0] @ found[:, 1].T
    strangers = np.concatenate([(found[:, i] @ found[:, j].T)[~own] for i, j in ((0, 0), (0, 1), (1, 1))])
    report = {
        "command": " ".join(["python benchmarks/judge.py", *sys.argv[1:]]),
        "people": len(people),
        "faces": sum(vector is not None for pair in pairs for vector in pair),
        "same": across[own].mean(),
        "different": strangers.mean(),
        "different_sd": strangers.std(),
        "rank1": (across.argmax(1) == np.arange(len(found))).mean(),
    }
    write_json(
        RESULTS, {**{key: value if isinstance(value, str | int) else float(value) for key, value in report.items()}, "reference": REFERENCE}
    )
    print(json.dumps(json.loads(RESULTS.read_text()), indent=2))


if __name__ == "__main__":
    main()
