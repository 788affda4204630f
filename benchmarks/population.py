"""Does a larger population make a better space? What PCA loses of the adapters of people it was not fitted to.

    w2w adapters train faces64 --split train --out population
    w2w adapters train faces64 --split val --people 200 --out val-adapters
    python benchmarks/population.py val-adapters tiny-faces population

Fits PCA-w2w to each dataset, and reconstructs the first one's adapters. Writes benchmarks/results/population.json.
"""

import argparse
import math
from pathlib import Path
from statistics import fmean, stdev

from machine import machine
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.reconstruct import reconstruct

RESULTS = Path(__file__).parent / "results" / "population.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", help="dataset of other people's adapters")
    parser.add_argument("datasets", nargs="+", help="datasets to fit to")
    parser.add_argument("--m", default="32,128,512,1024")
    args = parser.parse_args()
    held_out = WeightDataset.load(args.held_out)
    ms, rows = [int(m) for m in args.m.split(",")], []
    for name in args.datasets:
        data = WeightDataset.load(name)
        if shared := {of["person"] for of in data.labels} & {of["person"] for of in held_out.labels}:
            raise SystemExit(f"{name} holds {len(shared)} of the people to be held out")
        whole = PcaSpace.fit(data, m=max(ms))
        for m in ms:
            _, lost = reconstruct(whole.truncate(m), held_out.rows())
            row = {"m": m, "lost": fmean(lost), "lost_se": stdev(lost) / math.sqrt(len(lost))}
            rows.append({"dataset": name, "n": len(data), "people": data.info()["people"], **row})
            print(rows[-1])
    about = {"command": command_line(), "versions": versions(), "machine": machine(), "held_out": len(held_out)}
    write_json(RESULTS, {**about, "rows": rows})


if __name__ == "__main__":
    main()
