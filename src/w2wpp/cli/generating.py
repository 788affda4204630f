"""The verb `w2w generate`: pictures of a point, an adapter, a person of a dataset, or the base alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import asked, open_base, position, run
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
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from torch import Tensor

    from w2wpp.lora.prompting import Prompting


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
    """Draw pictures of a point, of an adapter, of a person of a dataset, or of the base alone."""
    with run("generate", locals(), resumes=False) as job:
        from w2wpp.photos.images import write_rows

        model = open_base(base, device, precision)
        layout, weights, key, known = pick_adapter(points, space, adapter, dataset, identity, model)
        seeds = range(seed, seed + n)
        words = asked(known, prompt, guidance)
        scale, steps = words.guidance, solver_steps
        pictures = model.generate(words.prompt, seeds, layout=layout, weights=weights, guidance=scale, negative=negative, steps=steps)
        job.results = {"of": key, "sheet": write_rows(job.out, [key], [pictures], seeds)}


def pick_adapter(
    points: Path | None, space: Path | None, adapter: Path | None, dataset: str | None, identity: str, model: "w2w.BaseModel"
) -> "tuple[w2w.Layout | None, Tensor | None, str, Prompting]":
    """The layout, weights [d] and id of what the user named, and how it is drawn; of the base (None, None, "base", ...).

    Raises W2WError if two things were named, or what was named belongs to another base.
    """
    from w2wpp.exchange.formats.peft import read_peft
    from w2wpp.lora.prompting import Prompting

    if sum(thing is not None for thing in (points, adapter, dataset)) > 1:
        raise W2WError("more than one of --points, --adapter and --dataset was given. Name one.")
    if space and not points:
        raise W2WError(f"--space {space} was given without a point in it. Give --points.")
    if points:
        if not space:
            raise W2WError(f"{points} needs the space that it lies in. Give --space.")
        opened = w2w.Space.from_pretrained(space, device=model.device)
        opened.check(opened.layout, model.id, f"base {model.source}")
        z, ids = w2w.load_points(points, opened)
        row = position(ids, identity or ids[0])
        return opened.layout, opened.decode(z[row : row + 1])[0], ids[row], opened.prompting
    if adapter:
        layout, weights = read_peft(adapter)
        expected = w2w.Layout.of(model.pipeline.unet, rank=layout.rank, alpha=layout.alpha, targets=layout.targets)
        expected.check_same(layout, f"base {model.source}", str(adapter))
        return layout, weights, adapter.name, Prompting()
    if dataset:
        data = w2w.WeightDataset.from_pretrained(dataset)
        from w2wpp.base.identity import same_base

        if not same_base(data.base_id, model.id):
            raise W2WError(f"dataset {dataset} belongs to base {data.base_id}; {model.source} is {model.id}. Give its --base.")
        row = data.index_of(identity or data.ids[0])
        return data.layout, data.rows([row])[0], data.ids[row], data.prompting
    return None, None, "base", Prompting()
