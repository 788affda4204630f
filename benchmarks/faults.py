"""What goes wrong on real machines, done on purpose: kills, full disks, damaged files, malformed adapters, and what
`fault_files` makes: odd pictures, names and labels, folders of killed runs.

    .venv/bin/python benchmarks/faults.py --kills 200 --files 1000 --damages 1000

Each function raises AssertionError where a promise does not hold, and returns how much was tried; `tests/test_faults.py`
runs the same with smaller numbers.
"""

import argparse
import json
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fault_adapters import refuse_malformed
from fault_basics import BASE, FORK, LAYOUT, filled, in_child, row_of, tree
from fault_damage import damage_everything
from fault_files import kill_results, name_files, read_odd_labels, read_odd_pictures
from w2wpp.base.build import BaseSizes, build_pipeline
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.diffusers import write_diffusers
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import save_points


def write(folder: Path, name: str, told: Connection) -> None:
    """Append rows one by one, and label each, for ever; tell after each that it is there."""
    torch.set_num_threads(1)  # see in_child
    data = WeightDataset.load(folder)
    told.send(-1)
    for i in range(10**9):
        data.append(row_of(name, i), [f"{name}-{i}"], [{"n": i}])
        data.set_labels({f"{name}-{i}": {"n": i, "labelled": True}})
        told.send(i)


def kill_writers(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill writers with SIGKILL, two at a time, each at a random moment.

    After every kill the dataset opens and verifies, holds what was acknowledged and at most one row of each writer that
    was not, each row with its own numbers, and can be appended to.
    """
    WeightDataset.create(folder, LAYOUT, BASE)
    draw, acknowledged, unacknowledged, torn = random.Random(seed), 0, 0, 0
    for first in range(0, kills, 2):
        begun = [(f"w{k}", *FORK.Pipe(duplex=False)) for k in range(first, min(kills, first + 2))]
        processes = [FORK.Process(target=write, args=(folder, name, sender)) for name, _, sender in begun]
        for process in processes:
            process.start()
        for _, receiver, sender in begun:
            sender.close()
            assert receiver.poll(120) and receiver.recv() == -1  # it has begun
        for process in processes:
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "the writer ended by itself"
        manifest = folder / "manifest.jsonl"
        torn += manifest.exists() and not manifest.read_bytes().endswith(b"\n")
        data = WeightDataset.load(folder)
        data.verify()
        for name, receiver, _ in begun:
            last = -1
            while receiver.poll():
                try:
                    last = receiver.recv()
                except EOFError:
                    break
            there = [i for i in range(last + 3) if f"{name}-{i}" in data.ids]
            assert there in (list(range(last + 1)), list(range(last + 2))), (name, last, there)
            for i in there:
                assert torch.equal(data.rows([data.index_of(f"{name}-{i}")]), row_of(name, i))
                assert data.labels[data.index_of(f"{name}-{i}")].get("labelled") or i > last
            acknowledged += last + 1
            unacknowledged += len(there) - last - 1
        data.append(row_of("after", first), [f"after-{first}"])
        assert WeightDataset.load(folder).ids[-1] == f"after-{first}"
        assert not (left := list((folder / "shards").glob(".*"))), f"of killed writers {left} stays"
    return {"kills": kills, "acknowledged": acknowledged, "written_before_the_acknowledgement": unacknowledged, "torn_lines": torn}


def with_file_limit(size: int, act: Callable[[], Any]) -> str:
    """What `act` says in a process whose files cannot grow beyond `size` bytes, as on a full disk."""

    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            act()
        except W2WError as error:
            return "error: " + str(error)
        return "it was written"

    return in_child(limited)


def full_disk(folder: Path, writers: dict[str, Callable[[], Any]]) -> dict[str, int]:
    """Run each writer with files that cannot grow beyond 0, a few, and many bytes.

    It says so in one line and leaves everything below `folder` as it was, or the limit did not matter.
    """
    tried = stopped = 0
    for name, act in writers.items():
        for size in (0, 1, 60, 500, 3000):
            before = tree(folder)
            said = with_file_limit(size, act)
            tried += 1
            assert not said.startswith("crash"), (name, size, said)
            if said.startswith("error"):
                stopped += 1
                assert "\n" not in said and tree(folder) == before, (name, size, said)
            else:
                break
    return {"tried": tried, "stopped": stopped}


def fill_the_disk(folder: Path) -> dict[str, int]:
    """Everything that w2w writes, on a disk that is full."""
    data = filled(folder / "data")
    weights, space = data.rows(), PcaSpace.fit(data, m=3)
    space.save(folder / "space.safetensors")
    save_points(folder / "points.safetensors", space.encode(weights), data.ids, space)
    write_kohya(folder / "kohya.safetensors", LAYOUT, weights[0])
    write_diffusers(folder / "diffusers.safetensors", LAYOUT, weights[0])
    write_peft(folder / "peft", LAYOUT, weights[0], "base")
    other = torch.randn(200, LAYOUT.d)
    return full_disk(
        folder,
        {
            "append": lambda: WeightDataset.load(folder / "data").append(other, [f"new-{i}" for i in range(200)]),
            "append a row": lambda: WeightDataset.load(folder / "data").append(other[:1], ["new" * 999], [{"long": "label" * 999}]),
            "labels": lambda: WeightDataset.load(folder / "data").set_labels({"r-1": {"long": "label" * 999}}),
            "space": lambda: space.truncate(2).save(folder / "space.safetensors"),
            "points": lambda: save_points(folder / "points.safetensors", torch.zeros(500, 3), ["x"] * 500, space),
            "kohya": lambda: write_kohya(folder / "kohya.safetensors", LAYOUT, other[0]),
            "diffusers": lambda: write_diffusers(folder / "diffusers.safetensors", LAYOUT, other[0]),
            "peft": lambda: write_peft(folder / "peft", LAYOUT, other[0], "other"),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--files", type=int, default=1000, help="malformed adapters")
    parser.add_argument("--damages", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    args = parser.parse_args()
    begun = time.monotonic()
    unet = build_pipeline(BaseSizes(image_size=16, unet_widths=(16, 32), norm_groups=8), names=("Ada Lovelace",)).unet
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("kills", "files", "damages", "disk", "pictures", "names", "labels", "results"):
            (Path(scratch) / name).mkdir()
        results = {
            "killed_writers": kill_writers(Path(scratch) / "kills" / "data", args.kills, args.seed),
            "malformed_adapters": refuse_malformed(Path(scratch) / "files", unet, args.files, seed=args.seed),
            "full_disk": fill_the_disk(Path(scratch) / "disk"),
            "damaged_files": damage_everything(Path(scratch) / "damages", args.damages, args.seed),
            "odd_pictures": read_odd_pictures(Path(scratch) / "pictures", 5 * args.files, args.seed),
            "hostile_names": name_files(Path(scratch) / "names", 20 * args.files, args.seed),
            "odd_labels": read_odd_labels(Path(scratch) / "labels", args.files, args.seed),
            "killed_results": kill_results(Path(scratch) / "results", args.kills // 4, args.seed),
        }
    about = {"command": command_line(), "versions": versions(), "cores": os.cpu_count(), "seconds": round(time.monotonic() - begun)}
    write_json(args.out, {**about, "results": results})
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
