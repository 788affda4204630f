"""Verbs that fit a space to a weight dataset: fit pca, vae."""

from collections.abc import Mapping
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import asked, inputs_of, numbers, override, run
from w2wpp.cli.help import OUTPUT, SPACES, verb
from w2wpp.cli.options import RUNS, Base, Dataset, Device, DryRun, Json, Out, OverwriteFile, Prompt, Runs, Seed
from w2wpp.cli.scaling import Cores, Ray, Workers, check_scaling, handed_out
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    import torch

    from w2wpp.spaces.pca import Solver

LOOKED_AT = 4096  # adapters at most, evenly spaced, from which `w2w fit vae` tells a collapse

fit = typer.Typer(help="Fit a space to a weight dataset.", no_args_is_help=True)


class SolverName(StrEnum):
    """How to find principal components."""

    auto = "auto"
    exact = "exact"
    streaming = "streaming"


class ComponentPrecision(StrEnum):
    """How precisely to keep principal components."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class VaePreset(StrEnum):
    """Whose VAE to fit."""

    ours = "ours"
    report = "report"
    script = "script"
    second = "second"


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    app.add_typer(fit, name="fit", rich_help_panel=SPACES)


Components = Annotated[
    int | None, typer.Option("--m", min=1, help="Components to keep.", show_default="512; with --update as many as before")
]
Update = Annotated[
    Path | None, typer.Option("--update", help="A space fitted to this dataset before rows were appended; only the new rows are read.")
]
SolverOption = Annotated[
    SolverName,
    typer.Option(
        "--solver", help="exact: by a square matrix of all rows; streaming: by a few passes, with at most 0.1% less variance kept."
    ),
]
FitMemory = Annotated[float, typer.Option("--memory", min=0.01, help="Memory for the fit, GiB.")]
ComponentsIn = Annotated[
    ComponentPrecision | None,
    typer.Option("--dtype", help="Precision of the components.", show_default="float32; with --update as before"),
]


@verb(fit, "pca", "w2w fit pca adapters --m 128 --out pca.safetensors")
def fit_pca(
    dataset: Dataset = "tiny-faces",
    m: Components = None,
    update: Update = None,
    solver: SolverOption = SolverName.auto,
    memory: FitMemory = 2.0,
    dtype: ComponentsIn = None,
    ray: Ray = None,
    cores: Cores = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fit PCA-w2w: standardise each coordinate and keep m principal components (Dravid et al. 2024, section 3.2).

    --ray takes the products of the rows on all machines of a Ray cluster, which must see the dataset at the same path;
    --memory is for each worker and for this process.
    """
    given = locals()
    check_scaling(given)
    if ray and update:
        raise W2WError("--ray was given with --update, which reads the new rows only. Leave out one of them.")
    with run("fit-pca", given, "space.safetensors", stored=True, fresh=("out",)) as job:
        from w2wpp.spaces.table_recipe import TableRecipe

        data = w2w.WeightDataset.from_pretrained(dataset)
        kept: torch.dtype | None = getattr(import_module("torch"), dtype.value) if dtype else None
        how: Solver = solver.value
        if update:
            before = w2w.Space.from_pretrained(update)
            if not isinstance(before, w2w.PcaSpace):
                raise W2WError(f"{update} is a space of kind {before.kind}; only pca can be updated. Fit it again.")
            space = before.update(data, m=m, solver=how, memory=memory, dtype=kept, seed=seed)
        else:
            with handed_out(given, job, lambda: TableRecipe(dataset, data.fingerprint)) as mapper:
                size = 512 if m is None else m
                space = w2w.PcaSpace.fit(data, m=size, solver=how, memory=memory, dtype=kept, seed=seed, mapper=mapper)
        space.save(job.out)
        found = {"m": space.m, "d": space.layout.d, "n": space.n, "explained_variance": float(space.explained_variance_ratio.sum())}
        job.results |= found


