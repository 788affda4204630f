"""How fast `w2w import` is: LoRA files of Stable Diffusion 1.5's shapes, rank 4, as kohya writes them, into a dataset.

python benchmarks/import.py [--files 100] [--threads 2]: seconds and processor seconds a file, each round anew; the load says how
many processes wanted the processor meanwhile, others' among them.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from machine import machine
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.importing import import_loras
from w2wpp.lora.layout import sides_of

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}


def write_files(folder: Path, base: Denoiser, n: int, rank: int) -> int:
    """Write n files in half precision: every linear layer and 1x1 convolution of the transformers; returns how many layers."""
    layers = [name for name in base.layers if ".attentions." in name and "norm" not in name]
    folder.mkdir()
    for i in range(n):
        draw, tensors = torch.Generator().manual_seed(i), {}
        for layer in layers:
            inputs, outputs, kernel = sides_of(base.layers[layer])
            ones = (1, 1) if kernel else ()
            stem = "lora_unet_" + layer.replace(".", "_")
            tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, inputs, *ones, generator=draw).half()
            tensors[f"{stem}.lora_up.weight"] = torch.randn(outputs, rank, *ones, generator=draw).half()
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
        save_file(tensors, folder / f"{i:03d}.safetensors")
    return len(layers)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    base = Denoiser(unet, "sd15")
    base.__dict__["id"] = "random"  # of weights that are not there
    folder = Path(tempfile.mkdtemp())
    told: dict[str, Any] = {"command": command_line(), "machine": machine(), "files": options.files}
    try:
        told |= {"layers": write_files(folder / "in", base, options.files, options.rank), "rank": options.rank}
        rounds = []
        for number in range(options.rounds):
            begin, used = time.perf_counter(), time.process_time()
            found = import_loras(base, folder / "in", folder / f"out{number}", threads=options.threads)
            seconds, processor = time.perf_counter() - begin, time.process_time() - used
            about = {"files_a_second": found["imported"] / seconds, "processor_seconds_a_file": processor / found["imported"]}
            rounds.append(about | {"load": os.getloadavg()[0]})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    told |= {"numbers_a_file": found["d"], "threads": options.threads, "rounds": rounds}
    print(json.dumps(told))
    if options.out:
        write_json(options.out, told)


if __name__ == "__main__":
    main()
