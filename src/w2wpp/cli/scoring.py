"""Verbs that score models: score, evaluate; and demo, which runs all of it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import asked, numbers, run, show
from w2wpp.cli.help import EVALUATION, verb
from w2wpp.cli.options import RUNS, Base, Device, DryRun, Guidance, Json, Negative, Out, Overwrite, Runs, Seed, SolverSteps
from w2wpp.cli.scaling import Cores, Ray, Workers, check_scaling, handed_out
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from w2wpp.evaluation.table1_methods import Table1Options

Dataset = Annotated[str, typer.Option("--dataset", help="tiny-faces (embedded), the folder of a weight dataset, or a hub id.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    verb(app, "score", "w2w score me/pictures/me photos/me", EVALUATION)(score)
    verb(app, "evaluate", "w2w evaluate faces --split val --space tiny-faces --out table", EVALUATION)(evaluate)
    verb(app, "demo", "w2w demo --photo me.jpg --out demo", EVALUATION)(demo)


def score(
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.")],
    photos: Annotated[Path, typer.Argument(help="A photo, or a folder of photos of one person.")],
    as_json: Json = False,
) -> None:
    """Measure the ID Score: the mean cosine of FaceNet embeddings over all pairs. Pictures without a face are counted."""
    from w2wpp.photos.images import read_folder

    left, right = (read_folder(path) for path in (pictures, photos))
    show(asdict(w2w.id_score(left, right)), as_json)


LabelledFaces = Annotated[Path, typer.Argument(help="A folder that `w2w faces align --labels` made.")]
Split = Annotated[str, typer.Option("--split", help="Split of the people to score.")]
Dimensions = Annotated[str, typer.Option("--m", help="Dimensions of the spaces, separated by commas; empty for no space.")]
MinPhotos = Annotated[int, typer.Option("--min-photos", min=2, help="Score only people with at least this number of photos.")]
Pictures = Annotated[int, typer.Option("--pictures", min=1, help="Pictures for each person and method.")]
InversionSteps = Annotated[
    int,
    typer.Option(
        "--steps", min=1, help="Steps of our inversion from z = 0. The published recipe always has 400; from an encoder there are 10."
    ),
]
Spaces = Annotated[list[Path] | None, typer.Option("--space", help="A fitted space to score as well; may be given several times.")]
Encoders = Annotated[list[Path] | None, typer.Option("--encoder", help="The encoder of each --space, in the same order.")]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip", help="Leave out rows that begin so, such as DreamBooth, or 'inversion, published, vae 512'; may be given again."
    ),
]
SearchesM = Annotated[int | None, typer.Option("--searches-m", min=1, help="Also score CMA-ES, CEM and eq. 7 in the --space with this m.")]
Widths = Annotated[str, typer.Option("--widths", help="Hidden widths of the VAE's encoder.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Passes of the VAE over its training adapters.")]
GroupSize = Annotated[int, typer.Option("--group", min=1, help="People in each forward pass.")]


def evaluate(
    faces: LabelledFaces,
    dataset: Dataset = "tiny-faces",
    split: Split = "test",
    ms: Dimensions = "32,128,512",
    min_photos: MinPhotos = 2,
    pictures: Pictures = 5,
    guidance: Guidance = None,
    negative: Negative = "",
    solver_steps: SolverSteps = 20,
    steps: InversionSteps = 40,
    spaces: Spaces = None,
    encoders: Encoders = None,
    searches_m: SearchesM = None,
    skip: Skip = None,
    widths: Widths = "4096,2048,1024",
    epochs: Epochs = 12,
    group: GroupSize = 32,
    ray: Ray = None,
    cores: Cores = None,
    workers: Workers = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score the base, DreamBooth from one photo and from many, and inversion in PCA and VAE spaces: table 1.

    --space adds inversion in a fitted space. With its --encoder (tiny-faces has the embedded one), inversion and DreamBooth
    also start from the encoder's point. Writes table1.json, pictures beside their photos, and report.html. An interrupted
    table resumes if it is given the same --out, and a finished one takes more rows, of another --space for example.
    --ray hands --group people and a method at a time to all machines of a Ray cluster, which must see all files at the same paths.
    """
    given = locals()
    check_scaling(given)
    with run("evaluate", given, sign="settings.json") as job:
        from w2wpp.common.files import write_json
        from w2wpp.evaluation.table1 import table1
        from w2wpp.evaluation.table1_parts import Table1Recipe
        from w2wpp.report.html import table1_report, write_report

        data = w2w.WeightDataset.from_pretrained(dataset)
        options = table_options(given, data)
        model, people = w2w.BaseModel.load(base, "cpu" if ray else device), w2w.AlignedFaces.load(faces)
        recipe = Table1Recipe(base, model.id, dataset, data.fingerprint, faces, options, seed, device=device)
        with handed_out(given, job, lambda: recipe, even=False) as mapper:
            table = table1(model, data, people, split, seed=seed, options=options, folder=job.out, mapper=mapper)
        write_json(job.out / "table1.json", table)
        job.results |= {"table": job.out / "table1.json", "report": write_report(job.out, table1_report(table, job.out))}


def table_options(given: Mapping[str, Any], data: "w2w.WeightDataset") -> "Table1Options":
    """The sizes of a table. given: the verb's arguments. Raises W2WError for encoders that are not one for each space."""
    from w2wpp.evaluation.table1_methods import Table1Options

    spaces, encoders = given["spaces"] or [], given["encoders"] or []
    if encoders and len(encoders) != len(spaces):
        raise W2WError(f"{len(encoders)} encoders were given for {len(spaces)} spaces. Give each --space its --encoder.")
    files = [str(file) for file in spaces]
    same = ("min_photos", "pictures", "negative", "solver_steps", "group", "searches_m")
    return Table1Options(
        ms=numbers(given["ms"]) if given["ms"] else (),
        guidance=asked(data.prompting, None, given["guidance"]).guidance,
        inversion=w2w.InversionOptions(steps=given["steps"]),
        vae=w2w.VaeOptions(widths=numbers(given["widths"]), epochs=given["epochs"]),
        skip=tuple(skip for skip in given["skip"] or () if skip),
        trained=tuple(zip(files, [str(file) for file in encoders] or [""] * len(files), strict=True)),
        **{name: given[name] for name in same},
    )


def demo(
    base: Base = "tiny-faces",
    dataset: Dataset = "tiny-faces",
    photo: Annotated[Path | None, typer.Option("--photo", help="Photo to invert; the astronaut of scikit-image unless given.")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="A table1.json by `w2w evaluate`, to show in the report.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run everything once on the embedded pipeline and weights, and write report.html."""
    with run("demo", locals(), resumes=False) as job:
        from w2wpp.demo import DemoOptions, run_demo

        space = "tiny-faces" if base == dataset == "tiny-faces" else ""
        options = DemoOptions(base=base, dataset=dataset, space=space, photo=photo, table=table, seed=seed, device=device)
        job.results = run_demo(options, job.out)
        job.printed = ("seconds", "scores", "report")
