"""Verbs of adapters: train a population of them, whole or in shards, and say how far that is."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import encoder_of, open_base, override, run, show
from w2wpp.cli.help import ADAPTERS, verb
from w2wpp.cli.options import (
    RUNS,
    AppendOut,
    Base,
    BasePrecision,
    Device,
    DryRun,
    EncoderFile,
    Faces,
    InPrecision,
    Json,
    LeanBase,
    Runs,
    Seed,
)
from w2wpp.cli.scaling import Cores, Ray, Workers, check_scaling, training_engine
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from w2wpp.adapters.start import Start

adapters = typer.Typer(help="Train one DreamBooth-LoRA for each person.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    app.add_typer(adapters, name="adapters", rich_help_panel=ADAPTERS)


Split = Annotated[str, typer.Option("--split", help="Train only people of this split; everyone unless given.")]
People = Annotated[int | None, typer.Option("--people", min=1, help="Train only this number of people, in the order of their names.")]
MostPhotos = Annotated[bool, typer.Option("--most-photos", help="With --people: the people with the most photos, not the first names.")]
HalvesFrom = Annotated[
    int,
    typer.Option("--halves-from", min=2, help="People with at least this number of photos get two adapters, of half the photos each."),
]
Rank = Annotated[int | None, typer.Option("--rank", min=1, help="Rank of each product B A.")]
Alpha = Annotated[float | None, typer.Option("--alpha", min=0, help="Scale of the product is alpha / rank.")]
Targets = Annotated[str | None, typer.Option("--targets", help="Ends of the names of the adapted linear layers, separated by commas.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps of Adam.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Photos of each person in each step.")]
Rate = Annotated[float | None, typer.Option("--lr", min=0, help="Adam's learning rate.")]
PriorWeight = Annotated[float | None, typer.Option("--prior-weight", min=0, help="Weight of prior preservation; 0 is none.")]
Blend = Annotated[
    float | None,
    typer.Option("--blend", min=0, max=1, help="With --start-space: 1 is the trained adapter, 0.5 its midpoint with the starting one."),
]
GroupSize = Annotated[int | None, typer.Option("--group", min=1, help="People in each pass; as many as fit in some 400 MiB unless given.")]
Shard = Annotated[
    str | None,
    typer.Option("--shard", help="Train only share i of n of the people, such as 1/4; auto asks SLURM's variables, or RANK."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train people again whose photos could not be read before.")]
StartSpace = Annotated[
    Path | None, typer.Option("--start-space", help="Start from the adapter that this space's encoder gives for the photos.")
]


@verb(adapters, "train", "w2w adapters train faces --start-space tiny-faces --out adapters")
def adapters_train(
    faces: Faces,
    out: AppendOut,
    split: Split = "",
    first: People = None,
    most_photos: MostPhotos = False,
    halves_from: HalvesFrom = 2,
    rank: Rank = None,
    alpha: Alpha = None,
    targets: Targets = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    prior_weight: PriorWeight = None,
    blend: Blend = None,
    group: GroupSize = None,
    shard: Shard = None,
    ray: Ray = None,
    cores: Cores = None,
    workers: Workers = None,
    retry_failed: RetryFailed = False,
    start: StartSpace = None,
    encoder: EncoderFile = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    low_memory: LeanBase = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train one adapter for each person, and a second one for people with several photos, into a weight dataset.

    Options that are not given are the base's own: the paper's for Stable Diffusion, tuned ones for tiny-faces.
    --start-space tiny-faces, or another space and its --encoder, starts from the encoder's adapter instead of zero. The learning
    rate is then a tenth, and the result is the midpoint between the starting adapter and the trained one (see --blend).
    An interrupted run resumes where it stopped. People whose photos cannot be read are left out; `w2w adapters status` lists them.
    --shard is for several processes, each with its own share of the people and a folder below --out: `w2w dataset merge` joins these.
    --ray trains on all machines of a Ray cluster, which must see faces and base at the same paths; this process alone writes.
    """
    given = locals()
    from w2wpp.adapters.shares import Share
    from w2wpp.adapters.status import read_status

    share = Share.of(shard) if shard else None
    out = share.folder(out) if share else out
    options = training_options(given)
    with run("adapters-train", {**given, "out": out, "options": options}, sign="dataset.json") as job:
        photos = w2w.AlignedFaces.load(faces)
        people = photos.choose(split, first, most_photos=most_photos)
        model = open_base(base, "cpu" if ray else device, precision, low_memory)  # with Ray, no GPU is for this process
        begin = start_at(start, encoder, model, options) if start else None
        how: dict[str, Any] = {"group": group, "halves_from": halves_from, "start": begin, "share": share, "retry_failed": retry_failed}
        with training_engine(given, model, photos, options) as engine:
            trained = w2w.train_population(model, photos, people, out, options, engine=engine, **how)
        job.results = trained.info() | {key: told for key, told in read_status(out).items() if key in ("failed", "tried_again")}


def training_options(given: Mapping[str, Any]) -> "w2w.AdapterOptions":
    """The options of a training: the base's own, with what the user gave.

    given: the verb's arguments. Raises W2WError for what belongs to a start, or to Ray, without that.
    """
    from w2wpp.adapters.train import from_start, options_for

    check_scaling(given)
    start, blend, targets = given["start"], given["blend"], given["targets"]
    if given["encoder"] and not start:
        raise W2WError("--encoder was given without the space it belongs to. Give that as --start-space.")
    if blend is not None and not start:
        raise W2WError(f"--blend {blend:g} was given without a start to blend with. Give --start-space.")
    preset = options_for(given["base"])
    chosen = {name: given[name] for name in ("rank", "alpha", "steps", "batch", "lr", "prior_weight", "blend", "seed")}
    return override(from_start(preset) if start else preset, targets=tuple(targets.split(",")) if targets else None, **chosen)


def start_at(start: Path, encoder: Path | None, model: "w2w.BaseModel", options: "w2w.AdapterOptions") -> "Start":
    """Training that begins where a space's encoder puts the photos. Raises W2WError for a space of other adapters."""
    from w2wpp.inversion.encoder import encoder_start

    space = w2w.Space.from_pretrained(start, device=model.device)
    space.check(options.layout_of(model), model.id, f"base {model.source}")
    return encoder_start(space, encoder_of(start, encoder))


@verb(adapters, "status", "w2w adapters status adapters")
def adapters_status(
    out: Annotated[Path, typer.Argument(help="The --out of `w2w adapters train`.")],
    as_json: Json = False,
) -> None:
    """Say how far a training of adapters is: done, running, failed and why, people an hour, minutes left.

    It may still run, also in another shell or on another machine that writes to the same disk.
    """
    from w2wpp.adapters.status import read_status

    show(read_status(out), as_json)
