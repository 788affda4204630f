"""The verb `w2w edit`: points moved along attributes of the people in a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import drawing, open_space, position, run, told_of_loss
from w2wpp.cli.help import SPACES, verb
from w2wpp.cli.options import (
    RUNS,
    Base,
    BasePrecision,
    Device,
    DryRun,
    FirstSeed,
    Guidance,
    InPrecision,
    Json,
    Negative,
    Out,
    Overwrite,
    PicturesEach,
    Prompt,
    Runs,
    SolverSteps,
    SpaceFile,
)
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from torch import Tensor

ENCODED = 64  # rows of the dataset of which it is told how much of them the space keeps


def register(app: typer.Typer) -> None:
    """Add this verb to `w2w`."""
    verb(app, "edit", "w2w edit tiny-faces --points drawn/points.safetensors --attribute smiling=2", SPACES)(edit)


EditedPoints = Annotated[Path, typer.Option("--points", help="A points.safetensors of this space.")]
Changes = Annotated[
    list[str],
    typer.Option(
        "--attribute",
        help="NAME=STRENGTH, such as smiling=2 or man=-1, in standard deviations of the score. May be given several times.",
    ),
]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Id of a point to edit; may be given several times. All points unless given.")]
Hold = Annotated[list[str] | None, typer.Option("--debias", help="An attribute whose score must not change; may be given several times.")]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="A csv with a column id or person, and one column for each attribute. The dataset's own labels unless given."
    ),
]
Teachers = Annotated[
    str, typer.Option("--dataset", help="Weight dataset that the attributes are learned from; with --published also a points file.")
]
InjectAt = Annotated[
    float | None,
    typer.Option(
        "--inject-at",
        min=0,
        max=1,
        help="The edit acts below this share of the noise schedule; 1 is the whole schedule.",
        show_default="1; with --published as --start-noise says",
    ),
]
Published = Annotated[bool, typer.Option("--published", help="The published edit: pseudo-inverse directions, strengths such as 500000.")]
StartNoise = Annotated[
    int | None,
    typer.Option("--start-noise", min=0, help="Timesteps above this one see the original.", show_default="700 with --published"),
]


def edit(
    space: SpaceFile,
    points: EditedPoints,
    changes: Changes,
    identity: Ids = None,
    hold: Hold = None,
    labels: Labels = None,
    dataset: Teachers = "tiny-faces",
    inject_at: InjectAt = None,
    published: Published = False,
    start_noise: StartNoise = None,
    pictures: PicturesEach = 5,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    guidance: Guidance = None,
    negative: Negative = "",
    solver_steps: SolverSteps = 20,
    seed: FirstSeed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    out: Out = None,
    overwrite: Overwrite = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Change attributes of points: writes points.safetensors, and pictures before and after.

    Labels say who in the dataset has an attribute; a ridge regression finds its direction (docs/how/editing.md).
    """
    strengths = parsed(changes)
    held = [name for name in dict.fromkeys(hold or []) if name not in strengths]
    with run("edit", locals(), resumes=False) as job:
        from w2wpp.base.drawing import edited_rows
        from w2wpp.photos.images import write_rows

        model, opened = open_space(space, base, device, precision)
        z, ids = w2w.load_points(points, opened)
        chosen = [position(ids, name) for name in identity] if identity else list(range(len(ids)))
        if published:
            edited, fits, kept = edited_as_published(opened, z[chosen], dataset, labels, strengths, held)
        else:
            edited, fits, kept = edited_by_ridge(space, opened, z[chosen], dataset, labels, strengths, held)
        at = sets_in_at(inject_at, start_noise, published, model.noise_scheduler.config.num_train_timesteps)
        names = [ids[i] for i in chosen]
        new = [f"{name}-edited" for name in names]
        w2w.save_points(job.out / "points.safetensors", edited, new, opened)
        before, after = opened.decode(z[chosen]), opened.decode(edited)
        seeds = range(seed, seed + pictures)
        how = drawing(opened.prompting, prompt, guidance, negative, solver_steps)
        upper = w2w.picture_rows(model, opened.layout, before, seeds=seeds, **how)
        lower = edited_rows(model, opened.layout, before, after, seeds=seeds, inject_at=at, **how)
        rows = [row for pair in zip(upper, lower, strict=True) for row in pair]
        sheet = write_rows(job.out, [key for pair in zip(names, new, strict=True) for key in pair], rows, seeds)
        job.results = {"points": new, "sheet": sheet, "attributes": fits, **kept}


def edited_by_ridge(
    file: Path, space: "w2w.Space", z: "Tensor", dataset: str, labels: Path | None, strengths: dict[str, float], held: list[str]
) -> "tuple[Tensor, dict[str, Any], dict[str, Any]]":
    """Our edit: the points [n, m] moved, how well each attribute is predicted, and what the space keeps of the dataset."""
    from w2wpp.spaces.edits import read_labels

    data = w2w.WeightDataset.from_pretrained(dataset)
    found = w2w.attribute_directions(space, data, [*strengths, *held], read_labels(labels, data) if labels else None)
    directions = [w2w.debias(direction, found[len(strengths) :]) for direction in found[: len(strengths)]]
    fits = {d.name: {"strength": strengths.get(d.name, 0.0), "rows": d.n, "correlation": d.correlation, "auc": d.auc} for d in found}
    some = data.rows(range(0, len(data), max(1, len(data) // ENCODED)))
    return w2w.edit(z, directions, list(strengths.values())), fits, told_of_loss(file, w2w.reconstruct(space, some)[1])


def edited_as_published(
    space: "w2w.Space", z: "Tensor", dataset: str, labels: Path | None, strengths: dict[str, float], held: list[str]
) -> "tuple[Tensor, dict[str, Any], dict[str, Any]]":
    """The published edit: the points [n, m] moved, from how many rows each direction comes, and nothing else."""
    from w2wpp.spaces.published_edits import published_debias, published_directions, published_edit

    found, rows = published_directions(space, dataset, [*strengths, *held], labels)
    directions = [published_debias(found[name], [found[other] for other in held]) for name in strengths]
    fits = {name: {"strength": strengths.get(name, 0.0), "rows": rows} for name in found}
    return published_edit(space, z, directions, list(strengths.values())), fits, {}


def sets_in_at(inject_at: float | None, start_noise: int | None, published: bool, timesteps: int) -> float:
    """The share of the schedule from which up the original is drawn. Raises W2WError if it was given in both ways."""
    if inject_at is not None and start_noise is not None:
        raise W2WError("--inject-at and --start-noise both say when the edit sets in. Leave out one of them.")
    if inject_at is not None or not (published or start_noise is not None):
        return 1.0 if inject_at is None else inject_at
    return min(1.0, ((timesteps * 7 // 10 if start_noise is None else start_noise) + 1) / timesteps)


def parsed(changes: list[str]) -> dict[str, float]:
    """The strengths of "smiling=2" and the like, by name. Raises W2WError for anything else, and a name given twice."""
    strengths: dict[str, float] = {}
    for change in changes:
        name, _, number = change.rpartition("=")
        try:
            strength = float(number)
        except ValueError:
            strength = float("nan")
        if not name or not abs(strength) < float("inf"):
            raise W2WError(f"--attribute {change!r} is no NAME=STRENGTH. Write it like smiling=2.")
        if name in strengths:
            raise W2WError(f"--attribute {name} was given twice. Give it once.")
        strengths[name] = strength
    return strengths
