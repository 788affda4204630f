"""Every verb at the size of Stable Diffusion 1.5, as a user runs it: seconds and peak memory, a process for each.

python benchmarks/sd15.py [--tiny]: a pipeline of true shapes with random weights is built under --folder, 20 GB with all else.
A row is written as soon as it is there; the next run goes on after the last one. A row is stopped after --limit seconds.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skimage

from machine import machine
from sd15_files import sizes
from w2wpp.common.files import read_json, write_json
from w2wpp.common.runs import command_line

HERE = Path(__file__).parent
LOADED = """
import sys, numpy
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
for file in sys.argv[2:]:
    pipe.load_lora_weights(file)
    drawn = pipe("photo of sks person", num_inference_steps=2, output_type="np").images
    assert numpy.isfinite(drawn).all()
    pipe.unload_lora_weights()
"""


@dataclass(frozen=True)
class Row:
    """What a row runs: the words after `w2w`, or a program; and the files it needs first."""

    name: str
    pixels: int
    words: tuple[str, ...]
    needs: tuple[str, ...] = ("base",)
    program: tuple[str, ...] = ()  # in place of w2w
    free: tuple[str, ...] = ()  # what is deleted afterwards
    about: str = ""


def rows(folder: Path, tiny: bool) -> Iterator[Row]:
    """The rows, in the order in which they make what others need."""
    given = sizes(tiny)
    photo = str(Path(skimage.__file__).parent / "data" / "astronaut.png")
    few = ("--solver-steps", "2")
    for pixels in (256, 512):
        at = {name: str(folder / f"{name}-{pixels}") for name in ("base", "faces", "adapters", "trained", "drawn", "edited", "inverted")}
        pca, vae, base = str(folder / f"pca-{pixels}.safetensors"), str(folder / f"vae-{pixels}.safetensors"), ("--base", at["base"])
        points = ("--points", at["drawn"] + "/points.safetensors")
        n = given.n if pixels == 256 else 100
        data, m = ("base", "adapters"), min(given.m, n // 2)
        yield Row("base show", pixels, ("base", "show", at["base"]))
        words = ("fit", "pca", at["adapters"], "--m", str(m), "--out", pca, "--overwrite")
        yield Row("fit pca", pixels, words, data, about=f"{n:,} adapters, m = {m}")
        if pixels == 256:
            yield from spaces(folder, at, vae, given.vae, m, base)
        one = ("--pictures", "1", *few, *base)
        yield Row("sample", pixels, ("sample", pca, "--n", "1", *one, "--out", at["drawn"]), about="1 model, 1 picture, 2 solver steps")
        change = ("--dataset", at["adapters"], "--attribute", "man=1")
        yield Row("edit", pixels, ("edit", pca, *points, *change, *one, "--out", at["edited"]), data, about="1 picture, 2 solver steps")
        whose = (*points, "--space", pca)
        yield Row(
            "generate",
            pixels,
            ("generate", *whose, "--n", "1", "--solver-steps", "10", *base, "--out", str(folder / f"pictures-{pixels}")),
            about="1 picture, 10 solver steps",
        )
        files = [str(folder / f"{form}-{pixels}.safetensors") for form in ("kohya", "diffusers")]
        for form, file in zip(("kohya", "diffusers"), files, strict=True):
            yield Row(f"export --format {form}", pixels, ("export", *whose, "--format", form, *base, "--out", file))
        load = (sys.executable, "-c", LOADED, at["base"], *files)
        yield Row("load both in StableDiffusionPipeline", pixels, (), program=load, about="a picture each, 2 steps, float32")
        train = ("--steps", "2", "--prior-weight", "0", *base)
        for low in ((), ("--low-memory",)):
            name = " ".join(("adapters train", *low))
            out = at["trained"] + "".join(low)
            words = ("adapters", "train", at["faces"], *train, *low, "--out", out)
            yield Row(name, pixels, words, ("base", "faces"), about="2 people, 2 steps, no prior pictures")
            words = ("invert", pca, photo, "--steps", "2", "--pictures", "1", *few, *low, *base, "--out", at["inverted"] + "".join(low))
            yield Row(" ".join(("invert", *low)), pixels, words, about="2 steps, 1 picture, 2 solver steps")


def spaces(folder: Path, at: dict[str, str], vae: str, widths: str, m: int, base: tuple[str, ...]) -> Iterator[Row]:
    """What does not depend on the pictures' size."""
    sizes = ("--preset", "report", "--widths", widths, "--m", str(m), "--epochs", "1")
    words = ("fit", "vae", at["adapters"], *sizes, "--out", vae, "--overwrite")
    yield Row("fit vae --low-memory", 256, (*words, "--low-memory"), ("base", "adapters"), about=f"{widths} and back, 1 epoch")
    published = str(folder / "published")
    yield Row(
        "import",
        256,
        ("import", published, *base, "--out", str(folder / "imported")),
        ("base", "published"),
        free=(published, str(folder / "imported")),
        about="V of 10,000 components, the 1,000 with projections taken",
    )


