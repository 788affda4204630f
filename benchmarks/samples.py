"""Are models drawn from a space people? Faces found, consistent within a model, different between models.

    python benchmarks/samples.py --models 100 --space anchored512.safetensors

Draws models from PCA-w2w, VAE-w2w as published (both m = 128, fitted here on the embedded adapters), the embedded anchored
VAE, and any other --space; beside them as many training adapters of different people, all at the same image seeds. The bars:
faces in 95% of pictures; within at least 0.8 of the training adapters'; between at most theirs and 0.05.
Writes benchmarks/results/samples.json.
"""

import argparse
from pathlib import Path
from typing import Any

from machine import machine
from w2wpp.base.model import BaseModel
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.distinctness import drawn_and_training
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

PROMPT = "photo of sks person"
RESULTS = Path(__file__).parent / "results" / "samples.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=4, help="of each model")
    parser.add_argument("--solver-steps", type=int, default=15)
    parser.add_argument("--space", type=Path, action="append", default=[], help="a fitted space to draw from as well")
    args = parser.parse_args()
    base, dataset = BaseModel.load("tiny-faces"), WeightDataset.load("tiny-faces")
    spaces: dict[str, Space] = {"PCA-w2w, m = 128": PcaSpace.fit(dataset, m=128)}
    spaces["VAE-w2w as published, m = 128"] = VaeSpace.fit(dataset, VaeOptions(m=128, widths=(1024, 1024, 512)))
    spaces["anchored VAE, m = 128 (embedded)"] = Space.load("tiny-faces")
    for file in args.space:
        space = Space.load(file)
        spaces[f"{space.kind}, m = {space.m}"] = space
    rows: dict[str, Any] = {}
    for name, space in spaces.items():
        found = drawn_and_training(base, space, dataset, PROMPT, range(args.pictures), models=args.models, steps=args.solver_steps)
        rows.setdefault("training adapters", found["training"])
        rows[name] = found["drawn"] | {"bars": bars(found["drawn"], found["training"])}
        print(name, rows[name], flush=True)
    write_json(RESULTS, {"command": command_line(), "versions": versions(), "machine": machine(), "seed": 0, "rows": rows})


def bars(drawn: dict[str, Any], training: dict[str, Any]) -> dict[str, bool]:
    """Which of the three bars hold."""
    return {
        "faces": drawn["missed"] <= 0.05 * drawn["pictures"],
        "consistent": (drawn["within"] or 0) >= 0.8 * training["within"],
        "different": (drawn["between"] or 1) <= training["between"] + 0.05,
    }


if __name__ == "__main__":
    main()
