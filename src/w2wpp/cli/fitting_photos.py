"""Verbs that fit to photos as well as to adapters: fit anchored-vae, encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import asked, inputs_of, open_space, run, those_given
from w2wpp.cli.fitting import fit
from w2wpp.cli.help import OUTPUT, verb
from w2wpp.cli.options import (
    RUNS,
    Base,
    BasePrecision,
    Dataset,
    Device,
    DryRun,
    InPrecision,
    Json,
    LeanBase,
    Out,
    OverwriteFile,
    Prompt,
    Runs,
    Seed,
    SpaceFile,
)
from w2wpp.common.errors import W2WError

TrainFaces = Annotated[Path | None, typer.Option("--faces", help="A folder that `w2w faces align` made, of people to learn from.")]
TrainSplit = Annotated[str, typer.Option("--split", help="Whose photos to train on; everyone's if empty.")]
Teacher = Annotated[
    str,
    typer.Option(
        "--teacher",
        help="adapters: predict what each person's own adapters predict; photos: denoise their photos; both: adapters where people have "
        "them, else photos; likeness: draw what looks like their photos to the network that describes these, in their tone, which is "
        "best and costs most; names: predict what the base does when it is told their name; auto: both with a dataset, else photos.",
    ),
]
Loudness = Annotated[
    float | None,
    typer.Option(
        "--loudness",
        min=0,
        help="Where adapters teach, or likeness with a dataset: how far people's points lead from the mean adapter at the start; 1 is as "
        "far as descriptions of faces predict, which is nearer than adapters lie.",
        show_default="2.5",
    ),
]
EncoderSteps = Annotated[
    int,
    typer.Option(
        "--encoder-steps", min=0, help="Steps of Adam on photos; 0 keeps the regression on adapters, where training begins there."
    ),
]
EncoderBatch = Annotated[int, typer.Option("--encoder-batch", min=1, help="People per step on photos.")]
EncoderDraws = Annotated[
    int, typer.Option("--encoder-draws", min=1, help="Draws of photo, timestep and noise per person and step; for likeness, pictures.")
]

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="A file that keeps the state of training on photos, to go on after an interruption; deleted at the end.",
        rich_help_panel=OUTPUT,
    ),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w fit`, which is a part of `app`."""
    anchored = "w2w fit anchored-vae adapters --faces faces --encoder encoder.safetensors --out vae.safetensors"
    verb(fit, "anchored-vae", anchored)(fit_anchored)
    verb(fit, "encoder", "w2w fit encoder pca.safetensors faces --out encoder.safetensors")(fit_encoder)


Latents = Annotated[int, typer.Option("--m", min=1, help="Latent dimensions.")]
WorkingComponents = Annotated[int, typer.Option("--components", min=1, help="Principal components that the networks work on.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of Adam on the weights.")]
Hidden = Annotated[int, typer.Option("--hidden", min=1, help="Width of the decoder's residual network.")]
EncoderOut = Annotated[
    Path | None, typer.Option("--encoder", help="Where to write the encoder; goes with --faces.", rich_help_panel=OUTPUT)
]


# What training on photos alone looks at, with what stands there where it was not given.
OF_PHOTOS = {"teacher": "auto", "loudness": None, "low_memory": False, "encoder_steps": 900, "encoder_batch": 64, "encoder_draws": 2}


