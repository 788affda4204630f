"""The verb `w2w export`: points, rows and spaces as files of other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from w2wpp.cli.common import run
from w2wpp.cli.help import EXCHANGE, verb
from w2wpp.cli.options import RUNS, Base, DatasetOption, DryRun, Json, Out, Overwrite, Points, Runs, Space
from w2wpp.common.errors import W2WError


class ExportFormat(StrEnum):
    """Whose files to write."""

    peft = "peft"
    diffusers = "diffusers"
    kohya = "kohya"
    w2w = "w2w"
    w2wmodel = "w2wmodel"  # one point
    vae = "vae"  # a space


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    verb(app, "export", "w2w export --points me/points.safetensors --space tiny-faces --format kohya", EXCHANGE)(export)


def export(
    points: Points = None,
    space: Space = None,
    dataset: DatasetOption = None,
    identities: Annotated[
        list[str] | None, typer.Option("--id", help="Id of a point or row; may be given several times. The first unless given.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Write every point or row, into one folder.")] = False,
    form: Annotated[ExportFormat, typer.Option("--format", help="Format of the files; ComfyUI and A1111 read kohya.")] = (
        ExportFormat.peft
    ),
    licence: Annotated[str, typer.Option("--licence", help="Licence of the adapters; it is written into the model card.")] = "unknown",
    memory: Annotated[float, typer.Option("--memory", min=0.001, help="Memory for rows, GiB; only with --format w2w.")] = 2.0,
    base: Base = "tiny-faces",
    out: Out = None,
    overwrite: Overwrite = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write points, or rows of a dataset, as files of peft, diffusers, kohya or w2w.

    w2wmodel is one point as the coefficients that the published notebooks load, vae a space as the seed's vae.pt.
    Several go into one folder. A model card is written beside them.
    """
    ids = identities or []
    if form in (ExportFormat.w2wmodel, ExportFormat.vae):
        with run("export", locals(), f"{form.value}.pt", fresh=("out",)) as job:
            from w2wpp.exchange.export_published import export_file

            refuse_several(form, points, space, dataset, ids, everything, job.out)
            job.results = export_file(job.out, str(space), points, ids[0] if ids else "")
        return
    if (points is None) == (dataset is None) or (space is None) != (points is None):
        raise W2WError("what to export was not named. Give --points and --space, or --dataset.")
    several = everything or len(ids) > 1
    one_file = not several and form in (ExportFormat.diffusers, ExportFormat.kohya)
    if out and one_file and out.suffix != ".safetensors":
        raise W2WError(f"--format {form.value} writes one file; --out {out} does not end with .safetensors.")
    with run("export", locals(), f"{form.value}.safetensors" if one_file else "adapters" if several else "adapter") as job:
        from w2wpp.exchange.denoiser import Denoiser
        from w2wpp.exchange.exporting import Form, export, from_dataset, from_points

        denoiser = Denoiser.load(base)
        if points and space:
            chosen = from_points(points, space, denoiser, ids, everything)
        else:
            chosen = from_dataset(str(dataset), denoiser, ids, everything)
        card = export(
            chosen, job.out, cast(Form, form.value), denoiser, licence=licence, memory=memory, folder=several, overwrite=overwrite
        )
        job.results = {"of": chosen.ids[0] if len(chosen.ids) == 1 else len(chosen.ids), "d": chosen.layout.d, "card": card}


def refuse_several(
    form: ExportFormat, points: Path | None, space: Path | None, dataset: str | None, ids: list[str], everything: bool, out: Path
) -> None:
    """Raise W2WError unless one point, or one space, and one file were named, as the published single files need."""
    given = space is not None and (points is not None) == (form == ExportFormat.w2wmodel)
    if not given or dataset or everything or len(ids) > 1 or out.suffix != ".pt":
        what = "one point: give --points, --space, one --id" if form == ExportFormat.w2wmodel else "a space: give --space"
        raise W2WError(f"--format {form.value} writes {what}, and --out FILE.pt.")
