"""PCA of a weight dataset on disk: ours against scikit-learn and torch, time and peak memory.

    python benchmarks/pca.py --n 4000 --d 20000 --m 200 --folder /tmp/pca-bench

Generates adapters (principal variances falling as 1/k, and noise) in the dataset format, in bf16. Then, each in a process of
its own, in turn, from the files to the components of the standardised table:
  ours-auto           PcaSpace.fit, which chooses by --memory
  ours-streaming      the solver for what does not fit
  sklearn-randomized  PCA(svd_solver="randomized") on the table in memory
  sklearn-incremental IncrementalPCA, batch by batch
  torch-lowrank       torch.pca_lowrank(niter=4) on the table in memory
A way that ends without a result (killed for memory, or past --limit seconds) is reported as such.
Writes benchmarks/results/pca.json.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import sklearn
import torch
from sklearn.decomposition import PCA, IncrementalPCA

from w2wpp.files import write_json
from w2wpp.layout import Layout, Matrix
from w2wpp.seeds import generator
from w2wpp.spaces.pca import PcaSpace
from w2wpp.weights import WeightDataset

WAYS = ("ours-auto", "ours-streaming", "sklearn-randomized", "sklearn-incremental", "torch-lowrank")
RESULTS = Path(__file__).parent / "results" / "pca.json"
SHARD, DIRECTIONS = 512, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--d", type=int, default=20_000)
    parser.add_argument("--m", type=int, default=200)
    parser.add_argument("--memory", type=float, default=2.0, help="GiB, for ours")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800, help="seconds a way may take")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--folder", type=Path, default=Path("pca-bench"))
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args)))
        return
    generate(args)
    rounds = []
    for _ in range(args.rounds):
        for way in args.ways.split(","):
            command = [sys.executable, __file__, "--worker", way, *sys.argv[1:]]
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=args.limit)
                found = json.loads(done.stdout) if done.returncode == 0 else {"ended": f"exit {done.returncode}"}
            except subprocess.TimeoutExpired:
                found = {"ended": f"not done after {args.limit:g} s"}
            rounds.append({"way": way, **found})
            print(rounds[-1], file=sys.stderr)
    report = {
        "command": "python benchmarks/pca.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__},
        "n": args.n,
        "d": args.d,
        "m": args.m,
        "rounds": rounds,
    }
    write_json(RESULTS, report)


def layout_of(d: int) -> Layout:
    return Layout((Matrix("layer.lora_A.weight", (1, d - 1)), Matrix("layer.lora_B.weight", (1, 1))), 1, 1.0, ("layer",))


def generate(args: argparse.Namespace) -> None:
    data = WeightDataset.open_or_create(args.folder, layout_of(args.d), "0" * 16, {"generated": [args.n, args.d]})
    directions = torch.randn(DIRECTIONS, args.d, generator=generator(0, "directions")) / (1 + torch.arange(DIRECTIONS))[:, None].sqrt()
    for start in range(len(data), args.n, SHARD):
        rows = min(SHARD, args.n - start)
        draw = generator(0, "rows", start)
        weights = torch.randn(rows, DIRECTIONS, generator=draw) @ directions + torch.randn(rows, args.d, generator=draw)
        data.append(0.01 * weights, [str(start + i) for i in range(rows)], None, torch.bfloat16)


def work(args: argparse.Namespace) -> dict[str, float]:
    data = WeightDataset.open(args.folder)
    start = time.perf_counter()
    if args.worker.startswith("ours"):
        solver = args.worker.removeprefix("ours-")
        space = PcaSpace.fit(data, m=args.m, solver=solver, memory=args.memory)  # type: ignore[arg-type]
        kept = float(space.explained_variance_ratio.sum())
    elif args.worker == "sklearn-incremental":
        kept = incremental(data, args.m)
    else:
        x = data.rows()
        x = x.sub_(x.mean(0)).div_(x.std(0))
        total = float(x.square().sum())
        if args.worker == "torch-lowrank":
            kept = float(torch.pca_lowrank(x, q=args.m, center=False, niter=4)[1].square().sum()) / total
        else:
            kept = float(PCA(args.m, svd_solver="randomized", random_state=0).fit(x.numpy()).explained_variance_ratio_.sum())
    return {
        "seconds": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "explained_variance": kept,
    }


def incremental(data: WeightDataset, m: int) -> float:
    """IncrementalPCA does not standardise: a first pass finds the mean and deviation."""
    size = max(m, SHARD)
    total = squares = torch.zeros(data.d, dtype=torch.float64)
    for block in data.blocks(size):
        total, squares = total + block.double().sum(0), squares + block.double().square().sum(0)
    mean = total / len(data)
    deviation = ((squares - len(data) * mean.square()) / (len(data) - 1)).sqrt()
    fitted = IncrementalPCA(m)
    for block in data.blocks(size):
        if len(block) >= m:  # it takes no smaller batch
            fitted.partial_fit(((block - mean) / deviation).float().numpy())
    return float(fitted.explained_variance_ratio_.sum())


if __name__ == "__main__":
    main()
