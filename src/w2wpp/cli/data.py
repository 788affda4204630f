"""Verbs from photos to a weight dataset: faces align, base train and show, adapters train, import, and those of dataset."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import (
    RUNS,
    Base,
    Dataset,
    Device,
    DryRun,
    EncoderFile,
    Guidance,
    Json,
    Runs,
    Seed,
    encoder_of,
    override,
    run,
    show,
    those_given,
)
from w2wpp.errors import W2WError

faces = typer.Typer(help="Photos of people, brought to one place and size.", no_args_is_help=True)
base_model = typer.Typer(help="The frozen pipeline that all adapters share.", no_args_is_help=True)
adapters = typer.Typer(help="One DreamBooth-LoRA a person.", no_args_is_help=True)
dataset = typer.Typer(help="The adapters of many people as one table of numbers.", no_args_is_help=True)

Faces = Annotated[Path, typer.Argument(help="A folder that `w2w faces align` made.")]
Memory = Annotated[float, typer.Option("--memory", min=0.001, help="Memory that rows may take at a time, GiB.")]
AppendOut = Annotated[Path, typer.Option("--out", help="Folder of the result; an interrupted run there goes on where it stopped.")]


class Precision(StrEnum):
    """How a dataset keeps its numbers."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    app.add_typer(faces, name="faces")
    app.add_typer(base_model, name="base")
    app.add_typer(adapters, name="adapters")
    app.add_typer(dataset, name="dataset")
    app.command("import")(import_)


@faces.command("align")
def faces_align(
    photos: Annotated[Path, typer.Argument(help="A folder or zip of person/photo.jpg.")],
    out: AppendOut,
    size: Annotated[int, typer.Option("--size", min=8, help="Side of the aligned faces, pixels.")] = 64,
    labels: Annotated[Path | None, typer.Option("--labels", help="A csv with columns file (person/photo.jpg), split, ...")] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="Processes to detect in.  [default: one a core]")] = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Find each photo's face and bring its eyes and mouth to fixed places."""
    with run("faces-align", locals()) as job:
        job.results = w2w.align_photos(photos, out, size=size, labels=labels, processes=processes)


