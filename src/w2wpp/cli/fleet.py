"""Verbs for owners of many LoRAs: similar, dedupe, mix, resize, map."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import run, show
from w2wpp.cli.help import EXCHANGE, verb
from w2wpp.cli.options import MOST_RANK, RUNS, Dataset, DryRun, Json, Memory, Out, Overwrite, OverwriteFile, Runs, Seed
from w2wpp.common.errors import W2WError

BaseOf = Annotated[str | None, typer.Option("--base", help="The dataset's base, to read files.", show_default="what the dataset names")]


class MixMethod(StrEnum):
    """How adapters are mixed."""

    weighted = "weighted"
    spherical = "spherical"
    ties = "ties"
    dare = "dare"


class AdapterFormat(StrEnum):
    """Whose file to write."""

    peft = "peft"
    diffusers = "diffusers"
    kohya = "kohya"
    w2w = "w2w"


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    verb(app, "similar", "w2w similar ada.safetensors --in mine", EXCHANGE)(similar)
    verb(app, "dedupe", "w2w dedupe mine", EXCHANGE)(dedupe)
    verb(app, "mix", "w2w mix a.safetensors b.safetensors --weight 0.7 --weight 0.3 --out ab.safetensors", EXCHANGE)(mix)
    verb(app, "resize", "w2w resize mine --keep 0.95 --out smaller", EXCHANGE)(resize)
    verb(app, "map", "w2w map mine --out map.html", EXCHANGE)(map_)


def similar(
    file: Annotated[str, typer.Argument(help="A LoRA file, a peft folder, or the id of a row of the dataset.")],
    dataset: Annotated[str, typer.Option("--in", help="tiny-faces (embedded) or the folder of a weight dataset.")] = "tiny-faces",
    k: Annotated[int, typer.Option("--k", min=1, help="How many.")] = 10,
    layer: Annotated[list[str] | None, typer.Option("--layer", help="Only layers with this in their names; repeatable.")] = None,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Also the cosine of each compared layer by itself.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read and compare every row, not only those that the index takes for near.")
    ] = False,
    memory: Memory = 2.0,
    base: BaseOf = None,
    as_json: Json = False,
) -> None:
    """Find the rows whose products B A are most like those of a LoRA, by their cosine.

    The first call reads the dataset once and keeps an index beside it, products.index.
    """
    from w2wpp.fleet.files import base_for
    from w2wpp.fleet.index import ProductIndex
    from w2wpp.fleet.products import chosen_layers, query_of
    from w2wpp.fleet.similar import by_layer as each_layer
    from w2wpp.fleet.similar import nearest_rows

    data = w2w.WeightDataset.load(dataset)
    layers = chosen_layers(data.layout, layer or [])
    query, outside = query_of(file, data, None if file in data.ids else base_for(data, base), layers)
    index = None if exact else ProductIndex.of(data, memory)
    found = nearest_rows(data, query, k, words=layer or [], index=index, memory=memory)
    rows: list[dict[str, Any]] = [{"id": data.ids[i], "cosine": cosine} for i, cosine in zip(found.rows, found.cosines, strict=True)]
    if by_layer:
        for row, values in zip(rows, each_layer(data, found.rows, query, layers).tolist(), strict=True):
            row["layers"] = dict(zip(layers, values, strict=True))
    show(
        {"of": file, "in": dataset, "nearest": rows, "rows_read": found.read, "proved": found.proved, "outside_these_layers": outside},
        as_json,
    )


def dedupe(
    dataset: Dataset = "tiny-faces",
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="Cosine from which two are nearly equal.")] = 0.99,
    memory: Memory = 2.0,
    as_json: Json = False,
) -> None:
    """List groups of rows whose products are equal, or nearly so. Nothing is taken away."""
    from w2wpp.fleet.index import ProductIndex
    from w2wpp.fleet.similar import duplicates

    data = w2w.WeightDataset.from_pretrained(dataset)
    groups = duplicates(data, threshold, ProductIndex.of(data, memory), memory)
    show({"dataset": dataset, "n": len(data), "groups": groups}, as_json)


def mix(
    files: Annotated[list[str], typer.Argument(help="LoRA files or peft folders; with --dataset, ids of its rows.")],
    out: Annotated[Path, typer.Option("--out", help="The mix: a .safetensors file, or a folder for peft.")],
    weights: Annotated[
        list[float] | None, typer.Option("--weight", min=-100, max=100, help="Of each file, in order.", show_default="equal, sum 1")
    ] = None,
    method: Annotated[MixMethod, typer.Option("--method", help="How to mix; ties and dare are peft's.")] = MixMethod.weighted,
    density: Annotated[float, typer.Option("--density", min=0.01, max=1, help="Share of numbers that ties and dare keep.")] = 0.5,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, max=MOST_RANK, help="Of the mix.", show_default="the largest among the files")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="The weight dataset that the ids are of.")] = None,
    form: Annotated[AdapterFormat, typer.Option("--format", help="Whose file to write.")] = AdapterFormat.kohya,
    base: BaseOf = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Mix adapters by their products, and write the result at a rank, with its error."""
    with run("mix", locals(), "mix.safetensors", reads=("dataset",) if dataset else ("files",)) as job:
        from w2wpp.exchange.formats.canonical import to_rows
        from w2wpp.fleet.files import layout_for, read_all, write_one
        from w2wpp.fleet.mix import mixed

        loras, denoiser = read_all(files, dataset, base)
        given = weights or [1 / len(loras)] * len(loras)
        made = mixed(loras, given, method.value, density, seed)
        layout = layout_for(made, denoiser, rank or max(lora.rank for lora in loras))
        rows, errors = to_rows([made], layout)
        name, how = "+".join(Path(file).stem for file in files), f"w2w mix --method {method.value}"
        write_one(job.out, layout, rows[0], form.value, denoiser, name=name, method=how, overwrite=overwrite)
        job.results = {"of": files, "weights": given, "rank": layout.rank, "rank_error": errors[0]}


