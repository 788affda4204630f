"""Verbs that use a space: sample, interpolate, reconstruct."""

from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import drawing, open_space, position, read_through, run, told_of_loss
from w2wpp.cli.help import SPACES, verb
from w2wpp.cli.options import (
    RUNS,
    Base,
    BasePrecision,
    Dataset,
    Device,
    DryRun,
    EncoderFile,
    Guidance,
    InPrecision,
    Json,
    Negative,
    Out,
    Overwrite,
    OverwriteFile,
    PicturesEach,
    Prompt,
    ReadBy,
    Runs,
    Seed,
    SolverSteps,
    SpaceFile,
)
from w2wpp.cli.prior import Like, PriorFile, PriorGuidance, Where, drawn_points
from w2wpp.common.batches import batches
from w2wpp.common.progress import track

AT_ONCE = 64  # drawn models whose adapters are in memory together


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    verb(app, "sample", "w2w sample tiny-faces --n 2 --out drawn", SPACES)(sample)
    verb(app, "interpolate", "w2w interpolate tiny-faces --points drawn/points.safetensors --n 9", SPACES)(interpolate)
    verb(app, "reconstruct", "w2w reconstruct pca.safetensors adapters --n 6", SPACES)(reconstruct)


def sample(
    space: SpaceFile,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of models.")] = 2,
    pictures: PicturesEach = 5,
    factor: Annotated[
        float, typer.Option("--factor", min=0, help="Multiplies the prior's deviations; below 1, models lie nearer to the mean.")
    ] = 1.0,
    prior: PriorFile = None,
    where: Where = None,
    like: Like = None,
    prior_guidance: PriorGuidance = 2.0,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    guidance: Guidance = None,
    negative: Negative = "",
    solver_steps: SolverSteps = 20,
    seed: Seed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    out: Out = None,
    overwrite: Overwrite = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Draw new models from a space: writes points.safetensors, and one row of pictures for each model.

    A prior draws where real people lie, and those that --where and --like ask for; without one, points are N(0, I).
    """
    with run("sample", locals(), resumes=False) as job:
        from w2wpp.common.memory import check_room
        from w2wpp.photos.images import write_rows

        model, opened = open_space(space, base, device, precision)
        # Every picture is there twice at the end: once more in the sheet.
        check_room(n * (8 * opened.m + 6 * pictures * model.image_size**2), f"{n} models of {pictures} pictures each")
        z = drawn_points(opened, model, n, seed, prior, where, like, prior_guidance, factor)
        ids = [f"sample-{seed}-{i}" for i in range(n)]
        w2w.save_points(job.out / "points.safetensors", z, ids, opened)
        seeds = range(pictures)
        how = drawing(opened.prompting, prompt, guidance, negative, solver_steps)
        rows = []
        for s in track(list(batches(n, AT_ONCE)), f"draw {pictures} pictures each", f"groups of {AT_ONCE} models"):
            rows += w2w.picture_rows(model, opened.layout, opened.decode(z[s]), seeds=seeds, **how)
        job.results = {"points": ids, "sheet": write_rows(job.out, ids, rows, seeds)}


def interpolate(
    space: SpaceFile,
    points: Annotated[Path | None, typer.Option("--points", help="A points.safetensors; two drawn points unless given.")] = None,
    start: Annotated[str, typer.Option("--from", help="Id of the first point; the file's first unless given.")] = "",
    end: Annotated[str, typer.Option("--to", help="Id of the last point; the file's last unless given.")] = "",
    n: Annotated[int, typer.Option("--n", min=2, help="Pictures in the strip, both ends included.")] = 7,
    image_seed: Annotated[
        int, typer.Option("--image-seed", min=0, help="Image seed of every picture: the seed of its starting noise.")
    ] = 0,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    guidance: Guidance = None,
    negative: Negative = "",
    solver_steps: SolverSteps = 20,
    seed: Seed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Walk in a straight line from one point to another; every picture has the same image seed."""
    with run("interpolate", locals(), "strip.png", stored=True, fresh=("out",)) as job:
        model, opened = open_space(space, base, device, precision)
        z, ids = w2w.load_points(points, opened) if points else (opened.sample(2, seed=seed), [f"sample-{seed}-0", f"sample-{seed}-1"])
        first, last = position(ids, start or ids[0]), position(ids, end or ids[-1])
        line = w2w.interpolate(z[first], z[last], n)
        how = drawing(opened.prompting, prompt, guidance, negative, solver_steps)
        strip = w2w.picture_rows(model, opened.layout, opened.decode(line), seeds=[image_seed], **how)
        w2w.write_image(job.out, w2w.grid([[picture for row in strip for picture in row]]))
        job.results = {"from": ids[first], "to": ids[last], "pictures": n}


def reconstruct(
    space: SpaceFile,
    dataset: Dataset = "tiny-faces",
    people: Annotated[str, typer.Option("--people", help="Ids, separated by commas; the first rows of the dataset unless given.")] = "",
    n: Annotated[int, typer.Option("--n", min=1, help="Number of rows, if --people is not given.")] = 6,
    reading: ReadBy = None,
    encoder: EncoderFile = None,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    guidance: Guidance = None,
    negative: Negative = "",
    solver_steps: SolverSteps = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Image seed of every picture: the seed of its starting noise.")] = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Adapters to points, and back to adapters; draws the originals above what comes back."""
    with run("reconstruct", locals(), "reconstructions.png", stored=True, fresh=("out",)) as job:
        network = read_through(space, reading, encoder)
        model, opened = open_space(space, base, device, precision)
        data = w2w.WeightDataset.from_pretrained(dataset)
        opened.check(data.layout, data.base_id, f"dataset {dataset}")
        ids = people.split(",") if people else data.ids[:n]
        weights = data.rows([data.index_of(person) for person in ids])
        z, words = None, data.prompting
        if network:
            z = w2w.points_of_adapters(
                model, opened, network, weights, ids, w2w.AdapterReading(prompt=words.prompt, guidance=words.guidance)
            )
        rebuilt, lost = w2w.reconstruct(opened, weights, z)
        how = drawing(words, prompt, guidance, negative, solver_steps)
        both = [w2w.picture_rows(model, data.layout, some, seeds=[seed], **how) for some in (weights, rebuilt)]
        w2w.write_image(job.out, w2w.grid([[row[0] for row in rows] for rows in both]))
        told = {"reading": "pictures"} if network else {"reading": "weights", **told_of_loss(space, lost)}
        job.results = {"people": ids, "lost": dict(zip(ids, lost, strict=True)), **told}
