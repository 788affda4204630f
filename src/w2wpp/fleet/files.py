"""What the fleet reads and writes: LoRA files or rows of a dataset as products with their base, and one adapter with its card."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.exporting import Chosen, Form, export
from w2wpp.exchange.formats.lora_file import Lora, read_lora
from w2wpp.exchange.import_bases import Bases
from w2wpp.fleet.mix import as_lora
from w2wpp.lora.layout import Layout, layout_of


def base_for(dataset: WeightDataset, base: str | None) -> Denoiser:
    """The base to read files with: the one given, or that which the dataset names."""
    return Denoiser.load(base or dataset.meta.get("base") or "tiny-faces")


def read_all(names: Sequence[str], dataset: str | None, base: str | None) -> tuple[list[Lora], Denoiser]:
    """Files, or rows of a dataset by their ids, as products, and their base. Raises W2WError for files of several bases."""
    if dataset:
        data = WeightDataset.load(dataset)
        rows = data.rows([data.index_of(name) for name in names])
        return [as_lora(data.layout, row, name) for row, name in zip(rows, names, strict=True)], base_for(data, base)
    bases = Bases(Denoiser.load(base) if base else None)
    found = [bases.for_file(Path(name)) for name in names]
    if len({one.id for one in found}) > 1:
        raise W2WError(f"{names[0]} and another are made for different bases ({', '.join(sorted({one.source for one in found}))}).")
    return [read_lora(name, found[0]) for name in names], found[0]


def layout_for(lora: Lora, base: Denoiser, rank: int) -> Layout:
    """The layout of one adapter at a rank, at scale 1."""
    return layout_of(base.layers, set(lora.down), rank, float(rank))


def write_one(
    out: Path, layout: Layout, weights: Tensor, form: Form, base: Denoiser, *, name: str, method: str, overwrite: bool = False
) -> None:
    """Write one adapter [d] and its card, as `export` does. name, method: for the card, who it is and how it came about."""
    if form in ("diffusers", "kohya") and out.suffix != ".safetensors":
        raise W2WError(f"--format {form} writes one file; --out {out} does not end with .safetensors.")
    origin = {"space": "none", "method": method, "seed": "none"}
    export(Chosen(layout, [name], [{}], lambda places: weights[None], origin), out, form, base, overwrite=overwrite)