LowMemory = Annotated[
    bool | None,
    typer.Option(
        "--low-memory/--full-memory",
        help="Train in half of Adam's memory: layers are stepped within the backward pass, moments kept in bfloat16.",
        show_default="where Adam would not fit",
    ),
]
Preset = Annotated[
    VaePreset,
    typer.Option("--preset", help="What the options below are unless given; the others are the seed's."),
]
VaeLatents = Annotated[int | None, typer.Option("--m", min=1, help="Latent dimensions.", show_default="512; second: 1,024")]
Widths = Annotated[
    str | None,
    typer.Option(
        "--widths", help="Hidden widths of the encoder; the decoder mirrors them.", show_default="4096,2048,1024; script: 2048,1024"
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Passes over the training rows, which are 80% of all.", show_default="12; script: 15"),
]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Adapters in each step.", show_default="64")]
Rate = Annotated[float | None, typer.Option("--lr", min=0, help="Adam's learning rate.", show_default="0.0001")]
KlWeight = Annotated[
    float | None, typer.Option("--kl-weight", min=0, help="Weight of the KL term after the warm-up.", show_default="0.005; second: 0.1")
]
WarmupEpochs = Annotated[
    int | None, typer.Option("--warmup-epochs", min=0, help="Number of first epochs without the KL term.", show_default="3; script: 5")
]
Schedule = Annotated[
    str | None, typer.Option("--schedule", help="How the KL weight rises: steps, cyclical or ramp.", show_default="steps; script: ramp")
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="plain, residual-adversarial, vanilla or second.", show_default="that of the preset")
]
Likeness = Annotated[
    int, typer.Option("--pictures", min=0, help="Pictures of each of 16 drawn models, to see whether they differ; 0 is none.")
]
Report = Annotated[
    Path | None, typer.Option("--report", help="Folder for a report: losses, latents, reconstructions.", rich_help_panel=OUTPUT)
]
Reconstructions = Annotated[
    int, typer.Option("--reconstructions", min=0, help="Adapters to draw in the report, with theirs.", rich_help_panel=OUTPUT)
]


@verb(fit, "vae", "w2w fit vae adapters --m 128 --out vae.safetensors")
def fit_vae(
    dataset: Dataset = "tiny-faces",
    preset: Preset = VaePreset.ours,
    m: VaeLatents = None,
    widths: Widths = None,
    epochs: Epochs = None,
    batch: Batch = None,
    lr: Rate = None,
    kl_weight: KlWeight = None,
    warmup_epochs: WarmupEpochs = None,
    schedule: Schedule = None,
    variant: Variant = None,
    pictures: Likeness = 0,
    report: Report = None,
    reconstructions: Reconstructions = 0,
    low_memory: LowMemory = None,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fit VAE-w2w, a variational autoencoder of the weights (Weights2Weights++, section 5.1), and report whether it collapsed.

    --pictures also compares the faces of drawn models with those of training adapters: 1 means that all are the same face.
    """
    words = locals()
    from w2wpp.spaces.vae_options import preset as preset_of

    given = {name: words[name] for name in ("m", "epochs", "batch", "lr", "kl_weight", "warmup_epochs", "schedule", "variant", "seed")}
    preferred = w2w.VaeOptions() if preset == VaePreset.ours else preset_of(preset.value)
    options = override(preferred, widths=numbers(widths) if widths else None, **given)
    told = {**words, **{name: getattr(options, name) for name in (*given, "widths")}}
    if report:
        refuse_report(report, told)
    with run("fit-vae", told, "space.safetensors", stored=True, fresh=("out",)) as job:
        weights = w2w.WeightDataset.from_pretrained(dataset)
        model = w2w.BaseModel.load(base, device) if pictures or reconstructions else None
        if model:  # now, and not after the training
            weights.check(weights.layout, model.id, f"base {base}")
        space = w2w.VaeSpace.fit(weights, options, device=device, low_memory=low_memory)
        space.save(job.out)
        looked_at = weights.rows(range(0, len(weights), -(-len(weights) // LOOKED_AT)))
        job.results = {"m": space.m, "d": space.layout.d, "history": space.history, "collapse": w2w.collapse(space, looked_at)}
        if report:
            from w2wpp.evaluation.vae_report import write_vae_report

            job.results["latents"] = write_vae_report(space, weights, report, base=model, n=reconstructions)
        if model and pictures:
            from w2wpp.evaluation.distinctness import drawn_and_training

            caption = asked(weights.prompting, prompt).prompt
            job.results["likeness"] = drawn_and_training(model, space, weights, caption, range(seed, seed + pictures))


def refuse_report(report: Path, given: Mapping[str, Any]) -> None:
    """Raise W2WError for a folder of a report that holds something, unless it may be replaced, and for one that is or holds an input."""
    from w2wpp.common.files import apart, replaceable

    apart(report, *inputs_of(given), given["out"], option="--report")
    replaceable(report / "report.html", given["overwrite"], "--report")
    if report.is_dir() and any(report.iterdir()) and not given["overwrite"]:
        raise W2WError(f"--report {report} is not empty. Choose another folder, or give --overwrite to replace a report there.")
