"""The verb `w2w import`: other people's LoRAs, and the published files of Weights2Weights."""

from collections.abc import Mapping
from enum import Enum, StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import Run, print_table, run, save_table, those_given
from w2wpp.cli.help import EXCHANGE, verb
from w2wpp.cli.options import MOST_RANK, RUNS, AppendOut, DryRun, Json, Memory, Precision, Runs
from w2wpp.cli.scaling import Cores, Ray, Workers, check_scaling, handed_out
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    import torch


class PublishedPart(StrEnum):
    """What to take of the published files."""

    all = "all"
    space = "space"
    people = "people"
    dogs = "dogs"


class Kind(Enum):
    """What a source holds."""

    loras = "LoRA files"
    published = "published files"
    model = "a published model"


def register(app: typer.Typer) -> None:
    """Add this verb to `w2w`."""
    verb(app, "import", "w2w import my-loras --out mine", EXCHANGE)(import_)


Source = Annotated[
    Path,
    typer.Argument(help="A LoRA file, a peft folder, a folder of them; published w2w files, or their hub id; a w2wmodel.pt or vae.pt."),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", min=1, max=MOST_RANK, help="Rank of the rows.", show_default="that of OUT, or the largest among the files"),
]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", min=0, help="Scale is alpha / rank.", show_default="the rank; for published files their own, or 27"),
]
DropTextEncoder = Annotated[bool, typer.Option("--drop-text-encoder", help="Leave out what adapts the text encoder.")]
Labels = Annotated[Path | None, typer.Option("--labels", help="A csv with a column file, the path below SOURCE, and others.")]
Components = Annotated[
    int | None, typer.Option("--m", min=1, help="Components of published files.", show_default="1,000, those that have projections")
]
PartOption = Annotated[
    PublishedPart, typer.Option("--part", help="Of published files: the space, the people's table, the dogs'; all is the first two.")
]
ModelSpace = Annotated[Path | None, typer.Option("--space", help="For a w2wmodel.pt: the imported space, whose point it becomes.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad file, and make one dataset of all layouts.")]
RowsIn = Annotated[Precision, typer.Option("--dtype", help="Precision of the rows on disk.")]
TrainedPrompt = Annotated[
    str | None, typer.Option("--prompt", help="Caption that the LoRAs were trained with, which the dataset remembers.")
]
TrainedGuidance = Annotated[
    float | None, typer.Option("--guidance", min=0, help="Guidance to draw them with, which the dataset remembers.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=256, help="Files that are read at a time.", show_default="one for each core")
]
FilesBase = Annotated[
    str | None,
    typer.Option("--base", help="A pipeline folder or a hub id.", show_default="what each file is made for, or tiny-faces"),
]


def import_(
    source: Source,
    out: AppendOut,
    rank: Rank = None,
    alpha: Alpha = None,
    drop_text_encoder: DropTextEncoder = False,
    labels: Labels = None,
    m: Components = None,
    part: PartOption = PublishedPart.all,
    space: ModelSpace = None,
    strict: Strict = False,
    dtype: RowsIn = Precision.float32,
    prompt: TrainedPrompt = None,
    guidance: TrainedGuidance = None,
    memory: Memory = 2.0,
    threads: Threads = None,
    ray: Ray = None,
    cores: Cores = None,
    workers: Workers = None,
    base: FilesBase = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring LoRAs of peft, diffusers, kohya, LyCORIS or ComfyUI, or the published w2w files, into a weight dataset.

    Ranks and alphas may differ: every product is refactored to one rank and one gauge, and the error is reported. A file
    that cannot be a row is skipped, and the table at the end says why. Several layouts become one dataset each, in OUT.
    The published files come from any folder of theirs, or from the hub: w2w import snap-research/weights2weights --out published
    --ray reads LoRAs on all machines of a Ray cluster, which must see SOURCE at the same path; this process alone writes.
    """
    given = locals()
    check_scaling(given)
    kind = kind_of(source)
    refuse_others(kind, given)
    base = base or (published_base(source) if kind == Kind.published or (kind == Kind.model and not space) else None)
    one = "points.safetensors" if kind == Kind.model else ""  # one model is one file, and no folder to own
    with run("import", {**given, "base": base or "auto"}, one, reads=("base",)) as job:  # `import_loras` looks at the rest
        from w2wpp.exchange import import_published

        kept = getattr(import_module("torch"), dtype.value)
        if kind == Kind.model:
            job.results = import_published.import_file(source, space, out, base or "tiny-faces")
        elif kind == Kind.published:
            found = import_published.import_files(source, str(base), out, m=m, part=part.value, alpha=alpha, memory=memory, dtype=kept)
            job.results = {"base": base} | found
        else:
            import_loras(job, given, base, kept)


def import_loras(job: Run, given: Mapping[str, Any], base: str | None, dtype: "torch.dtype") -> None:
    """Import LoRA files, and print what became of each. given: the verb's arguments."""
    from w2wpp.exchange.denoiser import Denoiser
    from w2wpp.exchange.import_rows import ImportRecipe

    how = {name: given[name] for name in ("rank", "alpha", "drop_text_encoder", "strict", "labels", "memory", "threads")}
    told = {name: given[name] for name in ("prompt", "guidance") if given[name] is not None}
    denoiser = Denoiser.load(base) if base else None
    with handed_out(given, job, ImportRecipe, even=False) as mapper:  # a LoHa takes hundreds of times as long as a LoRA
        job.results |= w2w.import_loras(denoiser, given["source"], given["out"], dtype=dtype, prompting=told, mapper=mapper, **how)
    files = job.results["files"] if given["as_json"] else job.results.pop("files")
    save_table(job.folder / "files.csv", files)
    if not given["as_json"]:
        print_table(files, job.folder / "files.csv")


def kind_of(source: Path) -> Kind:
    """What a source holds, by its name and its files."""
    from w2wpp.common.hub import is_hub_id
    from w2wpp.exchange.formats.published_places import is_published

    if source.is_file() and source.suffix == ".pt":
        return Kind.model
    return Kind.published if is_hub_id(source) or is_published(source) else Kind.loras


def refuse_others(kind: Kind, given: Mapping[str, Any]) -> None:
    """Raise W2WError for options that sources of this kind do not have. given: the verb's arguments."""
    if given["space"] and kind != Kind.model:
        raise W2WError("--space is for a w2wmodel.pt, which becomes a point of it. Leave it out.")
    if given["ray"] and given["threads"]:
        raise W2WError("--threads was given with --ray, whose workers each read some files at a time. Leave out one of them.")
    loras_only = ("rank", "labels", "drop_text_encoder", "strict", "threads", "prompt", "guidance", "ray")
    published_only = ("m", "part")
    others = {Kind.loras: published_only, Kind.published: loras_only, Kind.model: (*loras_only, *published_only)}[kind]
    chosen = {**given, "part": None if given["part"] == PublishedPart.all else given["part"]}
    if unused := those_given({f"--{name.replace('_', '-')}": None if chosen[name] is False else chosen[name] for name in others}):
        raise W2WError(f"{given['source']} holds {kind.value}, whose {unused} cannot be chosen. Leave it out.")


def published_base(source: Path) -> str:
    """The base of published files where none is given, said on stderr; those that `w2w export` wrote are of tiny-faces."""
    from w2wpp.exchange.formats.published_places import PUBLISHED_BASE, find_published

    if source.is_dir() and find_published(source).ours:
        return "tiny-faces"
    typer.echo(f"base: {PUBLISHED_BASE}, on which the published files were made. Another one: --base.", err=True)
    return PUBLISHED_BASE
