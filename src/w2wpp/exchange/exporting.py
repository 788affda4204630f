"""From a dataset or a space to other people's files: one adapter, some, or all of them, with a model card beside them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from w2wpp import __version__
from w2wpp.base.identity import same_base
from w2wpp.common.cards import card
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_text
from w2wpp.common.names import file_names
from w2wpp.common.places import digest, results_in
from w2wpp.common.progress import track
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.diffusers import write_diffusers
from w2wpp.exchange.formats.families import FLUX, SD3, XL, Family, family_for
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.exchange.formats.published import write_published
from w2wpp.lora.layout import Layout, sides_of
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import load_points

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
    dataset = WeightDataset.from_pretrained(folder)
    if not same_base(dataset.base_id, base.id):
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
    opened = Space.from_pretrained(space)
    z, names = load_points(points, opened)
    unknown = [name for name in ids if name not in names]
    if unknown:
        raise W2WError(f"there is no {unknown[0]!r} among {len(names)} ids such as {', '.join(names[:3])}.")
    picked = list(range(len(names))) if everything else [names.index(name) for name in ids or names[:1]]
    chosen = of_points(opened, z[picked], [names[i] for i in picked], base)
    chosen.origin.update({"space": f"{chosen.origin['space']} ({space.name})", **_run_of(points)})
    return chosen


def of_points(space: Space, z: Tensor, ids: Sequence[str], base: Denoiser) -> Chosen:
    """Points z [n, m] of a space that is open, with their names. Raises W2WError if it is a space of another base."""
    space.check(space.layout, base.id, f"base {base.source}")

    def rows(places: Sequence[int]) -> Tensor:
        return space.decode(z[list(places)].to(space.device)).cpu()

    origin = {"space": f"{space.kind}, m = {space.m}", "method": "a point of the space", "seed": "unknown"}
    return Chosen(space.layout, list(ids), [{} for _ in ids], rows, origin)


def _run_of(points: Path) -> dict[str, Any]:
    """What the run that made a file of points says of itself."""
    try:
        record = yaml.safe_load((points.parent / "config.yaml").read_text(encoding="utf-8"))
        return {"method": f"w2w {record['name']}", "seed": record["options"]["seed"]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}


def export(
    chosen: Chosen,
    out: str | Path,
    form: Form,
    base: Denoiser,
    *,
    licence: str = "unknown",
    memory: float = 2.0,
    folder: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write adapters for peft, diffusers, kohya (ComfyUI, A1111) or in the published layout; returns the model card.

    One adapter for peft is a folder, for diffusers or kohya a file, with the card `<file's stem>.md` beside it. Several,
    or with `folder`, are a new folder with one of these for each id; the published layout is always a new folder. Cards
    in folders are README.md. licence: of the adapters, for the card. memory: GiB that rows may take at a time.
    overwrite: replace what an earlier export wrote there, and nothing else.
    Raises W2WError if the format has no names for the base's layers, or `out` is taken; nothing is then written.
    """
    out = Path(out)
    if form == "kohya" and base.part != "unet" and not base.names.original:
        raise W2WError(f"kohya's files have no names for the layers of {base.source}. Use --format diffusers or peft.")
    if form == "w2w" and any(m.kernel for m in chosen.layout.matrices):
        raise W2WError("the published layout of Weights2Weights holds no convolutions, and these adapters have some. Use another --format.")
    card = model_card(chosen, form, base, licence)
    if form == "w2w":
        with results_in(out, overwrite) as aside:
            write_published(aside, chosen.layout, chosen.ids, chosen.labels, chosen.rows, memory)
            write_text(aside / "README.md", card)
        return out / "README.md"
    if len(chosen.ids) == 1 and not folder:
        return _export_one(chosen, out, form, base, card, overwrite)
    names = readable_names(chosen.ids)
    with results_in(out, overwrite) as aside:
        for place, name in enumerate(track(names, "export", "adapters")):
            _write_one(chosen, place, aside / (name if form == "peft" else f"{name}.safetensors"), form, base)
        write_text(aside / "README.md", card)
    return out / "README.md"


def _export_one(chosen: Chosen, out: Path, form: Form, base: Denoiser, card: str, overwrite: bool) -> Path:
    """One adapter and its card: a folder for peft, else two files, of which the card holds the other's checksum."""
    if form == "peft":
        with results_in(out, overwrite) as aside:
            _write_one(chosen, 0, aside, form, base)
            write_text(aside / "README.md", card)
        return out / "README.md"
    path = out.with_suffix(".md")
    for file in (out, path):
        if file.exists() and not overwrite:
            raise W2WError(f"{file} is there already. Choose another --out, or --overwrite if w2w made it.")
    if (out.exists() or path.exists()) and not (digest(out) and digest(out) in read_card(path)):
        raise W2WError(f"{out} or {path} was not made by w2w, or changed since. Move them away, or choose another --out.")
    _write_one(chosen, 0, out, form, base)
    write_text(path, f"{card}- **SHA-256**: {digest(out)}\n")
    return path


def read_card(path: Path) -> str:
    """What a model card says; nothing where there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _write_one(chosen: Chosen, place: int, out: Path, form: Form, base: Denoiser) -> None:
    layout, weights = chosen.layout, chosen.rows([place])[0]
    if form == "peft":
        write_peft(out, layout, weights, base.source, base.own_names)
    elif form == "diffusers":
        write_diffusers(out, layout, weights, base.part)
    else:
        family = family_for(base.part, base.module.config.get("cross_attention_dim"), type(base.module).__name__)
        outputs = {layer: sides[1] for layer, module in base.layers.items() if (sides := sides_of(module))}
        names, text = base.names.original or None, _text_prefixes(family, base)
        write_kohya(out, layout, weights, names, text, _about(chosen, place, family, base), outputs)


def _text_prefixes(family: Family | None, base: Denoiser) -> dict[str, str]:
    """How kohya's keys of each text encoder begin."""
    if family == FLUX:
        return {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"}
    numbered = family in (XL, SD3) or base.is_xl or len(base.text_encoders) > 1
    return {f"text_encoder_{i}" if i > 1 else "text_encoder": f"lora_te{i if numbered else ''}_" for i in (1, 2, 3)}


def _about(chosen: Chosen, place: int, family: Family | None, base: Denoiser) -> dict[str, str]:
    """Metadata of kohya's by which ComfyUI's managers and A1111 sort files."""
    v = base.part == "unet" and family is not None and family.version == "sd_v2"
    about = {
        "ss_base_model_version": family.version if family else base.source,
        "ss_sd_model_name": base.source,
        "ss_output_name": chosen.ids[place],
        "ss_v2": str(v),
    }
    if any(m.kernel not in (None, (1, 1)) for m in chosen.layout.matrices):
        args = {"conv_dim": str(chosen.layout.rank), "conv_alpha": f"{chosen.layout.alpha:g}"}
        about["ss_network_args"] = json.dumps(args)
    return about


def readable_names(ids: Sequence[str]) -> list[str]:
    """A file's name for each id, where `/` is `__`: a_folder/ada becomes a_folder__ada. As `file_names` if two would then be one."""
    plain = [name.replace("/", "__") for name in ids]
    return file_names(plain if len(set(plain)) == len(plain) and all(map(str.strip, plain)) else ids)


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
    return card(head, "LoRA adapters", facts)