@base_model.command("train")
def base_train(
    faces: Faces,
    out: AppendOut,
    portraits: Annotated[Path | None, typer.Option("--portraits", help="The same people aligned larger, 128 pixels, to describe.")] = None,
    split: Annotated[str, typer.Option("--split", help="Whose photos to train on.")] = "train",
    held_out: Annotated[str, typer.Option("--held-out", help="Split that the validation loss is measured on.")] = "val",
    autoencoder_steps: Annotated[int, typer.Option("--autoencoder-steps", min=1, help="Steps of the autoencoder.")] = 5000,
    denoiser_steps: Annotated[int, typer.Option("--denoiser-steps", min=1, help="Steps of the UNet and text encoder.")] = 5200,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Photos a step of the UNet.")] = 64,
    seed: Seed = 0,
    device: Device = "auto",
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a small Stable Diffusion pipeline on aligned faces, from nothing: how tiny-faces was made.

    Needs the extra `train` (pip install 'w2wpp[train]'). Hours on two cores; goes on where it was interrupted.
    """
    with run("base-train", locals()) as job:
        photos = w2w.AlignedFaces.open(faces)
        options = w2w.BaseTraining(
            sizes=w2w.BaseSizes(image_size=photos.size),
            autoencoder=w2w.AutoencoderOptions(steps=autoencoder_steps, seed=seed),
            denoiser=w2w.DenoiserOptions(steps=denoiser_steps, batch=batch, seed=seed),
            split=split,
            held_out_split=held_out,
            seed=seed,
        )
        described = w2w.AlignedFaces.open(portraits) if portraits else None
        job.results = {"pipeline": w2w.train_base(photos, out, options, device, described), "curves": out / "training.json"}


@base_model.command("show")
def base_show(
    base: Annotated[str, typer.Argument(help="tiny-faces (embedded), a pipeline folder, or a hub id.")] = "tiny-faces",
    faces: Annotated[Path | None, typer.Option("--faces", help="Also measure the base on these aligned faces (minutes).")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Pictures to look for faces in.")] = 200,
    guidance: Guidance = 2.0,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Where to put the pictures that were measured.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what a base model is: its sizes, its words, and what the default adapter costs in numbers.

    With --faces, also how good it is: faces found in its pictures, identity kept by the autoencoder, and by names.
    """
    if sheet and not faces:
        raise W2WError(f"--sheet {sheet} holds the pictures that were measured, and nothing is without --faces. Give --faces.")
    model = w2w.BaseModel.load(base, device)
    parameters = {name: sum(p.numel() for p in getattr(model.pipeline, name).parameters()) for name in ("unet", "vae", "text_encoder")}
    vocabulary = sorted(model.pipeline.tokenizer.get_vocab())
    layout = w2w.options_for(base).layout_of(model)
    measured: dict[str, object] = {}
    if faces:
        measured, rows = w2w.check_base(model, w2w.AlignedFaces.open(faces), samples=samples, guidance=guidance)
        if sheet:
            w2w.write_image(sheet, w2w.grid(rows))
    show(
        {
            "base": base,
            "id": model.id,
            "image_size": model.image_size,
            "latent_shape": list(model.latent_shape),
            "parameters": parameters,
            "prediction": model.noise_scheduler.config.prediction_type,
            "default_adapter": {"targets": list(layout.targets), "matrices": len(layout.matrices), "d": layout.d},
            "vocabulary": len(vocabulary),
            "words": vocabulary if as_json or len(vocabulary) <= 20 else [*vocabulary[:20], "..."],
            **({"measured": measured} if measured else {}),
        },
        as_json,
    )


@adapters.command("train")
def adapters_train(
    faces: Faces,
    out: AppendOut,
    split: Annotated[str, typer.Option("--split", help="Only the people of this split; everyone unless given.")] = "",
    first: Annotated[int | None, typer.Option("--people", min=1, help="Only the first so many people, by name.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank of each product B A.")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="Scale of the product is alpha / rank.")] = None,
    targets: Annotated[str | None, typer.Option("--targets", help="Ends of the names of adapted linear layers, with commas.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of Adam.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Photos a person and step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Adam's learning rate.")] = None,
    prior_weight: Annotated[float | None, typer.Option("--prior-weight", help="Weight of prior preservation; 0 is none.")] = None,
    blend: Annotated[
        float | None, typer.Option("--blend", help="With --start-space: 1 ends where training ends, 0.5 half of the way there.")
    ] = None,
    group: Annotated[int, typer.Option("--group", min=1, help="People that share each forward pass.")] = 64,
    start: Annotated[Path | None, typer.Option("--start-space", help="Begin at the adapters of this space that its encoder gives.")] = None,
    encoder: EncoderFile = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train an adapter for every person, two for a person of several photos, into a weight dataset.

    Options that are not given are the base's own: the paper's for Stable Diffusion, tuned ones for tiny-faces.
    With --start-space tiny-faces, or a space and its --encoder, training begins at what the encoder makes of the photos, goes on
    at a tenth of the rate, and of the way that this goes half is taken: on tiny-faces such adapters are more like their people.
    An interrupted run goes on where it stopped.
    """
    given = locals()
    if encoder and not start:
        raise W2WError("--encoder was given without the space it belongs to. Give that as --start-space.")
    if blend is not None and not start:
        raise W2WError(f"--blend {blend:g} was given without a start to blend with. Give --start-space.")
    names = tuple(targets.split(",")) if targets else None
    preset = w2w.options_for(base)
    options = override(
        w2w.from_start(preset) if start else preset,
        rank=rank,
        alpha=alpha,
        targets=names,
        steps=steps,
        batch=batch,
        lr=lr,
        prior_weight=prior_weight,
        blend=blend,
        seed=seed,
    )
    with run("adapters-train", {**given, "options": options}) as job:
        photos = w2w.AlignedFaces.open(faces)
        people = (photos.of_split(split) if split else list(photos.people))[:first]
        model = w2w.BaseModel.load(base, device)
        begin = None
        if start:
            space = w2w.load_space(start, model.device)
            space.check(options.layout_of(model), model.id, f"base {base}")
            begin = w2w.encoder_start(space, encoder_of(start, encoder))
        job.results = w2w.train_population(model, photos, people, out, options, group=group, start=begin).info()


@dataset.command("info")
def dataset_info(
    dataset: Dataset = "tiny-faces",
    verify: Annotated[bool, typer.Option("--verify", help="Also read every shard and compare its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a weight dataset holds: people, splits, layout, base."""
    weights = w2w.WeightDataset.open(dataset)
    if verify:
        weights.verify()
    show(weights.info() | {"verified": verify}, as_json)


@dataset.command("select")
def dataset_select(
    dataset: Dataset,
    where: Annotated[list[str], typer.Option("--where", help="A label and its value, such as split=train; may be given several times.")],
    out: AppendOut,
    memory: Memory = 2.0,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy the rows that carry all of these labels into a dataset of their own."""
    with run("dataset-select", locals()) as job:
        if not all("=" in words for words in where):
            raise W2WError(f"--where {' '.join(where)} is not of the form label=value, such as split=train.")
        wanted = dict(words.split("=", 1) for words in where)
        job.results = w2w.select(w2w.WeightDataset.open(dataset), wanted, out, memory).info()


@dataset.command("labels")
def dataset_labels(
    dataset: Dataset,
    given: Annotated[
        Path | None, typer.Option("--set", help="A .csv or .parquet with a column id: set these labels of these rows.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the labels go, .csv or .parquet; in the run folder unless given.")
    ] = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the labels as a table, a row an adapter and a column a label; or set them from one with --set."""
    if given and out:
        raise W2WError("both --set and --out were given. Set the labels first, and then write them.")
    if given and dataset == "tiny-faces":
        raise W2WError("tiny-faces is part of the package. Copy it with `w2w dataset merge tiny-faces --out FOLDER`, and set labels there.")
    with run("dataset-labels", {**locals(), "out": Path(dataset) / "manifest.jsonl" if given else out}, "labels.csv") as job:
        weights = w2w.WeightDataset.open(dataset)
        if given:
            job.results = {"changed": w2w.label_from(weights, given)}
        else:
            w2w.write_table(job.out, weights.ids, weights.labels)
            job.results = {"rows": len(weights)}


@dataset.command("merge")
def dataset_merge(
    datasets: Annotated[list[str], typer.Argument(help="Folders of weight datasets of one layout and base.")],
    out: AppendOut,
    memory: Memory = 2.0,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy the rows of several datasets into one; an id may stand in one of them only."""
    with run("dataset-merge", locals()) as job:
        job.results = w2w.merge([w2w.WeightDataset.open(dataset) for dataset in datasets], out, memory).info()


def import_(
    source: Annotated[Path, typer.Argument(help="A LoRA file, a peft folder, a folder of them, or one of the published w2w files.")],
    out: AppendOut,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Rank of the rows.  [default: that of OUT, or the largest among the files]")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Scale is alpha / rank.  [default: the rank; for published files their own, or 27]")
    ] = None,
    drop_text_encoder: Annotated[bool, typer.Option("--drop-text-encoder", help="Leave out what adapts the text encoder.")] = False,
    labels: Annotated[Path | None, typer.Option("--labels", help="A csv with a column file, the path below SOURCE, and others.")] = None,
    dtype: Annotated[Precision, typer.Option("--dtype", help="Precision of the rows on disk.")] = Precision.float32,
    memory: Memory = 2.0,
    base: Base = "tiny-faces",
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring LoRAs of peft, diffusers, kohya or ComfyUI, or the published w2w dataset, into a weight dataset.

    Ranks and alphas may differ: every product is refactored to one rank and one gauge, and the error is reported.
    """
    with run("import", locals()) as job:
        denoiser, kept = w2w.Denoiser.load(base), getattr(import_module("torch"), dtype.value)
        if w2w.is_published(source):
            given = {"--rank": rank, "--labels": labels, "--drop-text-encoder": drop_text_encoder or None}
            if unused := those_given(given):
                raise W2WError(f"{source} holds published files, whose {unused} cannot be chosen. Leave it out.")
            job.results = w2w.import_published(denoiser, source, out, alpha=alpha, memory=memory, dtype=kept)
        else:
            job.results = w2w.import_loras(
                denoiser, source, out, rank=rank, alpha=alpha, drop_text_encoder=drop_text_encoder, labels=labels, memory=memory, dtype=kept
            )
