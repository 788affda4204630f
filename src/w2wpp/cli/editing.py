"""The verb `w2w edit`: points moved along attributes of the people in a dataset."""

from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import (
    RUNS,
    SKS,
    Base,
    Device,
    DryRun,
    Guidance,
    Json,
    Out,
    Prompt,
    Runs,
    SpaceFile,
    Steps,
    open_space,
    position,
    run,
)
from w2wpp.errors import W2WError

CHANGES = typer.Option("--attribute", help="NAME=STRENGTH in standard deviations of its score, such as smiling=2 or man=-1; repeatable.")
DEBIAS = typer.Option("--debias", help="An attribute whose score is to stay; repeatable.")
LABELS = typer.Option("--labels", help="A csv with a column id or person, and attributes; in place of the dataset's labels.")

INJECT_AT = typer.Option("--inject-at", min=0, max=1, help="Share of the noise schedule below which the edit acts; 1 is all of it.")


def register(app: typer.Typer) -> None:
    """Add this verb to `w2w`."""
    app.command()(edit)


def edit(
    space: SpaceFile,
    points: Annotated[Path, typer.Option("--points", help="A points.safetensors of this space.")],
    changes: Annotated[list[str], CHANGES],
    identity: Annotated[list[str] | None, typer.Option("--id", help="Which point; repeatable, all of them unless given.")] = None,
    hold: Annotated[list[str] | None, DEBIAS] = None,
    labels: Annotated[Path | None, LABELS] = None,
    dataset: Annotated[str, typer.Option("--dataset", help="Whose rows the attributes are learned from.")] = "tiny-faces",
    inject_at: Annotated[float, INJECT_AT] = 1.0,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Pictures of each; column j has image seed j in every row.")] = 5,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    guidance: Guidance = 2.0,
    solver_steps: Steps = 20,
    seed: Annotated[int, typer.Option("--seed", help="Image seed of the first picture; the next has the next.")] = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Change attributes of points: points.safetensors, and a sheet with each original's pictures over the edited one's.

    Labels say who in the dataset has an attribute; a ridge regression finds its direction (docs/editing.md).
    """
    strengths = parsed(changes)
    held = [name for name in dict.fromkeys(hold or []) if name not in strengths]
    with run("edit", locals()) as job:
        model, opened = open_space(space, base, device)
        z, ids = w2w.load_points(points, opened)
        chosen = [position(ids, name) for name in identity] if identity else list(range(len(ids)))
        data = w2w.WeightDataset.open(dataset)
        found = w2w.attribute_directions(opened, data, [*strengths, *held], w2w.read_labels(labels, data) if labels else None)
        directions = [w2w.debias(direction, found[len(strengths) :]) for direction in found[: len(strengths)]]
        edited = w2w.edit(z[chosen], directions, list(strengths.values()))
        names = [ids[i] for i in chosen]
        new = [f"{name}-edited" for name in names]
        w2w.save_points(job.out / "points.safetensors", edited, new, opened)
        before, after = opened.decode(z[chosen]), opened.decode(edited)
        seeds = range(seed, seed + pictures)
        upper = w2w.picture_rows(model, opened.layout, before, prompt, seeds, guidance=guidance, steps=solver_steps)
        lower = w2w.edited_rows(
            model, opened.layout, before, after, prompt, seeds, inject_at=inject_at, guidance=guidance, steps=solver_steps
        )
        rows = [row for pair in zip(upper, lower, strict=True) for row in pair]
        sheet = w2w.write_rows(job.out, [key for pair in zip(names, new, strict=True) for key in pair], rows, seeds)
        fits = {d.name: {"strength": strengths.get(d.name, 0.0), "rows": d.n, "correlation": d.correlation, "auc": d.auc} for d in found}
        job.results = {"points": new, "sheet": sheet, "attributes": fits}


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
