"""Verbs that judge models: score, evaluate; and demo, which runs all of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import RUNS, Base, Device, DryRun, Guidance, Json, Out, Runs, Seed, Steps, numbers, run, show
from w2wpp.errors import W2WError

Dataset = Annotated[str, typer.Option("--dataset", help="tiny-faces (embedded) or the folder of a weight dataset.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    for verb in (score, evaluate, demo):
        app.command()(verb)


def score(
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.")],
    photos: Annotated[Path, typer.Argument(help="A photo, or a folder of photos of one person.")],
    as_json: Json = False,
) -> None:
    """ID Score: mean cosine of FaceNet embeddings over all pairs; faces that are not found are counted."""
    left, right = (w2w.read_folder(path) for path in (pictures, photos))
    show(asdict(w2w.id_score(left, right)), as_json)


def evaluate(
    faces: Annotated[Path, typer.Argument(help="A folder that `w2w faces align --labels` made.")],
    dataset: Dataset = "tiny-faces",
    split: Annotated[str, typer.Option("--split", help="Whose people to score; those with two or more photos count.")] = "test",
    ms: Annotated[str, typer.Option("--m", help="Dimensions of the spaces, with commas; empty for no space.")] = "32,128,512",
    min_photos: Annotated[int, typer.Option("--min-photos", min=2, help="Photos a person must have to be scored.")] = 2,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Pictures a person and method.")] = 5,
    guidance: Guidance = 2.0,
    solver_steps: Steps = 20,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", min=1, help="Steps of our inversion from z = 0; the published one has 400, from an encoder it is 10 of four draws."
        ),
    ] = 40,
    spaces: Annotated[list[Path] | None, typer.Option("--space", help="A fitted space to score as well; may be repeated.")] = None,
    encoders: Annotated[list[Path] | None, typer.Option("--encoder", help="The encoder of each --space, in the same order.")] = None,
    searches_m: Annotated[int | None, typer.Option("--searches-m", help="Also try CMA-ES, CEM and eq. 7 in a --space of this m.")] = None,
    widths: Annotated[str, typer.Option("--widths", help="Hidden widths of the VAE's encoder.")] = "4096,2048,1024",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="The VAE's passes over its train part.")] = 12,
    group: Annotated[int, typer.Option("--group", min=1, help="People that share each forward pass.")] = 32,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Table 1: base, DreamBooth from one and from many photos, inversion in PCA and VAE spaces.

    A --space that is given is inverted in too; with its --encoder (tiny-faces is the embedded one's), also from where that puts
    the photo, and so is DreamBooth trained. Writes table1.json, sheets of pictures beside their photos, and report.html. With
    the same --out, an interrupted table goes on with the row it had reached.
    """
    with run("evaluate", locals()) as job:
        if encoders and len(encoders) != len(spaces or []):
            raise W2WError(f"{len(encoders)} encoders were given for {len(spaces or [])} spaces. Give each --space its --encoder.")
        files = [str(file) for file in spaces or []]
        pairs = zip(files, [str(file) for file in encoders] if encoders else [""] * len(files), strict=True)
        options = w2w.Table1Options(
            ms=numbers(ms) if ms else (),
            min_photos=min_photos,
            pictures=pictures,
            guidance=guidance,
            solver_steps=solver_steps,
            group=group,
            inversion=w2w.InversionOptions(steps=steps),
            vae=w2w.VaeOptions(widths=numbers(widths), epochs=epochs),
            trained=tuple(pairs),
            searches_m=searches_m,
        )
        model, people = w2w.BaseModel.load(base, device), w2w.AlignedFaces.open(faces)
        table = w2w.table1(model, w2w.WeightDataset.open(dataset), people, split, seed=seed, options=options, folder=job.out)
        w2w.write_json(job.out / "table1.json", table)
        job.results = {"table": job.out / "table1.json", "report": w2w.write_report(job.out, w2w.table1_report(table, job.out))}


def demo(
    base: Base = "tiny-faces",
    dataset: Dataset = "tiny-faces",
    photo: Annotated[Path | None, typer.Option("--photo", help="Photo to invert; the astronaut of scikit-image unless given.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """The whole loop on the embedded pipeline and weights; ends with report.html."""
    with run("demo", locals()) as job:
        space = "tiny-faces" if base == dataset == "tiny-faces" else ""
        options = w2w.DemoOptions(base=base, dataset=dataset, space=space, photo=photo, seed=seed, device=device)
        job.results = w2w.run_demo(options, job.out)
        job.printed = ("seconds", "scores", "report")