def resize(
    what: Annotated[str, typer.Argument(help="A LoRA file, a peft folder, or the folder of a weight dataset.")],
    out: Annotated[Path, typer.Option("--out", help="The result: a dataset's folder, a .safetensors file, or a folder for peft.")],
    rank: Annotated[int | None, typer.Option("--rank", min=1, max=MOST_RANK, help="The new rank.")] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", min=0.001, max=1, help="Share of the squared norm that every adapter must keep.")
    ] = None,
    form: Annotated[AdapterFormat, typer.Option("--format", help="Whose file to write, of a single LoRA.")] = AdapterFormat.kohya,
    memory: Memory = 2.0,
    base: BaseOf = None,
    overwrite: Overwrite = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring a LoRA, or a whole dataset, to another rank: a given one, or the smallest that keeps a share of each product."""
    if (rank is None) == (keep is None):
        raise W2WError("the new rank was not said, or twice. Give --rank, or --keep such as 0.95.")
    with run("resize", locals(), "resized", reads=("what",)) as job:
        from w2wpp.common.storage import place
        from w2wpp.exchange.formats.canonical import to_rows
        from w2wpp.fleet.files import layout_for, read_all, write_one
        from w2wpp.fleet.mix import rank_that_keeps, resize_dataset

        if what == "tiny-faces" or (place(what) / "dataset.json").is_file():
            job.results = resize_dataset(w2w.WeightDataset.load(what), str(job.out), rank, keep, memory)
            return
        loras, denoiser = read_all([what], None, base)
        layout = layout_for(loras[0], denoiser, rank or rank_that_keeps(loras, keep or 1.0))
        rows, errors = to_rows(loras, layout)
        write_one(job.out, layout, rows[0], form.value, denoiser, name=Path(what).stem, method="w2w resize", overwrite=overwrite)
        job.results = {"of": what, "from": loras[0].rank, "rank": layout.rank, "rank_error": errors[0]}


def map_(
    dataset: Dataset = "tiny-faces",
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="A folder with ID.png, or ID/*.png, for each row: thumbnails in the HTML.")
    ] = None,
    memory: Memory = 2.0,
    seed: Seed = 0,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Draw a dataset as a map: adapters lie near each other where their products are alike. An .html, .png or .svg."""
    if out and out.suffix not in (".html", ".png", ".svg"):
        raise W2WError(f"--out {out} does not end with .html, .png or .svg.")
    with run("map", locals(), "map.html", reads=("dataset", "pictures"), fresh=("out",)) as job:
        from w2wpp.fleet.chart import draw_map, html_map, positions
        from w2wpp.fleet.index import ProductIndex

        data = w2w.WeightDataset.from_pretrained(dataset)
        places = positions(ProductIndex.of(data, memory), seed)
        job.results = {"n": len(data)}
        if job.out.suffix == ".html":
            job.results["thumbnails"] = html_map(job.out, places, data.ids, pictures)
        else:
            draw_map(job.out, places, data.ids)
