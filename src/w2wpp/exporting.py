"""From a dataset or a space to other people's files: one adapter, some, or all of them, with a model card beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import yaml
from torch import Tensor

from w2wpp import __version__
from w2wpp.denoiser import Denoiser
from w2wpp.errors import W2WError
from w2wpp.files import new_folder, write_text
from w2wpp.formats.lora_file import blocks_of
from w2wpp.formats.peft import write_peft
from w2wpp.formats.published import write_published
from w2wpp.formats.single_file import write_diffusers, write_kohya
from w2wpp.layout import Layout
from w2wpp.point_files import load_points
from w2wpp.progress import track
from w2wpp.spaces.base import load_space
from w2wpp.weights import Labels, WeightDataset

Form = Literal["peft", "diffusers", "kohya", "w2w"]
HOW_TO_LOAD = {
    "peft": "`PeftModel.from_pretrained(pipeline.unet, folder)` (or `pipeline.transformer`)",
    "diffusers": "`pipeline.load_lora_weights(folder, weight_name=file)`",
    "kohya": "ComfyUI's and A1111's folder of LoRAs, or `pipeline.load_lora_weights`",
    "w2w": "`torch.load(file, weights_only=True)`, as the code of Weights2Weights does; or `w2w import`",
}


@dataclass(frozen=True)
class Chosen:
    """Adapters to export: read or decoded when their turn comes."""

    layout: Layout
    ids: list[str]
    labels: list[Labels]
    rows: Callable[[Sequence[int]], Tensor]  # positions among `ids` -> weights [k, d] float32
    origin: dict[str, Any]  # for the model card: space, method, seed


def from_dataset(folder: str | Path, base: Denoiser, ids: Sequence[str] = (), everything: bool = False) -> Chosen:
    """Rows of a dataset: those named, all of them, or the first. Raises W2WError if it belongs to another base."""
    dataset = WeightDataset.open(folder)
    if dataset.base_id != base.id:
        raise W2WError(f"dataset {folder} belongs to base {dataset.base_id}; {base.source} is {base.id}. Give its --base.")
    if not dataset.ids:
        raise W2WError(f"dataset {folder} has no rows. Nothing was exported.")
    picked = list(range(len(dataset))) if everything else [dataset.index_of(name) for name in ids or dataset.ids[:1]]
    making = next((key for key in ("adapters", "imported", "space") if key in dataset.meta), None)
    method = {"adapters": "trained by `w2w adapters train`", "imported": "imported by `w2w import`", "space": "inverted by `w2w invert`"}
    trained = dataset.meta.get("adapters", {})
    origin = {"space": str(dataset.meta.get("space", "none")), "method": method.get(making or "", "unknown")}
    origin |= {"seed": trained.get("seed", "unknown"), "dataset": Path(folder).name}
    names, labels = [dataset.ids[i] for i in picked], [dataset.labels[i] for i in picked]
    return Chosen(dataset.layout, names, labels, lambda places: dataset.rows([picked[i] for i in places]), origin)


def from_points(points: Path, space: Path, base: Denoiser, ids: Sequence[str] = (), everything: bool = False) -> Chosen:
    """Points of a space: those named, all of them, or the first. Raises W2WError if they belong to another space or base."""
    opened = load_space(space)
    opened.check(opened.layout, base.id, f"base {base.source}")
    z, names = load_points(points, opened)
    unknown = [name for name in ids if name not in names]
    if unknown:
        raise W2WError(f"there is no {unknown[0]!r} among {len(names)} ids such as {', '.join(names[:3])}.")
    picked = list(range(len(names))) if everything else [names.index(name) for name in ids or names[:1]]
    origin = {
        "space": f"{opened.kind}, m = {opened.m} ({space.name})",
        "method": "a point of the space",
        "seed": "unknown",
        **_run_of(points),
    }
    return Chosen(
        opened.layout,
        [names[i] for i in picked],
        [{} for _ in picked],
        lambda places: opened.decode(z[[picked[i] for i in places]]),
        origin,
    )


def _run_of(points: Path) -> dict[str, Any]:
    """What the run that made a file of points says of itself."""
    try:
        record = yaml.safe_load((points.parent / "config.yaml").read_text(encoding="utf-8"))
        return {"method": f"w2w {record['name']}", "seed": record["options"]["seed"]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}


def export(
    chosen: Chosen, out: str | Path, form: Form, base: Denoiser, *, licence: str = "unknown", memory: float = 2.0, folder: bool = False
) -> Path:
    """Write adapters for peft, diffusers, kohya (ComfyUI, A1111) or in the published layout; returns the model card.

    One adapter for peft is a folder, for diffusers or kohya a file, with the card `<file's stem>.md` beside it. Several,
    or with `folder`, are a new folder with one of these for each id; the published layout is always a new folder. Cards
    in folders are README.md. licence: of the adapters, for the card. memory: GiB that rows may take at a time.
    Raises W2WError if the format has no names for the base's layers, or `out` is taken; nothing is then written.
    """
    out = Path(out)
    if form == "kohya" and base.part != "unet":
        raise W2WError(f"kohya's format has no plain names for the layers of {base.source}, a transformer. Use --format diffusers or peft.")
    card = model_card(chosen, form, base, licence)
    if form == "w2w":
        with new_folder(out) as aside:
            write_published(aside, chosen.layout, chosen.ids, chosen.labels, chosen.rows, memory)
            write_text(aside / "README.md", card)
        return out / "README.md"
    if len(chosen.ids) == 1 and not folder:
        _write_one(chosen, 0, out, form, base)
        path = out / "README.md" if form == "peft" else out.with_suffix(".md")
        write_text(path, card)
        return path
    with new_folder(out) as aside:
        for place in track(range(len(chosen.ids)), "export"):
            name = file_name(chosen.ids[place])
            _write_one(chosen, place, aside / (name if form == "peft" else f"{name}.safetensors"), form, base)
        write_text(aside / "README.md", card)
    return out / "README.md"


def _write_one(chosen: Chosen, place: int, out: Path, form: Form, base: Denoiser) -> None:
    weights = chosen.rows([place])[0]
    if form == "peft":
        write_peft(out, chosen.layout, weights, base.source)
    elif form == "diffusers":
        write_diffusers(out, chosen.layout, weights, base.part)
    else:
        write_kohya(out, chosen.layout, weights, blocks_of(base.module) if base.is_xl else None)


def file_name(name: str) -> str:
    """An id as a file's name: letters of all scripts stay, what a path is made of does not (`a/../b`, `.hidden`)."""
    safe = "".join(letter if letter.isalnum() or letter in " ._-" else quote(letter, safe="") for letter in name)
    safe = "%2E" + safe[1:] if safe.startswith(".") else safe
    if len(safe.encode()) > 200:
        raise W2WError(f"id {name[:40]}... is too long to name a file. Export it alone, with --id and --out.")
    return safe


def model_card(chosen: Chosen, form: Form, base: Denoiser, licence: str) -> str:
    """A README in the Hugging Face hub's form."""
    head = {
        "license": licence,
        "base_model": base.source,
        "library_name": "peft" if form == "peft" else "diffusers",
        "tags": ["lora", "w2wpp"],
    }
    layout, ids = chosen.layout, chosen.ids
    facts = {
        "Adapters": f"{len(ids)}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}",
        "Base": f"{base.source} (weights {base.id}); its own licence applies as well",
        "Layout": f"rank {layout.rank}, alpha {layout.alpha:g}, {layout.d:,} numbers on {', '.join(layout.targets)}",
        **{key.capitalize(): str(value) for key, value in chosen.origin.items()},
        "Licence": licence,
        "Format": f"{form}: {HOW_TO_LOAD[form]}",
        "Made by": f"w2wpp {__version__}",
    }
    lines = [f"- **{key}**: {' '.join(value.split())}" for key, value in facts.items()]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# LoRA adapters\n\n" + "\n".join(lines) + "\n"
