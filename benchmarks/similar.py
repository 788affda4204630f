"""How fast `w2w similar` is: drawn adapters of Stable Diffusion 1.5's d = 99,648 at rank 1, an index in one pass, searches, brute force.

python benchmarks/similar.py --rows 65000 --folder /tmp/similar: rows in bfloat16 (13 GB), deleted at the end. Every ten rows are of
one person: a common mean, the person (half of it within `--factors` directions of falling strength, half its own), and noise of
each row. Brute force reads all rows once and compares them with every query.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from statistics import mean

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from machine import machine
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line
from w2wpp.dataset.weights import WeightDataset
from w2wpp.fleet.index import ProductIndex
from w2wpp.fleet.products import Products, inners, query_of, squares
from w2wpp.fleet.similar import RERANKED, nearest_rows
from w2wpp.lora.layout import Layout

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
STEP, EACH, NEAREST = 500, 10, 30  # the ten of a person, and twenty that are less near


def drawn(folder: Path, layout: Layout, n: int, factors: int) -> WeightDataset:
    """Write n rows, `STEP` at a time. Noise is cut from one long row of it at random places, which is faster than to draw it."""
    draw = torch.Generator().manual_seed(0)
    mean_row = 0.01 * torch.randn(layout.d, generator=draw)
    strengths = torch.arange(1, factors + 1).rsqrt()
    directions = torch.randn(factors, layout.d, generator=draw) * (strengths / strengths.norm())[:, None]
    pool = torch.randn(2**25, generator=draw)

    def noise(k: int) -> Tensor:
        return torch.stack([pool[at : at + layout.d] for at in torch.randint(0, len(pool) - layout.d, (k,), generator=draw).tolist()])

    data = WeightDataset.create(folder, layout, "drawn")
    for at in range(0, n, STEP):
        k = min(STEP, n - at)
        people = torch.randn(-(-k // EACH), factors, generator=draw) @ directions + noise(-(-k // EACH))
        rows = mean_row + 0.01 * people.repeat_interleave(EACH, 0)[:k] + 0.01 * noise(k)
        data.append(rows, [f"{at + i:06d}" for i in range(k)], dtype=torch.bfloat16)
    return data


def brute_force(data: WeightDataset, places: list[int]) -> list[list[int]]:
    """The nearest rows to each of some rows, by reading all."""
    layers = data.layout.modules
    queries = Products.of_rows(data.layout, data.rows(places), layers)
    sizes, found = squares(queries).sum(1).sqrt(), []
    for at in range(0, len(data), STEP):
        part = Products.of_rows(data.layout, data.rows(range(at, min(len(data), at + STEP))), layers)
        found.append(inners(part, queries) / squares(part).sum(1).sqrt()[:, None] / sizes)
    return torch.cat(found).topk(NEAREST, dim=0).indices.T.tolist()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65000)
    parser.add_argument("--factors", type=int, default=100)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--memory", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with torch.device("meta"):
        layout = Layout.of(UNet2DConditionModel(**SD15), rank=1, alpha=27.0)
    told: dict[str, object] = {"command": command_line(), "machine": machine(), "rows": options.rows, "d": layout.d}
    try:
        data = drawn(options.folder, layout, options.rows, options.factors)
        begin, used = time.perf_counter(), time.process_time()
        index = ProductIndex.build(data, options.memory)
        told |= {"index_seconds": time.perf_counter() - begin, "index_processor_seconds": time.process_time() - used}
        told |= {"index_bytes": sum(tensor.nbytes for tensor in vars(index).values()), "sketch": index.sketch.shape[1]}
        told |= {"landmarks": len(index.landmarks), "searches": options.searches, "reranked": RERANKED}
        places = [i * options.rows // options.searches for i in range(options.searches)]
        seconds, processor, found = [], [], []
        for place in places:
            query, _ = query_of(data.ids[place], data, None, layout.modules)
            begin, used = time.perf_counter(), time.process_time()
            found.append(nearest_rows(data, query, NEAREST, index=index, memory=options.memory).rows)
            seconds.append(time.perf_counter() - begin)
            processor.append(time.process_time() - used)
        begin, used = time.perf_counter(), time.process_time()
        wanted = brute_force(data, places)
        told |= {"brute_force_seconds": time.perf_counter() - begin, "brute_force_processor_seconds": time.process_time() - used}
        told |= {"seconds": seconds, "processor_seconds": processor}
        for k in (10, NEAREST):
            shares = [len(set(mine[:k]) & set(theirs[:k])) / k for mine, theirs in zip(found, wanted, strict=True)]
            told |= {f"recall_at_{k}": mean(shares), f"least_recall_at_{k}": min(shares)}
        told["load"] = os.getloadavg()[0]
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps(told))
    if options.out:
        write_json(options.out, told)


if __name__ == "__main__":
    main()
