"""Reading a weight dataset against a plain read of the same bytes: rows in order, scattered rows, blocks of columns.

    python benchmarks/reading.py --folder reading-bench

Generates n rows of d numbers in bf16, shards of 512. In turn, in one process, `rounds` times each: our reading, and
`os.preadv` of the same bytes of the same files, both into memory that is allocated anew; from the page cache, and
after the system was asked to drop the files from it (posix_fadvise). Writes benchmarks/results/reading.json: for each
the median of bytes a second, and of the ratio of the two, by the clock and in the processor's time.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from machine import machine
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout, Matrix

SHARD, BLOCK = 512, 512
RESULTS = Path(__file__).parent / "results" / "reading.json"
KEPT = torch.bfloat16

Piece = tuple[int, int, int, int]  # first row, rows, first column, columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--d", type=int, default=99_648)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("reading-bench"))
    args = parser.parse_args()
    data = generated(args.folder, args.n, args.d)
    scattered = torch.randperm(args.n, generator=generator(0, "scattered"))[:BLOCK].tolist()
    wanted: dict[str, list[Piece]] = {
        "rows in order": [(start, BLOCK, 0, args.d) for start in range(0, args.n, BLOCK)],
        "scattered rows": [(row, 1, 0, args.d) for row in scattered],
        "columns, 16,384 at a time": [(0, args.n, start, 16_384) for start in range(0, args.d - 16_384, 16_384)],
        "columns, 2,048 at a time": [(0, args.n, start, 2048) for start in range(0, 8 * 2048, 2048)],
    }
    results = {}
    for name, pieces in wanted.items():
        for cold in (False, True):
            found = compared(data, pieces, cold, args.rounds)
            results[f"{name}, {'cold' if cold else 'warm'}"] = found
            print(name, "cold" if cold else "warm", json.dumps(found))
    about = {"command": command_line(), "versions": versions(), "machine": machine()}
    write_json(RESULTS, {**about, "n": args.n, "d": args.d, "rounds": args.rounds, "results": results})


def compared(data: WeightDataset, pieces: list[Piece], cold: bool, rounds: int) -> dict[str, float]:
    """Median gigabytes a second of both, and the median ratio, ours over plain."""
    starts = offsets(data)
    ours: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        for times, read in ((plain, plain_read), (ours, our_read)) if turn % 2 else ((ours, our_read), (plain, plain_read)):
            if cold:
                dropped(data)
            taken = timed(lambda read=read: read(data, starts, pieces))
            if turn:  # the first round warms up
                times.append(taken)
    size = sum(rows * columns for _, rows, _, columns in pieces) * KEPT.itemsize / 1e9
    return {
        "ours_gb_per_second": round(size / statistics.median(seconds for seconds, _ in ours), 2),
        "plain_gb_per_second": round(size / statistics.median(seconds for seconds, _ in plain), 2),
        "ratio": round(statistics.median(b / a for (a, _), (b, _) in zip(ours, plain, strict=True)), 3),
        "ratio_of_processor_time": round(statistics.median(b / a for (_, a), (_, b) in zip(ours, plain, strict=True)), 3),
    }


def our_read(data: WeightDataset, starts: list[tuple[Path, int]], pieces: list[Piece]) -> None:
    if pieces[0][1] == 1:
        data.rows([row for row, *_ in pieces], KEPT)
        return
    for first, rows, column, columns in pieces:
        if columns == data.d:
            data.rows(range(first, first + rows), KEPT)
        else:
            data.columns(column, column + columns, dtype=KEPT)


def plain_read(data: WeightDataset, starts: list[tuple[Path, int]], pieces: list[Piece]) -> None:
    """The same bytes, into a new buffer for what `our_read` returns at once."""
    if pieces[0][1] == 1:
        out = torch.empty(len(pieces), data.d, dtype=KEPT).view(torch.uint8).numpy()
        files = [(path.open("rb", buffering=0), start) for path, start in starts]
        for place, (row, *_) in enumerate(pieces):
            file, start = files[row // SHARD]
            os.preadv(file.fileno(), [out[place].data], start + row % SHARD * data.d * KEPT.itemsize)
        for file, _ in files:
            file.close()
        return
    for first, rows, column, columns in pieces:
        buffer = torch.empty(rows, columns, dtype=KEPT).view(torch.uint8).numpy()
        for shard in range(first // SHARD, -(-(first + rows) // SHARD)):
            path, start = starts[shard]
            at = shard * SHARD - first
            with path.open("rb", buffering=0) as file:
                if columns == data.d:
                    os.preadv(file.fileno(), [buffer[at : at + SHARD].reshape(-1).data], start)
                    continue
                for i in range(min(SHARD, rows - at)):
                    os.preadv(file.fileno(), [buffer[at + i].data], start + (i * data.d + column) * KEPT.itemsize)


def offsets(data: WeightDataset) -> list[tuple[Path, int]]:
    """Each shard and where its numbers begin."""
    return [(path, path.stat().st_size - shape_of(path) * data.d * KEPT.itemsize) for path in shards(data)]


def shape_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.get_slice("weights").get_shape()[0])


def shards(data: WeightDataset) -> Iterator[Path]:
    yield from sorted((data.folder / "shards").glob("*.safetensors"))


def dropped(data: WeightDataset) -> None:
    """Ask the system to forget what it holds of the files."""
    for path in shards(data):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(act: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of the processor, which is what counts on a busy machine and a warm cache."""
    start, before = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - start, time.process_time() - before


def generated(folder: Path, n: int, d: int) -> WeightDataset:
    layout = Layout((Matrix("layer.lora_A.weight", (1, d - 1)), Matrix("layer.lora_B.weight", (1, 1))), 1, 1.0, ("layer",))
    data = WeightDataset.load_or_create(folder, layout, "0" * 16, {"generated": [n, d]})
    for start in range(len(data), n, SHARD):
        rows = torch.randn(SHARD, d, generator=generator(0, "rows", start))
        data.append(rows, [str(start + i) for i in range(SHARD)], None, KEPT)
    return data


if __name__ == "__main__":
    main()
