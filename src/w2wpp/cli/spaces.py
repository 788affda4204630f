"""Verbs on spaces and their points: fit, sample, interpolate, reconstruct."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import (
    RUNS,
    SKS,
    Base,
    Dataset,
    Device,
    DryRun,
    Guidance,
    Json,
    Out,
    Prompt,
    Runs,
    Seed,
    SpaceFile,
    Steps,
    numbers,
    open_space,
    position,
    run,
)
from w2wpp.errors import W2WError

TrainFaces = Annotated[Path | None, typer.Option("--faces", help="A folder that `w2w faces align` made, of people to learn from.")]
TrainSplit = Annotated[str, typer.Option("--split", help="Whose photos to train on; everyone's if empty.")]
Teacher = Annotated[
    str, typer.Option("--teacher", help="names: what the base draws when told a name; photos; auto: names where the base knows each.")
]
EncoderSteps = Annotated[int, typer.Option("--encoder-steps", min=1, help="Steps of Adam on photos.")]

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


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    app.add_typer(fit, name="fit")
    app.command()(sample)
    app.command()(interpolate)
    app.command()(reconstruct)


@fit.command("pca")
def fit_pca(
    dataset: Dataset = "tiny-faces",
    m: Annotated[int | None, typer.Option("--m", help="Components to keep.  [default: 512; with --update as many as before]")] = None,
    update: Annotated[
        Path | None, typer.Option("--update", help="A space fitted to this dataset before more was appended: take in only the new rows.")
    ] = None,
    solver: Annotated[
        SolverName,
        typer.Option("--solver", help="exact: through a square matrix; streaming: few passes, keeps 0.1% less variance at most."),
    ] = SolverName.auto,
    memory: Annotated[float, typer.Option("--memory", min=0.01, help="Memory to use, GiB.")] = 2.0,
    dtype: Annotated[
        ComponentPrecision | None, typer.Option("--dtype", help="Of the components.  [default: float32; with --update as before]")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """PCA-w2w: standardise each coordinate and keep m principal components (Dravid et al. 2024, section 3.2)."""
    with run("fit-pca", locals(), "space.safetensors") as job:
        data, kept = w2w.WeightDataset.open(dataset), getattr(import_module("torch"), dtype.value) if dtype else None
        common = {"solver": solver.value, "memory": memory, "seed": seed, "dtype": kept}
        if update:
            before = w2w.load_space(update)
            if not isinstance(before, w2w.PcaSpace):
                raise W2WError(f"{update} is a space of kind {before.kind}; only pca can be updated. Fit it again.")
            space = before.update(data, m=m, **common)
        else:
            space = w2w.PcaSpace.fit(data, m=512 if m is None else m, **common)
        space.save(job.out)
        job.results = {"m": space.m, "d": space.layout.d, "n": space.n, "explained_variance": float(space.explained_variance_ratio.sum())}


@fit.command("vae")
def fit_vae(
    dataset: Dataset = "tiny-faces",
    m: Annotated[int, typer.Option("--m", help="Latent dimensions.")] = 512,
    widths: Annotated[str, typer.Option("--widths", help="Hidden widths of the encoder; the decoder mirrors them.")] = "4096,2048,1024",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the train part (80% of the rows).")] = 12,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Adapters a step.")] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Adam's learning rate.")] = 1e-4,
    kl_weight: Annotated[float, typer.Option("--kl-weight", help="Weight of the KL term after the warm-up.")] = 0.005,
    warmup_epochs: Annotated[int, typer.Option("--warmup-epochs", help="First epochs, without the KL term.")] = 3,
    schedule: Annotated[str, typer.Option("--schedule", help="How the KL weight rises: steps or cyclical.")] = "steps",
    variant: Annotated[str, typer.Option("--variant", help="plain, or residual-adversarial.")] = "plain",
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Of each of 16 drawn models, to see whether they differ; 0: none.")
    ] = 0,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """VAE-w2w: a variational autoencoder of the weights (Weights2Weights++, section 5.1), and whether it collapsed.

    With --pictures, also how alike the faces of drawn models are, beside those of as many training adapters: 1 is one face.
    """
    with run("fit-vae", locals(), "space.safetensors") as job:
        options = w2w.VaeOptions(
            m=m,
            widths=numbers(widths),
            epochs=epochs,
            batch=batch,
            lr=lr,
            kl_weight=kl_weight,
            warmup_epochs=warmup_epochs,
            schedule=schedule,
            variant=variant,
            seed=seed,
        )
        weights = w2w.WeightDataset.open(dataset)
        model = w2w.BaseModel.load(base, device) if pictures else None
        if model:  # now, and not after the training
            weights.check(weights.layout, model.id, f"base {base}")
        space, history = w2w.VaeSpace.fit(weights, options, device=device)
        space.save(job.out)
        looked_at = weights.rows(range(0, len(weights), -(-len(weights) // LOOKED_AT)))
        job.results = {"m": space.m, "d": space.layout.d, "history": history, "collapse": w2w.collapse(space, looked_at)}
        if model:
            from w2wpp.likeness import drawn_and_training

            job.results["likeness"] = drawn_and_training(model, space, weights, prompt, range(seed, seed + pictures))


@fit.command("anchored-vae")
def fit_anchored(
    dataset: Dataset = "tiny-faces",
    m: Annotated[int, typer.Option("--m", help="Latent dimensions.")] = 128,
    components: Annotated[int, typer.Option("--components", help="Principal components that the networks see.")] = 2048,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of Adam on the weights' bound.")] = 400,
    faces: TrainFaces = None,
    split: TrainSplit = "train",
    teacher: Teacher = "auto",
    encoder_steps: EncoderSteps = 900,
    encoder: Annotated[Path | None, typer.Option("--encoder", help="Where to put the encoder, with --faces.")] = None,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """A VAE that starts as probabilistic PCA and may only get better: on weights, and with --faces on what they draw.

    With --faces, decoder and an encoder from a photo to a point are then trained together on these people's photos.
    """
    with run("fit-anchored-vae", locals(), "space.safetensors") as job:
        if (faces is None) != (encoder is None):
            raise W2WError("--faces and --encoder belong together: photos train an encoder. Give both, or neither.")
        options, data = w2w.AnchoredOptions(m=m, components=components, steps=steps, seed=seed), w2w.WeightDataset.open(dataset)
        photos = None
        if faces:
            model = w2w.BaseModel.load(base, device)
            data.check(data.layout, model.id, f"base {base}")
            photos = w2w.PersonPhotos.of(model, faces, split, prompt, teacher)
        space, history = w2w.AnchoredVaeSpace.fit(data, options, device=device)
        job.results = {"m": space.m, "d": space.layout.d, "history": history}
        if photos and encoder:
            fitted, trained = w2w.fit_encoder(space, photos, w2w.EncoderOptions(steps=encoder_steps, seed=seed), with_decoder=True)
            fitted.save(encoder)
            job.results |= {"encoder": encoder, "teacher": photos.teacher, "encoder_history": trained}
        space.save(job.out)


@fit.command("encoder")
def fit_encoder(
    space: SpaceFile,
    faces: Annotated[Path, typer.Argument(help="A folder that `w2w faces align` made, of people to learn from.")],
    split: TrainSplit = "train",
    teacher: Teacher = "auto",
    encoder_steps: EncoderSteps = 900,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """A network from a photo to a point of any space: a model in one pass, and a start for inversion."""
    with run("fit-encoder", locals(), "encoder.safetensors") as job:
        model, opened = open_space(space, base, device)
        photos = w2w.PersonPhotos.of(model, faces, split, prompt, teacher)
        fitted, history = w2w.fit_encoder(opened, photos, w2w.EncoderOptions(steps=encoder_steps, seed=seed))
        fitted.save(job.out)
        job.results = {"m": fitted.m, "teacher": photos.teacher, "history": history}


def sample(
    space: SpaceFile,
    n: Annotated[int, typer.Option("--n", min=1, help="How many models to draw.")] = 2,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Pictures of each; column j has image seed j in every row.")] = 5,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    guidance: Guidance = 2.0,
    solver_steps: Steps = 20,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Draw new models from a space: points.safetensors, and a row of pictures each."""
    with run("sample", locals()) as job:
        model, opened = open_space(space, base, device)
        z = opened.sample(n, seed=seed)
        ids = [f"sample-{seed}-{i}" for i in range(n)]
        w2w.save_points(job.out / "points.safetensors", z, ids, opened)
        seeds = range(pictures)
        rows = w2w.picture_rows(model, opened.layout, opened.decode(z), prompt, seeds, guidance=guidance, steps=solver_steps)
        job.results = {"points": ids, "sheet": w2w.write_rows(job.out, ids, rows, seeds)}


