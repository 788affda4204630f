"""PCA of a weight dataset on disk: ours against scikit-learn and torch, time, peak memory and variance kept.

    python benchmarks/pca.py --sizes 4000x20000x200 --folder pca-bench
    python benchmarks/pca.py --sizes 64974x99648x1000 --ways ours,sklearn-incremental --memory 3 --limit 240 --out pca_large.json
    python benchmarks/pca.py --sizes 8192x24912x250,16384x24912x250,8192x49824x250,8192x24912x500 --ways ours --out pca_growth.json

Generates adapters (principal variances falling as 1/k, and noise) in the dataset format, in bf16: n rows of d numbers.
Then, each in a process of its own, in turn, from the files to m components of the standardised table; seconds are by the
clock, and of the processor (the same with one thread on an idle machine; what counts on a busy one):
  ours                 PcaSpace.fit, which chooses its solver and reads by blocks, in --memory GiB
  ours-exact           its exact solver
  sklearn-randomized   PCA(svd_solver="randomized"), its defaults, on the table in memory
  sklearn-incremental  IncrementalPCA, batch by batch; past --limit seconds its time is extrapolated from the batches done
  torch-lowrank-K      torch.pca_lowrank(niter=K) on the table in memory
One that takes the table in memory is not started where that needs more memory than the machine has.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import sklearn
import torch
from sklearn.decomposition import PCA, IncrementalPCA
from torch import Tensor

from machine import machine, memory_gib
from w2wpp.common.files import write_json
from w2wpp.common.precision import fast_dtype
from w2wpp.common.runs import command_line, versions
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout, Matrix
from w2wpp.spaces.pca import PcaSpace

WAYS = ("ours", "ours-exact", "sklearn-randomized", "sklearn-incremental", "torch-lowrank-4", "torch-lowrank-8", "torch-lowrank-12")
SHARD, DIRECTIONS = 512, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="4000x20000x200", help="n x d x m, with commas between")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB, for ours")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600, help="seconds that IncrementalPCA may take")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--folder", type=Path, default=Path("pca-bench"))
    parser.add_argument("--out", default="pca.json", help="name in benchmarks/results")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [[int(number) for number in size.split("x")] for size in args.sizes.split(",")]
    if args.worker:
        n, d, m = sizes[0]
        print(json.dumps(work(args.worker, folder_of(args.folder, n, d), m, args)))
        return
    about = {"command": command_line(), "versions": {**versions(), "scikit-learn": sklearn.__version__}}
    runs = []
    for n, d, m in sizes:
        begun = time.perf_counter()
        generate(folder_of(args.folder, n, d), n, d)
        print(f"generated in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        for _ in range(args.rounds):
            for way in args.ways.split(","):
                runs.append({"n": n, "d": d, "m": m, "way": way, **started(way, n, d, m)})
                print(runs[-1], file=sys.stderr)
                write_json(Path(__file__).parent / "results" / args.out, {**about, "machine": machine(), "runs": runs})


def started(way: str, n: int, d: int, m: int) -> dict[str, object]:
    """What a way found, in a process of its own."""
    table = 4 * n * d / 2**30
    if way not in ("ours", "ours-exact", "sklearn-incremental") and 2 * table > memory_gib():
        return {"ended": f"not started: the table and a copy take {2 * table:.0f} GiB in float32"}
    command = [sys.executable, __file__, *sys.argv[1:], "--sizes", f"{n}x{d}x{m}", "--worker", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found: dict[str, object] = json.loads(done.stdout) if done.returncode == 0 else {"ended": f"exit {done.returncode}"}
    return found


def work(way: str, folder: Path, m: int, args: argparse.Namespace) -> dict[str, float]:
    data = WeightDataset.load(folder)
    start, before = time.perf_counter(), time.process_time()
    found: dict[str, float] = {}
    if way.startswith("ours"):
        space = PcaSpace.fit(data, m=m, solver="exact" if way == "ours-exact" else "auto", memory=args.memory)
        kept = float(space.explained_variance_ratio.double().sum())
    elif way == "sklearn-incremental":
        kept, done = incremental(data, m, start + args.limit)
        if done < len(data):
            found = {"rows_done": done, "extrapolated_seconds": (time.perf_counter() - start) * len(data) / done}
    else:
        x = data.rows()
        x = x.sub_(x.mean(0)).div_(x.std(0))
        if way == "sklearn-randomized":
            kept = float(PCA(m, svd_solver="randomized", random_state=0).fit(x.numpy()).explained_variance_ratio_.sum())
        else:
            found_values = torch.pca_lowrank(x, q=m, center=False, niter=int(way.split("-")[-1]))[1]
            kept = float(found_values.double().square().sum()) / ((len(data) - 1) * data.d)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = used.ru_utime + used.ru_stime - before
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": used.ru_maxrss / 2**20, "explained_variance": kept, **found}


def incremental(data: WeightDataset, m: int, until: float) -> tuple[float, int]:
    """Variance kept, and rows taken in. IncrementalPCA does not standardise: a first pass finds the mean and deviation."""
    total = squares = torch.zeros(data.d, dtype=torch.float64)
    for block in data.blocks(SHARD):
        total, squares = total + block.double().sum(0), squares + block.double().square().sum(0)
    mean = total / len(data)
    deviation = ((squares - len(data) * mean.square()) / (len(data) - 1)).sqrt()
    fitted = IncrementalPCA(m)
    done = 0
    for block in standardised(data, max(m, SHARD), mean.float(), deviation.float()):
        if len(block) >= m:  # it takes no smaller batch
            fitted.partial_fit(block.numpy())
        done += len(block)
        if time.perf_counter() > until:
            break
    return float(fitted.explained_variance_ratio_.sum()), done


def standardised(data: WeightDataset, size: int, mean: Tensor, deviation: Tensor) -> Iterator[Tensor]:
    for block in data.blocks(size):
        yield block.sub_(mean).div_(deviation)


def folder_of(folder: Path, n: int, d: int) -> Path:
    return folder / f"{n}x{d}"


def layout_of(d: int) -> Layout:
    return Layout((Matrix("layer.lora_A.weight", (1, d - 1)), Matrix("layer.lora_B.weight", (1, 1))), 1, 1.0, ("layer",))


def generate(folder: Path, n: int, d: int) -> None:
    """Rows x = 0.01 (sum_k a_k u_k / sqrt(k) + e) with a, u and e standard normal; those that are there already stay."""
    data = WeightDataset.load_or_create(folder, layout_of(d), "0" * 16, {"generated": [n, d]})
    directions = torch.randn(DIRECTIONS, d, generator=generator(0, "directions")) / (1 + torch.arange(DIRECTIONS))[:, None].sqrt()
    fast = fast_dtype()
    directions = directions.to(fast)
    for start in range(len(data), n, SHARD):
        rows = min(SHARD, n - start)
        draw = generator(0, "rows", start)
        weights = torch.randn(rows, d, generator=draw)
        weights += torch.randn(rows, DIRECTIONS, generator=draw).to(fast) @ directions
        data.append(weights.mul_(0.01), [str(start + i) for i in range(rows)], None, torch.bfloat16)


if __name__ == "__main__":
    main()
