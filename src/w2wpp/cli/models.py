"""Verbs on single models: invert, generate, export."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import (
    RUNS,
    SKS,
    Base,
    Device,
    DryRun,
    EncoderFile,
    Guidance,
    Json,
    Out,
    Prompt,
    Runs,
    Seed,
    SpaceFile,
    Steps,
    encoder_of,
    open_space,
    override,
    position,
    run,
    those_given,
)
from w2wpp.errors import W2WError

Points = Annotated[Path | None, typer.Option("--points", help="A points.safetensors, with --space.")]
Space = Annotated[Path | None, typer.Option("--space", help="The space.safetensors that the points lie in.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="A peft adapter folder.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Take a person's adapter from this dataset, by --id.")]
Id = Annotated[str, typer.Option("--id", help="Which point or person; the first unless given.")]


class Method(StrEnum):
    """How to look for a point."""

    gradient = "gradient"
    cma_es = "cma-es"
    cem = "cem"


class StartPoint(StrEnum):
    """Where to begin to look for it."""

    zero = "zero"
    encoder = "encoder"


class ExportFormat(StrEnum):
    """Whose files to write."""

    peft = "peft"
    diffusers = "diffusers"
    kohya = "kohya"
    w2w = "w2w"


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    for verb in (invert, generate, export):
        app.command()(verb)


def invert(
    space: SpaceFile,
    photos: Annotated[list[Path], typer.Argument(help="Photos, one a person, or folders with photos of one person; each as if alone.")],
    align: Annotated[bool, typer.Option("--align/--no-align", help="Find and align the face first.")] = True,
    mask: Annotated[Path | None, typer.Option("--mask", help="Picture over the aligned photo; white is what counts.")] = None,
    method: Annotated[Method, typer.Option("--method", help="Gradients, or a search without them: cma-es, cem.")] = Method.gradient,
    published: Annotated[bool, typer.Option("--published", help="The published recipe (eq. 5), in place of the options below.")] = False,
    start: Annotated[
        StartPoint | None,
        typer.Option("--start", help="zero, the mean adapter, or where the encoder puts the photo; the latter if it can."),
    ] = None,
    encoder: EncoderFile = None,
    steps: Annotated[int | None, typer.Option("--steps", min=0, help="Steps, or generations.  [default: 40; from an encoder 10]")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Draws of a fixed bank a step.  [default: 1; from an encoder 4]")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Adam's rate in prior units; falls to 0.  [default: 0.2; from an encoder 0.03]")
    ] = None,
    prior_weight: Annotated[
        float | None, typer.Option("--prior-weight", help="Weight of |z|^2 / 2m, the prior (eq. 6); 0 is eq. 5.  [default: 0.01]")
    ] = None,
    variational: Annotated[bool, typer.Option("--variational", help="Look for a distribution over points (eq. 7).")] = False,
    trajectory: Annotated[int, typer.Option("--trajectory", min=0, help="Draw loss and ID Score at so many points on the way.")] = 0,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Pictures to draw of each inverted model.")] = 4,
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
    """From a photo to a model: the point whose adapter explains the photo best (eq. 5 to 7).

    Writes points.safetensors, a dataset of the full weights, a peft adapter folder a photo, and pictures beside the photos.
    """
    with run("invert", locals()) as job:
        given = {
            "--start": start,
            "--encoder": encoder,
            "--steps": steps,
            "--batch": batch,
            "--lr": lr,
            "--prior-weight": prior_weight,
            "--variational": variational or None,
        }
        if published and (unused := those_given(given)):
            raise W2WError(f"--published leaves no room for {unused}. Leave out one or the other.")
        network = None if published else pick_encoder(space, start, encoder)
        model, opened = open_space(space, base, device)
        people = [[w2w.ready_photo(photo, model, align_face=align) for photo in w2w.pictures_in(path)] for path in photos]
        ids = [path.name if path.is_dir() else path.stem for path in photos]
        if len(set(ids)) < len(ids):
            raise W2WError("two photos have the same file name, which names their points. Rename one.")
        begin = None
        if network:
            network.check(opened)
            begin = network.points(people)
        latents = [model.encode_images(w2w.to_tensor(images)).float() for images in people]
        painted = w2w.ready_mask(mask, model) if mask else None
        dataset = w2w.WeightDataset.open_or_create(job.out / "weights", opened.layout, model.id, {"space": str(space)})
        if dataset.ids:
            raise W2WError(f"{job.out} holds inverted models already, such as {dataset.ids[0]}. Choose another --out.")
        if method == Method.gradient:
            chosen = (
                w2w.PUBLISHED
                if published
                else override(
                    w2w.REFINED if network else w2w.InversionOptions(),
                    steps=steps,
                    batch=batch,
                    lr=lr,
                    prior_weight=prior_weight,
                    variational=variational,
                )
            )
            options = replace(chosen, prompt=prompt, seed=seed)
            found = w2w.invert(model, opened, latents, ids, options, mask=painted, start=begin)
        else:
            if published or variational or mask or lr is not None:
                raise W2WError(
                    f"--published, --variational, --mask and --lr are the gradient's. Leave them out with --method {method.value}."
                )
            search = w2w.EvolutionOptions(method.value, prompt=prompt, seed=seed)
            chosen = override(search, generations=steps, batch=batch, prior_weight=prior_weight)
            found = w2w.evolve(model, opened, latents, ids, chosen, begin)
        weights = opened.decode(found.z).cpu()
        dataset.append(weights, ids)
        w2w.save_points(job.out / "points.safetensors", found.z, ids, opened)
        for key, adapter in zip(ids, weights, strict=True):
            w2w.write_peft(job.out / "adapters" / key, opened.layout, adapter, base)
        seeds = range(pictures)
        rows = w2w.picture_rows(model, opened.layout, weights, prompt, seeds, guidance=guidance, steps=solver_steps)
        w2w.write_rows(job.out, ids, rows, seeds)
        w2w.write_image(job.out / "inverted.png", w2w.grid([[images[0], *row] for images, row in zip(people, rows, strict=True)]))
        job.results = {"points": ids, "sheet": job.out / "inverted.png", "start": "encoder" if network else "zero"}
        job.results |= {"unet_evals": found.unet_evals}
        if trajectory:
            way = w2w.trajectory(model, opened, found, people, prompt, trajectory, pictures=pictures, guidance=guidance, steps=solver_steps)
            job.results |= {"trajectory": way, "curves": w2w.write_trajectory(job.out / "trajectory.svg", found, way)}


def pick_encoder(space: Path, start: StartPoint | None, encoder: Path | None) -> Any:
    """The encoder that gives the start, or None to start at zero. Raises W2WError if one is asked for and there is none."""
    if start == StartPoint.zero:
        if encoder:
            raise W2WError("--encoder was given, and --start zero, which does not use it. Leave out one of them.")
        return None
    if encoder or start == StartPoint.encoder or str(space) == "tiny-faces":
        return encoder_of(space, encoder)
    return None


def generate(
    prompt: Annotated[str, typer.Argument(help="Caption of the pictures; `sks` stands for the adapter's person.")] = SKS,
    n: Annotated[int, typer.Option("--n", min=1, help="How many pictures.")] = 4,
    points: Points = None,
    space: Space = None,
    adapter: Adapter = None,
    dataset: DatasetOption = None,
    identity: Id = "",
    base: Base = "tiny-faces",
    guidance: Guidance = 2.0,
    solver_steps: Steps = 20,
    seed: Annotated[int, typer.Option("--seed", help="Image seed of the first picture; the next has the next.")] = 0,
    device: Device = "auto",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Draw pictures of a point, of an adapter, of a person of a dataset, or of the base alone."""
    with run("generate", locals()) as job:
        model = w2w.BaseModel.load(base, device)
        layout, weights, key = pick_adapter(points, space, adapter, dataset, identity, model)
        seeds = range(seed, seed + n)
        pictures = model.generate(prompt, seeds, layout=layout, weights=weights, guidance=guidance, steps=solver_steps)
        job.results = {"of": key, "sheet": w2w.write_rows(job.out, [key], [pictures], seeds)}


