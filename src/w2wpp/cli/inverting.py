"""The verb `w2w invert`: from photos to points, and the models that they stand for."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import drawing, encoder_of, open_space, override, run, those_given
from w2wpp.cli.help import INVERSION, verb
from w2wpp.cli.options import (
    RUNS,
    Base,
    BasePrecision,
    Device,
    DryRun,
    EncoderFile,
    Guidance,
    InPrecision,
    Json,
    LeanBase,
    Negative,
    Out,
    Prompt,
    Runs,
    Seed,
    SolverSteps,
    SpaceFile,
)
from w2wpp.common.errors import W2WError


class Method(StrEnum):
    """How to look for a point."""

    gradient = "gradient"
    likeness = "likeness"
    cma_es = "cma-es"
    cem = "cem"


class StartPoint(StrEnum):
    """Where to begin to look for it."""

    zero = "zero"
    encoder = "encoder"


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    verb(app, "invert", "w2w invert tiny-faces me.jpg --out me", INVERSION)(invert)


Photos = Annotated[
    list[Path], typer.Argument(help="Photos of one person each, or folders with photos of one person each. Every person gets a model.")
]
Align = Annotated[bool, typer.Option("--align/--no-align", help="Find and align the face first.")]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="A square black and white picture over the aligned photo; only what is white counts.")
]
MethodOption = Annotated[
    Method | None,
    typer.Option(
        "--method",
        help="gradient: descend the denoising loss; likeness: draw what looks like the photo; cma-es, cem: search without gradients.",
        show_default="gradient; likeness from an encoder that it taught",
    ),
]
Published = Annotated[
    bool,
    typer.Option("--published", help="The recipe of the space's paper, in place of the options below."),
]
OutOfDistribution = Annotated[bool, typer.Option("--out-of-distribution", help="With --published: 1,000 components, 800 steps, rate 1.")]
Activity = Annotated[
    str | None, typer.Option("--activity", help="With --published in a VAE: a dataset; latents that do not move over it stay.")
]
Start = Annotated[
    StartPoint | None,
    typer.Option(
        "--start",
        help="Where to start: at zero (the mean adapter), or at the encoder's point, which is the default if there is an encoder.",
    ),
]
InversionSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=0,
        help="Steps of gradient descent, or generations of a search.",
        show_default="40; from an encoder 10, by likeness 5",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        help="Noise pairs per step, from a fixed set; by likeness, pictures.",
        show_default="1; from an encoder 4, by likeness 1",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        min=0,
        help="Adam's rate in prior units; falls to 0, but by likeness.",
        show_default="0.2; from an encoder 0.03, by likeness 0.1",
    ),
]
PriorWeight = Annotated[
    float | None,
    typer.Option("--prior-weight", min=0, help="Weight of |z|^2 / 2m, the prior (eq. 6); 0 is eq. 5.", show_default="0.01"),
]
Variational = Annotated[bool, typer.Option("--variational", help="Look for a distribution over points (eq. 7).")]
TrajectoryPoints = Annotated[
    int,
    typer.Option(
        "--trajectory", min=0, help="Measure loss and ID Score at this number of points on the way, and draw their curves; 0 is none."
    ),
]
Pictures = Annotated[int, typer.Option("--pictures", min=1, help="Pictures of each inverted model.")]


def invert(
    space: SpaceFile,
    photos: Photos,
    align: Align = True,
    mask: Mask = None,
    method: MethodOption = None,
    published: Published = False,
    out_of_distribution: OutOfDistribution = False,
    activity: Activity = None,
    start: Start = None,
    encoder: EncoderFile = None,
    steps: InversionSteps = None,
    batch: Batch = None,
    lr: Rate = None,
    prior_weight: PriorWeight = None,
    variational: Variational = False,
    trajectory: TrajectoryPoints = 0,
    pictures: Pictures = 4,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    guidance: Guidance = None,
    negative: Negative = "",
    solver_steps: SolverSteps = 20,
    seed: Seed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    low_memory: LeanBase = False,
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Turn a photo into a model: find the point whose adapter explains the photo best (eq. 5 to 7).

    Writes points.safetensors, a dataset of the full weights, one peft adapter folder for each photo, and pictures beside the photos.
    """
    with run("invert", locals(), sign="inversion") as job:
        from w2wpp.inversion.published import published_options

        told = {"steps": steps, "batch": batch, "lr": lr, "prior_weight": prior_weight, "variational": variational or None}
        refuse_mixtures(method, published, out_of_distribution or bool(activity), {"start": start, "encoder": encoder, **told})
        network = None if published else pick_encoder(space, start, encoder)
        chosen = None if published else inversion_options(method, network, mask is not None, told)
        model, opened = open_space(space, base, device, precision, low_memory)
        options = chosen or published_options(opened, out_of_distribution=out_of_distribution, activity=activity)
        found = w2w.invert_photos(
            opened, photos, base=model, encoder=network, options=options, mask=mask, prompt=prompt, seed=seed, align=align, folder=job.out
        )
        how = drawing(opened.prompting, found.prompt if prompt is None else prompt, guidance, negative, solver_steps)
        sheet = found.save(job.out, pictures, **how)
        job.results = {"points": found.ids, "sheet": sheet, "start": found.start, "unet_evals": found.history.unet_evals}
        if trajectory:
            from w2wpp.evaluation import trajectory as ways

            way = ways.trajectory(found, trajectory, pictures=pictures, **how)
            job.results |= {"trajectory": way, "curves": ways.write_trajectory(job.out / "trajectory.svg", found.history, way)}


