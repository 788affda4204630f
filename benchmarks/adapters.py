"""Adapters an hour: ours against a peft + diffusers script that trains one person after the other.

    python benchmarks/adapters.py --people 16 --rounds 3

Same base, people, photos, steps, batch, rank and targets. Four ways, each in a process of its own, in turn:
  ours            w2wpp.train_adapters, as many in a batch as train_population takes, products in bfloat16 where the processor has it
  script          as diffusers' DreamBooth-LoRA example: peft's LoRA on the UNet, each step encodes its photos and captions;
                  with --mixed_precision bf16, as ours
  script-cached   the same with latents and captions encoded once
  script-float32  script as it is unless it is told a precision
Photos are pictures that the base draws, so that anyone can run it. Writes benchmarks/results/adapters.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import diffusers
import peft
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from machine import machine
from w2wpp.adapters.group import people_at_a_time
from w2wpp.adapters.train import AdapterOptions, options_for, train_adapters
from w2wpp.base.model import BaseModel
from w2wpp.common.assets import located
from w2wpp.common.batches import batches
from w2wpp.common.files import write_json
from w2wpp.photos.images import to_tensor

WAYS = ("ours", "script", "script-cached", "script-float32")
RESULTS = Path(__file__).parent / "results" / "adapters.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="steps of Adam; the ratio does not depend on it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args)))
        return
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--worker", way, *sys.argv[1:]]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            measured[way].append(result)
            print(f"{way}: {result['adapters_per_hour']:.0f} adapters an hour, peak {result['peak_mib']:.0f} MiB", file=sys.stderr)
    table = {way: {key: median(run[key] for run in runs) for key in runs[0]} for way, runs in measured.items()}
    ratios = {
        way: {
            "speed": [a["adapters_per_hour"] / b["adapters_per_hour"] for a, b in zip(measured["ours"], measured[way], strict=True)],
            "memory": table["ours"]["peak_mib"] / table[way]["peak_mib"],
        }
        for way in WAYS[1:]
    }
    options = options_for(args.base)
    report = {
        "command": "python benchmarks/adapters.py " + " ".join(sys.argv[1:]),
        "machine": machine(args.device),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__},
        "people": args.people,
        "pictures_a_step": options.batch + options.prior_batch,
        "median": table,
        "ours_over": ratios,
        "rounds": measured,
    }
    write_json(args.out, report)
    print(json.dumps({"median": table, "ours_over": ratios}, indent=2))


def work(way: str, args: argparse.Namespace) -> dict[str, float]:
    base = BaseModel.load(args.base, args.device, torch.float32 if way == "script-float32" else None)
    options = replace(options_for(args.base), steps=args.steps)
    drawn = base.generate(options.prior_prompt, range(4 * args.people + 8), steps=4)
    photos = [to_tensor(drawn[4 * i : 4 * i + 4]) for i in range(args.people)]
    prior = to_tensor(drawn[4 * args.people :])
    if way != "ours":  # a script has the UNet as diffusers loads it, without what BaseModel.load changes for speed
        source = located(args.base, "pipeline")
        plain = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
        base.pipeline.unet = plain.to(base.device, base.dtype).requires_grad_(False).eval()
    run = {
        "ours": ours,
        "script": script,
        "script-cached": partial(script, cached=True),
        "script-float32": partial(script, float32=True),
    }[way]
    run(base, photos[:1], prior, replace(options, steps=2))  # warm up
    start = time.perf_counter()
    run(base, photos, prior, options)
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if base.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps_an_hour = args.people * args.steps / seconds * 3600
    return {"seconds": seconds, "adapters_per_hour": steps_an_hour / options_for(args.base).steps, "peak_mib": peak / 2**20}


def ours(base: BaseModel, photos: list[Tensor], prior: Tensor, options: AdapterOptions) -> None:
    latents = [base.encode_images(person).float() for person in photos]
    keys = [f"person {i}" for i in range(len(photos))]
    layout, group = options.layout_of(base), people_at_a_time(base, options.layout_of(base), options)  # as train_population does
    for s in batches(len(keys), group):
        train_adapters(base, layout, latents[s], keys[s], options, base.encode_images(prior).float())


def script(
    base: BaseModel, photos: list[Tensor], prior: Tensor, options: AdapterOptions, cached: bool = False, float32: bool = False
) -> None:
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=list(options.targets))
    draw = torch.Generator().manual_seed(0)
    captions = [options.prompt] * options.batch + [options.prior_prompt] * options.prior_batch
    for person in photos:
        base.pipeline.unet.add_adapter(config, adapter_name="person")
        trained = [p for p in base.pipeline.unet.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=options.lr)
        if cached:
            kept = [base.encode_images(x).float() for x in (person, prior)]
            context = base.encode_text(captions)
        for _ in range(options.steps):
            rows = torch.randint(len(person), (options.batch,), generator=draw)
            prior_rows = torch.randint(len(prior), (options.prior_batch,), generator=draw)
            if cached:
                x = torch.cat([kept[0][rows], kept[1][prior_rows]])
            else:
                x = base.encode_images(torch.cat([person[rows], prior[prior_rows]])).float()
                context = base.encode_text(captions)
            noise = torch.randn(x.shape, generator=draw).to(x)
            t = torch.randint(1000, (len(x),), generator=draw).to(x.device)
            noisy, target = base.add_noise(x, noise, t)
            predicted = base.pipeline.unet(noisy, t, context).sample if float32 else base.predict(noisy, t, context)
            error = (predicted - target).square().mean((1, 2, 3))
            loss = error[: options.batch].mean() + options.prior_weight * error[options.batch :].mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        base.pipeline.unet.delete_adapters("person")


if __name__ == "__main__":
    main()