def measured(command: list[str], log: Path, limit: float) -> dict[str, Any]:
    """Run a command in a process of its own: seconds, peak GiB of its memory, and how it ended unless well."""
    begin = time.perf_counter()
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True)
        ended = ""
        while True:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - begin > limit and not ended:
                ended = f"stopped after {limit:.0f} s"
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.05)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode and not ended:
        told = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        ended = f"ended with {child.returncode}: {told[-1] if told else 'without a word'}"
    found = {"seconds": time.perf_counter() - begin, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_gib": used.ru_maxrss / 2**20}
    return found | ({"ended": ended} if ended else {})


def prepare(folder: Path, row: Row, tiny: bool) -> None:
    """Write what a row needs and is not there yet, each in a process of its own, whole or not at all."""
    for part in row.needs:
        there = folder / (part if part == "published" else f"{part}-{row.pixels}")
        mark = folder / f".{there.name}.done"
        if mark.exists() and there.exists():
            continue
        shutil.rmtree(there, ignore_errors=True)
        words = [sys.executable, str(HERE / "sd15_files.py"), str(folder), part, "--pixels", str(row.pixels)]
        if part == "adapters" and row.pixels == 512:
            words += ["--n", "100"]
        subprocess.run([*words, *(["--tiny"] if tiny else [])], check=True)
        mark.touch()


def main() -> None:
    """Run the rows that are not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to rehearse; nothing is kept")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", help="rows whose names begin so")
    parser.add_argument("--pixels", type=int, choices=(256, 512))
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "w2wpp-sd15-tiny" if options.tiny else "w2wpp-sd15"
    folder = (options.folder or Path(tempfile.gettempdir()) / name).resolve()
    out = options.out or (folder / "sd15.json" if options.tiny else HERE / "results" / "sd15.json")
    out = out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = read_json(out) if out.exists() else {"command": command_line(), "machine": machine("cpu"), "rows": []}
    for row in rows(folder, options.tiny):
        done = any((line["name"], line["pixels"]) == (row.name, row.pixels) for line in found["rows"])
        if done or not row.name.startswith(options.only or "") or options.pixels not in (None, row.pixels):
            continue
        prepare(folder, row, options.tiny)
        command = list(row.program) or [sys.executable, "-c", "from w2wpp.cli import main; main()", *row.words]
        log = folder / f"{row.name.replace(' ', '-')}-{row.pixels}.log"
        line = {"name": row.name, "pixels": row.pixels, "about": row.about} | measured(command, log, options.limit)
        print(line, flush=True)
        found["rows"].append(line)
        write_json(out, found)
        for path in row.free:
            shutil.rmtree(path, ignore_errors=True)
    if not options.keep and not options.only and options.pixels is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
