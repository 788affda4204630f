"""What 1,000,000 adapters would take, from what was measured and from what is said on the command line.

    python benchmarks/million.py

Nothing is measured here: committed results are scaled to the number of adapters, and the terms are written beside them. Rates of GPUs
are arguments, since no GPU is on the machines that the other results come from. Writes benchmarks/results/million.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line

FOLDER = Path(__file__).parent / "results"
WIDTHS = {"tiny-faces": 3_328, "tiny-faces, attention layers": 17_920, "Stable Diffusion 1.5": 99_648}  # numbers in an adapter
# Adapters an hour of one GPU, and how that is known.
RATES = (
    ("tiny-faces, attention layers", 104_493.0, "ours, NVIDIA H100 (docs/research/tiny-faces.md)"),
    ("Stable Diffusion 1.5", 65_000 / 4_000, "the published dataset: one launch for each person, some 65,000 in 4,000 hours"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=1_000_000)
    parser.add_argument("--price", type=float, default=2.5, help="dollars for an hour of a GPU")
    parser.add_argument("--processor-price", type=float, default=0.05, help="dollars for an hour of a core")
    args = parser.parse_args()
    n = args.adapters
    pca, simulation = read_json(FOLDER / "pca_large.json"), read_json(FOLDER / "ray_simulation.json")
    ours = next(run for run in pca["runs"] if run["way"] == "ours")
    training = [
        {"base": base, "known_from": known, "gpu_hours": n / rate, "dollars": n / rate * args.price, "adapters_per_hour": rate}
        for base, rate, known in RATES
    ]
    writer, plain = simulation["writer"], simulation["runs"][0]
    hours = ours["seconds"] * n / ours["n"] / 3600
    about: dict[str, Any] = {
        "adapters": n,
        "price": args.price,
        "training": training,
        "bytes": [{"base": base, "d": d, "float16_gb": n * d * 2 / 1e9, "int8_gb": n * d / 1e9} for base, d in WIDTHS.items()],
        "pca": {
            "n": ours["n"], "d": ours["d"], "m": ours["m"], "cores": pca["machine"]["cores"], "hours": hours,
            "gb_per_pass": n * ours["d"] * 2 / 1e9, "dollars": hours * pca["machine"]["cores"] * args.processor_price,
        },
        "writer": {"d": writer["d"], "adapters_per_hour": writer["people_per_hour"], "hours": n / writer["people_per_hour"]},
        "driver_gib": plain["driver_mib"] * n / simulation["people"] / 1024,
        "gpus_that_fill_the_writer": writer["people_per_hour"] / max(row["adapters_per_hour"] for row in training),
    }  # fmt: skip
    write_json(FOLDER / "million.json", {"command": command_line(), **about})
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
