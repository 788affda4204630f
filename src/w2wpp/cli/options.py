"""The options that several verbs share, each said once: its flag, its bound and its help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

REMEMBERED = "as the space or dataset remembers"
RUNS = Path("runs")
MOST_RANK = 4096  # of products; no layer of any base has more that a LoRA would use

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
Device = Annotated[str, typer.Option("--device", help="auto (the GPU where there is one), cpu, cuda or cuda:1.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where numbered run folders are made.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved options and what would be written; make nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where the result goes; the run folder unless given.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that w2w made in --out before; other files there stay as they are.")
]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace files of the result that are there already.")]


class BasePrecision(StrEnum):
    """In which numbers the base's frozen networks are kept."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Base = Annotated[str, typer.Option("--base", help="tiny-faces (embedded), a pipeline folder, or a hub id.")]
InPrecision = Annotated[
    BasePrecision,
    typer.Option("--precision", help="Of the base's networks in memory; auto is float16 on a GPU and float32 on a CPU."),
]
LeanBase = Annotated[
    bool,
    typer.Option("--low-memory", help="Compute parts of the UNet twice, in place of keeping them (gradient checkpointing); same result."),
]
Dataset = Annotated[str, typer.Argument(help="tiny-faces (embedded), the folder of a weight dataset, its address (s3://...), or a hub id.")]
SpaceFile = Annotated[
    Path, typer.Argument(help="A space.safetensors by `w2w fit`, its folder, address (s3://...) or hub id, or tiny-faces (embedded).")
]


class Reading(StrEnum):
    """How an adapter becomes a point."""

    pictures = "pictures"
    weights = "weights"


ReadBy = Annotated[
    Reading | None,
    typer.Option(
        "--reading",
        help="pictures: the encoder looks at pictures that an adapter draws; weights: the space encodes its numbers.",
        show_default="pictures where there is an encoder",
    ),
]
EncoderFile = Annotated[Path | None, typer.Option("--encoder", help="The encoder of the space, made by `w2w fit`; tiny-faces has its own.")]
Prompt = Annotated[str | None, typer.Option("--prompt", help="Caption; `sks` stands for the adapter's person.", show_default=REMEMBERED)]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", min=0, help="Weight of classifier-free guidance; 1 is none.", show_default=REMEMBERED),
]
Negative = Annotated[str, typer.Option("--negative-prompt", help="Caption that guidance leads away from, in place of the empty one.")]
SolverSteps = Annotated[int, typer.Option("--solver-steps", min=1, help="Solver steps for each picture.")]
PicturesEach = Annotated[int, typer.Option("--pictures", min=1, help="Pictures of each model; column j has image seed j in every row.")]
FirstSeed = Annotated[
    int, typer.Option("--seed", min=0, help="Image seed of the first picture; the second picture has the next seed, and so on.")
]
Faces = Annotated[Path, typer.Argument(help="A folder that `w2w faces align` made, or its address (s3://...).")]
Memory = Annotated[float, typer.Option("--memory", min=0.001, help="Memory for rows, GiB.")]
AppendOut = Annotated[Path, typer.Option("--out", help="Folder of the result; an interrupted run resumes there.")]


class Precision(StrEnum):
    """How a dataset keeps its numbers."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


Points = Annotated[Path | None, typer.Option("--points", help="A points.safetensors, with --space.")]
Space = Annotated[Path | None, typer.Option("--space", help="The space.safetensors that the points lie in.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Take a person's adapter from this dataset, by --id.")]
