"""Kill what trains on a Ray cluster, at random moments, and compare the dataset with that of one process.

    python benchmarks/ray_faults.py --kills 24

A cluster of two nodes on this machine, one worker on each. Workers, whole nodes and the command itself are killed with SIGKILL;
after its own death the command is run again on the same folder. Every dataset must be that of one process, byte for byte. The base is
a random pipeline of kilobytes: what is tried is the handing out, not the training. Writes benchmarks/results/ray_faults.json.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import w2wpp
from machine import machine
from w2wpp.adapters.status import read_status
from w2wpp.base.build import BaseSizes, build_pipeline
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_json, write_text
from w2wpp.common.runs import command_line
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.images import write_image

RESULTS = Path(__file__).parent / "results" / "ray_faults.json"
SIZES = BaseSizes(
    image_size=16, latent_channels=4, autoencoder_width=8, decoder_blocks=(1, 1), unet_widths=(16, 32), attention_heads=2,
    norm_groups=8, text_width=16, text_layers=1, prompt_tokens=8,
)  # fmt: skip
KINDS = ("worker", "worker", "worker", "worker", "node", "command")  # of which a kill is drawn
PATIENCE = 600  # seconds for anything to happen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--group", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(w2wpp.__file__).parents[1])  # for the nodes' processes
    with tempfile.TemporaryDirectory() as place:
        report = killed_often(Path(place), args)
    write_json(RESULTS, {"command": command_line(), "machine": machine("cpu"), **report})
    print(json.dumps(report, indent=2))


def killed_often(place: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train populations on a cluster until there were so many kills, and say what came of them."""
    build_pipeline(SIZES, names=("Ada Lovelace", "Grace Hopper")).save_pretrained(place / "base")
    write_faces(place / "faces", args.people)
    words = ["adapters", "train", place / "faces", "--base", place / "base", "--runs", place / "runs", "--device", "cpu"]
    words += ["--prior-weight", 0, "--steps", args.steps, "--group", args.group]
    os.environ["OMP_NUM_THREADS"] = "1"
    ended(command([*words, "--out", place / "one"]), "one process")
    whole, draw = contents(place / "one"), random.Random(args.seed)
    nodes, runs = Nodes(), list[dict[str, Any]]()
    try:
        while sum(sum(run["killed"].values()) for run in runs) < args.kills:
            out = place / f"{len(runs)}"
            killed = harmed([*words, "--out", out, "--ray", nodes.address, "--cores", 1], out, nodes, draw)
            told, made = read_status(out), contents(out)
            rows = Counter(name for line in made["manifest.jsonl"].splitlines() for name in [r["id"] for r in json.loads(line)["rows"]])
            run = {
                "killed": killed,
                "adapters": args.people,
                "lost": args.people - len(rows),
                "twice": sum(n - 1 for n in rows.values()),
                "failed": len(told["failed"]),
                "tried_again": told.get("tried_again", {}),
                "equal": made == whole,
            }
            runs.append(run)
            print(run, file=sys.stderr)
    finally:
        nodes.close()
    return {"people": args.people, "group": args.group, "seed": args.seed, "runs": runs}


def harmed(words: list[Any], out: Path, nodes: "Nodes", draw: random.Random) -> dict[str, int]:
    """Run a training to its end, with two to five kills on the way; how many of each kind there were."""
    killed: Counter[str] = Counter()
    plan = [draw.choice(KINDS) for _ in range(draw.randint(2, 5))]
    driver = command(words)
    for kind in plan:
        was, after = done(out), draw.uniform(0.0, 3.0)
        until(lambda: driver.poll() is not None or (len(nodes.workers()) >= 1 and done(out) > was), driver)  # noqa: B023
        time.sleep(after)
        if driver.poll() is not None:
            break
        if kind == "command":
            driver.kill()
            driver.wait()
            driver = command(words)
        elif kind == "node":
            nodes.replace()
        elif there := nodes.workers():
            draw.choice(there).kill()
        else:
            continue
        killed[kind] += 1
    ended(driver, "the training")
    return dict(killed)


class Nodes:
    """A Ray cluster of two nodes with a core each, on this machine."""

    def __init__(self) -> None:
        from w2wpp.scale import ray_pool  # sets what Ray reads from the environment  # noqa: F401, I001
        from ray.cluster_utils import Cluster

        self._about = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=self._about)
        self._cluster.add_node(**self._about)
        self.address = self._cluster.address

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self._cluster.list_all_nodes()]
        return [child for raylet in raylets for child in raylet.children() if child.name().startswith("ray::Worker")]

    def replace(self) -> None:
        """Kill the node that is not the head, and start another."""
        self._cluster.remove_node(self._cluster.list_all_nodes()[-1], allow_graceful=False)
        self._cluster.add_node(**self._about)

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


def command(words: list[Any]) -> "subprocess.Popen[bytes]":
    """`w2w` with these words, begun."""
    return subprocess.Popen([sys.executable, "-c", "from w2wpp.cli import main; main()", *map(str, words)], stdout=subprocess.DEVNULL)


def ended(process: "subprocess.Popen[bytes]", what: str) -> None:
    """Wait for the end. Raises AssertionError unless it ended well."""
    assert process.wait(PATIENCE) == 0, f"{what} ended with code {process.returncode}"


def until(true: Callable[[], object], driver: "subprocess.Popen[bytes]") -> None:
    """Wait for something. Raises AssertionError if it does not come, with the process ended."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            driver.kill()
            raise AssertionError("nothing happened")
        time.sleep(0.05)


def done(out: Path) -> int:
    """How many adapters the status file names."""
    try:
        return int(read_status(out)["done"])
    except W2WError:
        return 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset."""
    return {name: (folder / name).read_bytes() for name in WeightDataset.load(folder).files}


def write_faces(folder: Path, people: int) -> None:
    """Noise in place of faces, a photo for each person."""
    lines = []
    for i in range(people):
        name = f"Person_{i:04}"
        write_image(folder / name / "0.png", np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8))
        lines.append({"person": name, "photo": "0.jpg", "size": 16, "status": "ok", "labels": {"split": "train"}})
    write_text(folder / "faces.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