def fit_anchored(
    dataset: Dataset = "tiny-faces",
    m: Latents = 128,
    components: WorkingComponents = 2048,
    steps: Steps = 400,
    faces: TrainFaces = None,
    split: TrainSplit = "train",
    teacher: Teacher = "auto",
    loudness: Loudness = None,
    hidden: Hidden = 512,
    encoder_steps: EncoderSteps = 900,
    encoder_batch: EncoderBatch = 64,
    encoder_draws: EncoderDraws = 2,
    encoder: EncoderOut = None,
    checkpoint: Checkpoint = None,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    low_memory: LeanBase = False,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fit the anchored VAE: it starts as probabilistic PCA, and training keeps only what improves it.

    --faces then trains its decoder, and an encoder from a photo to a point, on photos of these people.
    """
    given, reads = locals(), ("dataset", "faces", "base")
    from w2wpp.common.files import apart

    if encoder:
        apart(encoder, *inputs_of(given, reads), out, option="--encoder")
    if checkpoint:
        apart(checkpoint, *inputs_of(given, reads), out, encoder, option="--checkpoint")
    refuse_without_faces(given)
    with run("fit-anchored-vae", given, "space.safetensors", reads=reads, stored=True, fresh=("out", "encoder")) as job:
        options = w2w.AnchoredOptions(m=m, components=components, hidden=hidden, steps=steps, seed=seed)
        data = w2w.WeightDataset.from_pretrained(dataset)
        photos = None
        if faces:
            model = w2w.BaseModel.load(base, device, low_memory=low_memory)
            data.check(data.layout, model.id, f"base {base}")
            photos = w2w.PersonPhotos.of(model, faces, split, asked(data.prompting, prompt).prompt, teacher, data, loudness)
        space = w2w.AnchoredVaeSpace.fit(data, options, device=device)
        job.results = {"m": space.m, "d": space.layout.d, "history": space.history}
        if photos and encoder:
            how = w2w.EncoderOptions(steps=encoder_steps, batch=encoder_batch, draws=encoder_draws, seed=seed)
            space, fitted, trained = w2w.fit_with_decoder(space, photos, how, checkpoint)
            job.results |= {"encoder": encoder, "teacher": photos.teacher, "encoder_history": trained}
        space.save(job.out)
        if photos and encoder:
            fitted.save(encoder)
        if checkpoint:
            checkpoint.unlink(missing_ok=True)


def refuse_without_faces(given: Mapping[str, Any]) -> None:
    """Raise W2WError for what belongs to training on photos, if there are none, and for photos that train no encoder."""
    if given["faces"] is None and given["checkpoint"]:
        raise W2WError("--checkpoint was given without --faces: it is of training on photos. Leave it out.")
    if (given["faces"] is None) != (given["encoder"] is None):
        raise W2WError("--faces and --encoder belong together: photos train an encoder. Give both, or neither.")
    told = {f"--{name.replace('_', '-')}": given[name] for name, usual in OF_PHOTOS.items() if given[name] != usual}
    if given["faces"] is None and (unused := those_given(told)):
        raise W2WError(f"{unused}: of training on photos, and no --faces was given. Give --faces and --encoder, or leave it out.")


FacesToLearn = Annotated[Path, typer.Argument(help="A folder that `w2w faces align` made, of people to learn from.")]
TeachingDataset = Annotated[Path | None, typer.Option("--dataset", help="A weight dataset whose adapters teach.")]


def fit_encoder(
    space: SpaceFile,
    faces: FacesToLearn,
    split: TrainSplit = "train",
    teacher: Teacher = "auto",
    loudness: Loudness = None,
    dataset: TeachingDataset = None,
    encoder_steps: EncoderSteps = 900,
    encoder_batch: EncoderBatch = 64,
    encoder_draws: EncoderDraws = 2,
    checkpoint: Checkpoint = None,
    prompt: Prompt = None,
    base: Base = "tiny-faces",
    seed: Seed = 0,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    low_memory: LeanBase = False,
    out: Out = None,
    overwrite: OverwriteFile = False,
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train an encoder for a space: from a photo to a point in one pass, as a model or as a start for inversion."""
    given = locals()
    from w2wpp.common.files import apart

    if checkpoint:
        apart(checkpoint, *inputs_of(given), out, option="--checkpoint")
    with run("fit-encoder", given, "encoder.safetensors", stored=True, fresh=("out",)) as job:
        model, opened = open_space(space, base, device, precision, low_memory)
        data = w2w.WeightDataset.from_pretrained(dataset) if dataset else None
        photos = w2w.PersonPhotos.of(model, faces, split, asked(opened.prompting, prompt).prompt, teacher, data, loudness)
        how = w2w.EncoderOptions(steps=encoder_steps, batch=encoder_batch, draws=encoder_draws, seed=seed)
        fitted, history = w2w.fit_encoder(opened, photos, how, checkpoint)
        fitted.save(job.out)
        if checkpoint:
            checkpoint.unlink(missing_ok=True)
        job.results = {"m": fitted.m, "teacher": photos.teacher, "history": history}
