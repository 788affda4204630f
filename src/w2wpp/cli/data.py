"""Verbs from photos to rows of a table: faces align, and those of dataset."""

from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import run, show
from w2wpp.cli.help import DATASET, PHOTOS, verb
from w2wpp.cli.options import RUNS, AppendOut, Dataset, DryRun, Json, Memory, OverwriteFile, Precision, Runs
from w2wpp.common.errors import W2WError

faces = typer.Typer(help="Align photos of people to one place and size.", no_args_is_help=True)
dataset = typer.Typer(help="Describe, select, label or merge the adapters of many people, as one table of numbers.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    app.add_typer(faces, name="faces", rich_help_panel=PHOTOS)
    app.add_typer(dataset, name="dataset", rich_help_panel=DATASET)


@verb(faces, "align", "w2w faces align photos --labels labels.csv --out faces")
def faces_align(
    photos: Annotated[Path, typer.Argument(help="A folder or zip with one folder of photos for each person: person/photo.jpg.")],
    out: AppendOut,
    size: Annotated[int, typer.Option("--size", min=8, help="Width and height of the aligned faces, pixels.")] = 64,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="A csv with a column file (person/photo.jpg); its other columns, such as split, become labels."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes that look for faces.", show_default="one for each core")
    ] = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Find each photo's face and bring its eyes and mouth to fixed places."""
    with run("faces-align", locals(), sign="faces.jsonl") as job:
        job.results = w2w.align_photos(photos, out, size=size, labels=labels, processes=processes)


@verb(dataset, "info", "w2w dataset info adapters --verify")
def dataset_info(
    dataset: Dataset = "tiny-faces",
    verify: Annotated[bool, typer.Option("--verify", help="Also read every shard and compare its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Describe a weight dataset: people, splits, layout, base."""
    weights = w2w.WeightDataset.from_pretrained(dataset)
    if verify:
        weights.verify()
    show(weights.info() | {"verified": verify}, as_json)


@verb(dataset, "select", "w2w dataset select adapters --where split=train --out train")
def dataset_select(
    dataset: Dataset,
    where: Annotated[list[str], typer.Option("--where", help="A label and its value, such as split=train; may be given several times.")],
    out: AppendOut,
    dtype: Annotated[
        Precision | None,
        typer.Option("--dtype", help="Precision of the copies; int8 has one scale per matrix.", show_default="that of the rows"),
    ] = None,
    memory: Memory = 2.0,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy the rows that carry all of these labels into a dataset of their own."""
    with run("dataset-select", locals(), sign="dataset.json", stored=True) as job:
        if not all("=" in words for words in where):
            raise W2WError(f"--where {' '.join(where)} is not of the form label=value, such as split=train.")
        wanted = dict(words.split("=", 1) for words in where)
        import torch

        kept = getattr(torch, dtype.value) if dtype else None
        job.results = w2w.select(w2w.WeightDataset.from_pretrained(dataset), wanted, out, memory, kept).info()


@verb(dataset, "labels", "w2w dataset labels adapters --out labels.csv")
def dataset_labels(
    dataset: Dataset,
    given: Annotated[
        Path | None, typer.Option("--set", help="A .csv or .parquet with a column id: set these labels of these rows.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the labels go, .csv or .parquet; in the run folder unless given.")
    ] = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the labels as a table with one row for each adapter, or set labels from such a table with --set."""
    if given and out:
        raise W2WError("both --set and --out were given. Set the labels first, and then write them.")
    if given and dataset == "tiny-faces":
        raise W2WError("tiny-faces is part of the package. Copy it with `w2w dataset merge tiny-faces --out FOLDER`, and set labels there.")
    options = {**locals(), "out": Path(dataset) / "manifest.jsonl" if given else out, "overwrite": overwrite or given is not None}
    with run("dataset-labels", options, "labels.csv", reads=() if given else ("dataset",), stored=True, fresh=("out",)) as job:
        from w2wpp.dataset.labels import label_from, write_table

        weights = w2w.WeightDataset.load(dataset) if given else w2w.WeightDataset.from_pretrained(dataset)
        if given:
            job.results = {"changed": label_from(weights, given)}
        else:
            write_table(job.out, weights.ids, weights.labels)
            job.results = {"rows": len(weights)}


@verb(dataset, "merge", "w2w dataset merge adapters mine --out both")
def dataset_merge(
    datasets: Annotated[list[str], typer.Argument(help="Folders of weight datasets of one layout and base.")],
    out: AppendOut,
    memory: Memory = 2.0,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy the rows of several datasets into one. Each id may occur only once.

    Shards of one training (`w2w adapters train --shard`) are taken in their order, and must all be there and have ended.
    """
    with run("dataset-merge", locals(), sign="dataset.json", stored=True) as job:
        from w2wpp.adapters.status import whole_shards

        opened = [w2w.WeightDataset.from_pretrained(dataset) for dataset in whole_shards(datasets)]
        job.results = w2w.merge(opened, out, memory).info()