def export(
    points: Points = None,
    space: Space = None,
    dataset: DatasetOption = None,
    identities: Annotated[
        list[str] | None, typer.Option("--id", help="Which point or row, several times for several; else the first.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every point or row, in one folder.")] = False,
    form: Annotated[ExportFormat, typer.Option("--format", help="Whose files to write; kohya is what ComfyUI and A1111 read.")] = (
        ExportFormat.peft
    ),
    licence: Annotated[str, typer.Option("--licence", help="Licence of the adapters, for the model card.")] = "unknown",
    memory: Annotated[float, typer.Option("--memory", min=0.001, help="Memory that rows may take at a time, GiB; for --format w2w.")] = 2.0,
    base: Base = "tiny-faces",
    out: Out = None,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write points, or rows of a dataset, for peft (a folder), diffusers or kohya (a .safetensors file), or in w2w's own layout.

    Several go into one folder. A model card is written beside them.
    """
    if (points is None) == (dataset is None) or (space is None) != (points is None):
        raise W2WError("what to export was not named. Give --points and --space, or --dataset.")
    ids = identities or []
    several = everything or len(ids) > 1
    one_file = not several and form in (ExportFormat.diffusers, ExportFormat.kohya)
    if out and one_file and out.suffix != ".safetensors":
        raise W2WError(f"--format {form.value} writes one file; --out {out} does not end with .safetensors.")
    with run("export", locals(), f"{form.value}.safetensors" if one_file else "adapters" if several else "adapter") as job:
        denoiser = w2w.Denoiser.load(base)
        if points and space:
            chosen = w2w.from_points(points, space, denoiser, ids, everything)
        else:
            chosen = w2w.from_dataset(str(dataset), denoiser, ids, everything)
        card = w2w.export(chosen, job.out, form.value, denoiser, licence=licence, memory=memory, folder=several)
        job.results = {"of": chosen.ids[0] if len(chosen.ids) == 1 else len(chosen.ids), "d": chosen.layout.d, "card": card}


def pick_adapter(
    points: Path | None, space: Path | None, adapter: Path | None, dataset: str | None, identity: str, model: Any
) -> tuple[Any, Any, str]:
    """The layout, weights [d] and id of what the user named; (None, None, "base") if nothing was.

    Raises W2WError if two things were named, or what was named belongs to another base.
    """
    if sum(thing is not None for thing in (points, adapter, dataset)) > 1:
        raise W2WError("more than one of --points, --adapter and --dataset was given. Name one.")
    if space and not points:
        raise W2WError(f"--space {space} was given without a point in it. Give --points.")
    if points:
        if not space:
            raise W2WError(f"{points} needs the space that it lies in. Give --space.")
        opened = w2w.load_space(space, model.device)
        opened.check(opened.layout, model.id, f"base {model.source}")
        z, ids = w2w.load_points(points, opened)
        row = position(ids, identity or ids[0])
        return opened.layout, opened.decode(z[row : row + 1])[0], ids[row]
    if adapter:
        layout, weights = w2w.read_peft(adapter)
        expected = w2w.Layout.of(model.pipeline.unet, rank=layout.rank, alpha=layout.alpha, targets=layout.targets)
        expected.check_same(layout, f"base {model.source}", str(adapter))
        return layout, weights, adapter.name
    if dataset:
        data = w2w.WeightDataset.open(dataset)
        if data.base_id != model.id:
            raise W2WError(f"dataset {dataset} belongs to base {data.base_id}; {model.source} is {model.id}. Give its --base.")
        row = data.index_of(identity or data.ids[0])
        return data.layout, data.rows([row])[0], data.ids[row]
    return None, None, "base"