def refuse_mixtures(method: Method | None, published: bool, of_published: bool, told: Mapping[str, Any]) -> None:
    """Raise W2WError for a published recipe with options of ours, `told` by name, or the other way round."""
    if published and method not in (None, Method.gradient):
        raise W2WError(f"--published is a recipe of the gradient. Leave it out with --method {method.value}.")
    if published and (unused := those_given({f"--{name.replace('_', '-')}": value for name, value in told.items()})):
        raise W2WError(f"--published leaves no room for {unused}. Leave out one or the other.")
    if of_published and not published:
        raise W2WError("--out-of-distribution and --activity belong to the published recipe. Give --published as well.")


def inversion_options(
    method: Method | None, encoder: "w2w.PhotoEncoder | None", masked: bool, given: Mapping[str, Any]
) -> "w2w.InversionOptions | w2w.LikenessOptions | w2w.EvolutionOptions":
    """The options of a method, with what the user gave. Raises W2WError for options that the method does not have."""
    if method == Method.gradient or (method is None and given["variational"]):
        return override(w2w.REFINED if encoder else w2w.InversionOptions(), **given)
    recipe = w2w.LikenessOptions() if method == Method.likeness else w2w.recipe_from(encoder, masked)
    if method in (None, Method.likeness):
        if method and encoder is None:
            raise W2WError("likeness starts at an encoder's point. Give --encoder, a space that has one, and not --start zero.")
        if given["variational"]:
            raise W2WError("--variational is the gradient's. Leave it out with --method likeness.")
        return override(recipe, **{name: value for name, value in given.items() if name != "variational"})
    if given["variational"] or given["lr"] is not None:
        raise W2WError(f"--variational and --lr are the gradient's. Leave them out with --method {method.value}.")
    search = w2w.EvolutionOptions(method.value)
    return override(search, generations=given["steps"], batch=given["batch"], prior_weight=given["prior_weight"])


def pick_encoder(space: Path, start: StartPoint | None, encoder: Path | None) -> "w2w.PhotoEncoder | None":
    """The encoder that gives the start, or None to start at zero. Raises W2WError if one is asked for and there is none."""
    if start == StartPoint.zero:
        if encoder:
            raise W2WError("--encoder was given, and --start zero, which does not use it. Leave out one of them.")
        return None
    from w2wpp.spaces.pretrained import has_encoder

    if encoder or start == StartPoint.encoder or has_encoder(space):
        return encoder_of(space, encoder)
    return None
