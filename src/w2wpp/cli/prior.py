"""The verb `w2w fit prior`, and how `w2w sample` draws from what it makes."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import encoder_of, inputs_of, open_space, read_through, run
from w2wpp.cli.fitting import fit
from w2wpp.cli.help import OUTPUT, verb
from w2wpp.cli.options import (
    RUNS,
    Base,
    BasePrecision,
    Device,
    DryRun,
    EncoderFile,
    InPrecision,
    Json,
    Out,
    OverwriteFile,
    ReadBy,
    Reading,
    Runs,
    Seed,
    SpaceFile,
)
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from torch import Tensor

    from w2wpp.prior.examples import Examples


class PriorKind(StrEnum):
    """Which distribution to fit."""

    flow = "flow"
    mixture = "mixture"
    noisy_rows = "noisy-rows"
    mean_of_two = "mean-of-two"
    gaussian = "gaussian"


PriorFile = Annotated[Path | None, typer.Option("--prior", help="A prior by `w2w fit prior`; N(0, I) unless given.")]
Where = Annotated[
    str | None,
    typer.Option("--where", help="With --prior: attributes of the people drawn, such as smiling=1,man=0."),
]
Like = Annotated[Path | None, typer.Option("--like", help="With --prior: a photo of somebody whom the people drawn should resemble.")]
PriorGuidance = Annotated[
    float, typer.Option("--prior-guidance", min=0, help="How much more than asked --where and --like count; 1 is as asked.")
]
Kind = Annotated[PriorKind, typer.Option("--kind", help="Only flow can be asked for attributes and for likeness.")]
PointsIn = Annotated[Path | None, typer.Option("--points", help="A points.safetensors of real people.")]
DatasetIn = Annotated[str | None, typer.Option("--dataset", help="A weight dataset, each of whose adapters is a point.")]
FacesIn = Annotated[Path | None, typer.Option("--faces", help="A folder that `w2w faces align` made, each of whose photos is a point.")]
Split = Annotated[str, typer.Option("--split", help="Whose photos to take from --faces; everyone's if empty.")]
ReadPictures = Annotated[
    int, typer.Option("--read-pictures", min=1, help="Pictures by which an adapter is read.", rich_help_panel="Method")
]
ReadSteps = Annotated[int, typer.Option("--read-steps", min=1, help="Solver steps of those pictures.")]
Attributes = Annotated[
    list[str] | None, typer.Option("--attribute", help="A label that can be asked for later; may be given several times. Only for flow.")
]
LabelsIn = Annotated[
    Path | None, typer.Option("--labels", help="A csv with a column id or person, and one for each attribute; theirs unless given.")
]
KeepPoints = Annotated[
    Path | None, typer.Option("--keep-points", help="Where to keep the points, for a later --points.", rich_help_panel=OUTPUT)
]


def register(app: typer.Typer) -> None:
    """Add this verb to `w2w fit`, which is a part of `app`."""
    verb(fit, "prior", "w2w fit prior tiny-faces --dataset adapters --attribute smiling --out prior.safetensors")(fit_prior)


def fit_prior(
    space: SpaceFile,
    points: PointsIn = None,
    dataset: DatasetIn = None,
    faces: FacesIn = None,
    split: Split = "train",
    encoder: EncoderFile = None,
    reading: ReadBy = None,
    read_pictures: ReadPictures = 8,
    read_steps: ReadSteps = 15,
    labels: LabelsIn = None,
    attribute: Attributes = None,
    kind: Kind = PriorKind.flow,
    keep_points: KeepPoints = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fit a distribution over points of real people, from which `w2w sample --prior` draws new ones.

    The points are those of --points, of a dataset's adapters, or of people's photos. A tenth of the people is held out: it says
    when the training of the flow stops.
    """
    given = locals()
    if keep_points:
        from w2wpp.common.files import apart

        apart(keep_points, *inputs_of(given), out, option="--keep-points")
    with run("fit-prior", given, "prior.safetensors", stored=True, fresh=("out", "keep_points")) as job:
        from w2wpp.prior.base import fit_prior as fitted
        from w2wpp.prior.examples import Examples

        if sum(given is not None for given in (points, dataset, faces)) != 1:
            raise W2WError("a prior is fitted to points of one source. Give one of --points, --dataset and --faces.")
        opened = w2w.Space.from_pretrained(space)
        if points:
            examples = Examples.load(points, opened)
        elif faces:
            from w2wpp.inversion.people_points import examples_of_faces

            examples = examples_of_faces(opened, encoder_of(space, encoder), faces, split)
        else:
            examples = points_of_dataset(space, str(dataset), encoder, reading, (read_pictures, read_steps), base, device, precision, seed)
        examples = examples.labelled(labels) if labels else examples
        prior = fitted(opened, examples, kind.value, attributes=attribute or [], seed=seed)
        if keep_points:  # after what may be refused: an older file is not lost for nothing
            examples.save(keep_points, opened)
        prior.save(job.out)
        job.results = {"kind": prior.kind, "m": opened.m, "varying": prior.m, "people": len(prior.people), "history": prior.history}


def points_of_dataset(
    space: Path,
    dataset: str,
    encoder: Path | None,
    reading: Reading | None,
    pictures: tuple[int, int],
    base: str,
    device: str,
    precision: BasePrecision,
    seed: int,
) -> "Examples":
    """A dataset's adapters as points; pictures: how many each draws to be read by, and in how many solver steps."""
    from w2wpp.inversion.from_adapter import AdapterReading
    from w2wpp.inversion.people_points import examples_of_adapters
    from w2wpp.prior.examples import Examples

    network = read_through(space, reading, encoder)
    data = w2w.WeightDataset.from_pretrained(dataset)
    if network is None:
        return Examples.of_dataset(w2w.Space.from_pretrained(space), data)
    model, opened = open_space(space, base, device, precision)
    words = data.prompting
    how = AdapterReading(pictures=pictures[0], solver_steps=pictures[1], guidance=words.guidance, prompt=words.prompt, seed=seed)
    return examples_of_adapters(model, opened, network, data, how)


def drawn_points(
    space: "w2w.Space",
    base: "w2w.BaseModel",
    n: int,
    seed: int,
    prior: Path | None,
    where: str | None,
    like: Path | None,
    guidance: float,
    factor: float,
) -> "Tensor":
    """n new points of a space, [n, m]: from N(0, I), or from a prior that may be asked for attributes and a likeness.

    factor: multiplies their differences from the mean.
    """
    if prior is None:
        if where is not None or like is not None:
            raise W2WError("--where and --like are asked of a prior. Give --prior; `w2w fit prior` makes one.")
        return factor * space.sample(n, seed=seed)
    from w2wpp.inversion.photo import ready_photo
    from w2wpp.photos.descriptors import mean_descriptions
    from w2wpp.prior.base import Prior
    from w2wpp.prior.conditions import Asked, parsed_where

    opened = Prior.load(prior)
    opened.check(space)
    face = None if like is None else mean_descriptions([[ready_photo(like, base)]])[0]
    asked = Asked({} if where is None else parsed_where(where), face)
    opened.check_asked(asked)
    return opened.sample(n, seed=seed, asked=asked, guidance=guidance, factor=factor)