def interpolate(
    space: SpaceFile,
    points: Annotated[Path | None, typer.Option("--points", help="A points.safetensors; two drawn points unless given.")] = None,
    start: Annotated[str, typer.Option("--from", help="Id of the first point; the file's first unless given.")] = "",
    end: Annotated[str, typer.Option("--to", help="Id of the last point; the file's last unless given.")] = "",
    n: Annotated[int, typer.Option("--n", min=2, help="Pictures in the strip, both ends included.")] = 7,
    image_seed: Annotated[int, typer.Option("--image-seed", help="Seed of the starting noise, the same in every picture.")] = 0,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    guidance: Guidance = 2.0,
    solver_steps: Steps = 20,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Walk in a straight line from one point to another, with the same image seed all the way."""
    with run("interpolate", locals(), "strip.png") as job:
        model, opened = open_space(space, base, device)
        z, ids = w2w.load_points(points, opened) if points else (opened.sample(2, seed=seed), [f"sample-{seed}-0", f"sample-{seed}-1"])
        first, last = position(ids, start or ids[0]), position(ids, end or ids[-1])
        line = w2w.interpolate(z[first], z[last], n)
        strip = w2w.picture_rows(model, opened.layout, opened.decode(line), prompt, [image_seed], guidance=guidance, steps=solver_steps)
        w2w.write_image(job.out, w2w.grid([[picture for row in strip for picture in row]]))
        job.results = {"from": ids[first], "to": ids[last], "pictures": n}


def reconstruct(
    space: SpaceFile,
    dataset: Dataset = "tiny-faces",
    people: Annotated[str, typer.Option("--people", help="Ids, with commas between; the dataset's first rows unless given.")] = "",
    n: Annotated[int, typer.Option("--n", min=1, help="How many rows without --people.")] = 6,
    prompt: Prompt = SKS,
    base: Base = "tiny-faces",
    guidance: Guidance = 2.0,
    solver_steps: Steps = 20,
    seed: Annotated[int, typer.Option("--seed", help="Image seed: of the starting noise, the same in every picture.")] = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Encode adapters and decode them again: pictures of the originals over pictures of what comes back."""
    with run("reconstruct", locals(), "reconstructions.png") as job:
        model, opened = open_space(space, base, device)
        data = w2w.WeightDataset.open(dataset)
        opened.check(data.layout, data.base_id, f"dataset {dataset}")
        ids = people.split(",") if people else data.ids[:n]
        weights = data.rows([data.index_of(person) for person in ids])
        rebuilt, lost = w2w.reconstruct(opened, weights)
        both = [w2w.picture_rows(model, data.layout, w, prompt, [seed], guidance=guidance, steps=solver_steps) for w in (weights, rebuilt)]
        w2w.write_image(job.out, w2w.grid([[row[0] for row in rows] for rows in both]))
        job.results = {"people": ids, "lost": dict(zip(ids, lost, strict=True))}
