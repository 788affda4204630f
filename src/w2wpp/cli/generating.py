"""The verb `w2w generate`: pictures of a point, an adapter, a person of a dataset, or the base alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import Run, asked, open_base, position, precision_of, run
from w2wpp.cli.help import INVERSION, verb
from w2wpp.cli.options import (
    REMEMBERED,
    RUNS,
    Base,
    BasePrecision,
    DatasetOption,
    Device,
    DryRun,
    FirstSeed,
    Guidance,
    InPrecision,
    Json,
    Negative,
    Out,
    Overwrite,
    Points,
    Runs,
    SolverSteps,
    Space,
)
from w2wpp.cli.scaling import Cores, Ray, Workers, check_scaling, handed_out
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from torch import Tensor

    from w2wpp.lora.prompting import Prompting


Everything = Annotated[bool, typer.Option("--all", help="With --dataset or --points: draw all of them, resumable.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    verb(app, "generate", 'w2w generate "photo of sks person smiling" --adapter me/adapters/me', INVERSION)(generate)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="Caption of the pictures; `sks` stands for the adapter's person.", show_default=REMEMBERED)
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of pictures.")] = 4,
    points: Points = None,
    space: Space = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="A peft adapter folder.")] = None,
    dataset: DatasetOption = None,
    identity: Annotated[str, typer.Option("--id", help="Id of the point or person; the first unless given.")] = "",
    everything: Everything = False,
    ray: Ray = None,
    cores: Cores = None,
    workers: Workers = None,
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
    """Draw pictures of a point, of an adapter, of a person of a dataset, or of the base alone.

    --all draws every point of the file, or every person of the dataset, into one folder each below OUT/pictures. An interrupted
    run resumes if it is given the same --out. --ray draws on all machines of a Ray cluster, which must see all files at the same paths.
    """
    given = locals()
    check_all(given)
    with run("generate", given, resumes=everything, sign="settings.json") as job:
        from w2wpp.photos.images import write_rows

        model = open_base(base, "cpu" if ray else device, precision)
        if everything:
            draw_everything(job, given, model)
            return
        layout, weights, key, known = pick_adapter(points, space, adapter, dataset, identity, model)
        seeds = range(seed, seed + n)
        words = asked(known, prompt, guidance)
        scale, steps = words.guidance, solver_steps
        pictures = model.generate(words.prompt, seeds, layout=layout, weights=weights, guidance=scale, negative=negative, steps=steps)
        job.results = {"of": key, "sheet": write_rows(job.out, [key], [pictures], seeds)}


def check_all(given: Mapping[str, Any]) -> None:
    """Raise W2WError for options that do not go together, or with --all alone, or not with it. given: the verb's arguments."""
    check_scaling(given)
    if given["space"] and not given["points"]:
        raise W2WError(f"--space {given['space']} was given without a point in it. Give --points.")
    if given["ray"] and not given["everything"]:
        raise W2WError("--ray was given without --all, and pictures of one model need one process. Give that too, or leave it out.")
    if not given["everything"]:
        return
    if given["adapter"] or (given["dataset"] is None) == (given["points"] is None):
        raise W2WError("--all draws every row of a --dataset, or every one of --points in their --space. Give one of the two.")
    if given["identity"] or given["overwrite"]:
        one = "--id" if given["identity"] else "--overwrite"
        raise W2WError(f"{one} was given with --all, which draws all models and resumes what is there. Leave it out.")


def draw_everything(job: Run, given: Mapping[str, Any], model: "w2w.BaseModel") -> None:
    """Draw all models of a dataset, or of a file of points. given: the verb's arguments."""
    from w2wpp.fleet.pictures_of_all import AllRecipe, Words, draw_all, models_of

    named = (given["dataset"], given["points"], given["space"])
    models, seeds = models_of(*named, model), range(given["seed"], given["seed"] + given["n"])
    words = asked(models.prompting, given["prompt"], given["guidance"])
    how = Words(words.prompt, tuple(seeds), words.guidance, given["negative"], given["solver_steps"])
    dtype = precision_of(given["precision"])
    recipe = AllRecipe(given["base"], model.id, *named, models.fingerprint, how, given["device"], dtype)
    with handed_out(given, job, lambda: recipe) as mapper:
        job.results |= draw_all(models, how, model, job.out, mapper)


def pick_adapter(
    points: Path | None, space: Path | None, adapter: Path | None, dataset: str | None, identity: str, model: "w2w.BaseModel"
) -> "tuple[w2w.Layout | None, Tensor | None, str, Prompting]":
    """The layout, weights [d] and id of what the user named, and how it is drawn; of the base (None, None, "base", ...).

    Raises W2WError if two things were named, or what was named belongs to another base.
    """
    from w2wpp.exchange.formats.peft import read_peft
    from w2wpp.fleet.pictures_of_all import models_of
    from w2wpp.lora.prompting import Prompting

    if sum(thing is not None for thing in (points, adapter, dataset)) > 1:
        raise W2WError("more than one of --points, --adapter and --dataset was given. Name one.")
    if adapter:
        layout, weights = read_peft(adapter)
        expected = w2w.Layout.of(model.pipeline.unet, rank=layout.rank, alpha=layout.alpha, targets=layout.targets)
        expected.check_same(layout, f"base {model.source}", str(adapter))
        return layout, weights, adapter.name, Prompting()
    if dataset or points:
        models = models_of(dataset, points, space, model)
        row = position(models.ids, identity or models.ids[0])
        return models.layout, models.weights([row])[0], models.ids[row], models.prompting
    return None, None, "base", Prompting()
