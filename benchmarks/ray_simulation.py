"""What handing out costs at a size that no machine here has: 100,000 people on 1,000 workers that are simulated.

    python benchmarks/ray_simulation.py

The schedule, the status file and the writer of the dataset are the real ones, and the real time that they take passes on the simulated
clock too; workers are a stub that takes a known time for each group. Each case runs in a process of its own, so that its memory can be
told. Then the writer alone, with rows as wide as those of Stable Diffusion 1.5. Writes benchmarks/results/ray_simulation.json.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from machine import machine
from ray_faults import SIZES
from sd15_files import TRUE, layout_of
from simulated import Luck, SimulatedPool
from w2wpp.adapters.group_training import Group, Outcome
from w2wpp.adapters.population import train_population
from w2wpp.adapters.status import read_status
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.build import build_pipeline
from w2wpp.base.model import BaseModel
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.scale.schedule import Terms
from w2wpp.scale.training import Trainers

RESULTS = Path(__file__).parent / "results" / "ray_simulation.json"
CASES: list[dict[str, Any]] = [
    {"group": 16, "seconds_per_person": 40.0},
    {"group": 4, "seconds_per_person": 40.0},
    {"group": 16, "seconds_per_person": 4.0},
    {"group": 16, "seconds_per_person": 40.0, "dies": 0.002, "slow": 0.01},
]


class StubPool(SimulatedPool):
    """Simulated workers whose results are rows of noise."""

    d = 0

    def fetch(self, members: Group) -> Outcome:
        """Rows for a group."""
        labels = [{"person": m.person, "split": "train", "half": "", "photos": 4, "trained_on": "sha256 0123456789abcdef"} for m in members]
        return Outcome(torch.randn(len(members), self.d), [m.id for m in members], labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(simulated(args.people, args.workers, args.case)))
        return
    runs = []
    for case in CASES:
        command = [sys.executable, __file__, "--people", str(args.people), "--workers", str(args.workers), "--case", json.dumps(case)]
        runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(runs[-1], file=sys.stderr)
    about = {"people": args.people, "workers": args.workers, "runs": runs, "writer": writer()}
    write_json(RESULTS, {"command": command_line(), "machine": machine("cpu"), **about})
    print(json.dumps(about, indent=2))


def simulated(people: int, workers: int, case: dict[str, Any]) -> dict[str, Any]:
    """One case: people an hour on the simulated clock beside the ideal, where all workers are busy to the end."""
    each = case["seconds_per_person"]

    def seconds(members: Group, draw: random.Random) -> float:
        return len(members) * each * draw.uniform(0.9, 1.1)

    pool = StubPool(workers, seconds, Luck(dies=case.get("dies", 0.0), slow=case.get("slow", 0.0)), start=0.0, charged=True)
    options = AdapterOptions(prior_weight=0.0)
    names = [f"person-{i:07}" for i in range(people)]
    faces = AlignedFaces(Path(), 64, {name: ["0"] for name in names}, {(name, "0"): {"split": "train"} for name in names})
    engine = Trainers(pool, Terms())
    with tempfile.TemporaryDirectory() as place:
        build_pipeline(SIZES).save_pretrained(f"{place}/base")
        base = BaseModel.load(f"{place}/base", "cpu")
        pool.d = options.layout_of(base).d
        before, start = peak_mib(), time.perf_counter()
        train_population(base, faces, names, f"{place}/out", options, group=case["group"], engine=engine)
        real = time.perf_counter() - start
        told = read_status(f"{place}/out")
        assert told["done"] == people and not told["failed"]
    ideal = people * each / workers
    return {
        **case,
        "hours": pool.now() / 3600,
        "people_per_hour": people * 3600 / pool.now(),
        "of_the_ideal": ideal / pool.now(),
        "tried_again": dict(engine.again),
        "driver_ms_per_group": 1000 * real / (-(-people // case["group"])),
        "driver_busy": real / pool.now(),
        "driver_mib": peak_mib() - before,
    }


def writer(group: int = 16, groups: int = 30) -> dict[str, Any]:
    """How long the writer takes for a group of rows as wide as those of Stable Diffusion 1.5, kept in 16 bits."""
    layout, taken = layout_of(TRUE), []
    with tempfile.TemporaryDirectory() as place:
        data = WeightDataset.create(place, layout, "0123456789abcdef")
        for i in range(groups):
            rows = torch.randn(group, layout.d)
            start = time.perf_counter()
            data.append(rows, [f"{i}-{k}" for k in range(group)], None, torch.float16)
            taken.append(time.perf_counter() - start)
    each = median(taken)
    return {"group": group, "d": layout.d, "ms_per_group": 1000 * each, "people_per_hour": group * 3600 / each}


def peak_mib() -> float:
    """The most memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
