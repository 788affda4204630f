"""Verbs on the frozen pipeline that all adapters share: base train, sharpen, show."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import asked, decimals, numbers, open_base, run, show
from w2wpp.cli.help import BASE, verb
from w2wpp.cli.options import RUNS, AppendOut, Base, BasePrecision, Device, DryRun, Faces, Guidance, InPrecision, Json, Runs, Seed
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from w2wpp.base.train import BaseTraining

base_model = typer.Typer(help="Train or describe the frozen pipeline that all adapters share.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these verbs to `w2w`."""
    app.add_typer(base_model, name="base", rich_help_panel=BASE)


Portraits = Annotated[Path | None, typer.Option("--portraits", help="The same people aligned larger, 128 pixels, to describe.")]
TrainSplit = Annotated[str, typer.Option("--split", help="Whose photos to train on.")]
HeldOut = Annotated[str, typer.Option("--held-out", help="Split that the validation loss is measured on.")]
AutoencoderSteps = Annotated[int, typer.Option("--autoencoder-steps", min=1, help="Steps of the autoencoder.")]
DenoiserSteps = Annotated[int, typer.Option("--denoiser-steps", min=1, help="Steps of the UNet and text encoder.")]
UNetMinutes = Annotated[float, typer.Option("--minutes", min=0, help="End the UNet's training after this time; 0 is no limit.")]
UNetBatch = Annotated[int, typer.Option("--batch", min=1, help="Photos in each step of the UNet.")]
UNetRate = Annotated[float, typer.Option("--lr", min=0, help="AdamW's peak learning rate for the UNet.")]
Hold = Annotated[float, typer.Option("--hold", min=0, max=0.99, help="Share of the training after which the learning rate falls.")]
WeightPower = Annotated[
    float, typer.Option("--weight-power", min=0, max=1, help="Power of the min-SNR weights; below 1 the noisiest steps count for more.")
]
UNetWidths = Annotated[str, typer.Option("--widths", help="Channels of the UNet's levels, separated by commas.")]
Dropout = Annotated[float, typer.Option("--dropout", min=0, max=0.9, help="Dropout in the UNet during training.")]
NameLoudness = Annotated[
    float, typer.Option("--name-loudness", min=0, help="Strength of names in the finished base; above 1 they count for more.")
]
Shift = Annotated[int, typer.Option("--shift", min=0, help="Also show photos moved by up to this number of pixels.")]
Spoilt = Annotated[
    int,
    typer.Option("--spoilt", min=0, help="Bent and mixed views of each photo for the empty caption, which guidance leads away from."),
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the networks first: minutes, then faster steps on a GPU.")]
AutoencoderOf = Annotated[str, typer.Option("--autoencoder", help="Use the autoencoder of this pipeline, and train none.")]
StartPipeline = Annotated[str, typer.Option("--start", help="Train the UNet and text encoder of this pipeline further.")]
Snapshots = Annotated[str, typer.Option("--snapshots", help="Shares of the training, separated by commas, after which a pipeline is kept.")]


@verb(base_model, "train", "w2w base train faces --out base")
def base_train(
    faces: Faces,
    out: AppendOut,
    portraits: Portraits = None,
    split: TrainSplit = "train",
    held_out: HeldOut = "val",
    autoencoder_steps: AutoencoderSteps = 5000,
    denoiser_steps: DenoiserSteps = 5200,
    minutes: UNetMinutes = 0.0,
    batch: UNetBatch = 64,
    lr: UNetRate = 1e-3,
    hold: Hold = 0.5,
    weight_power: WeightPower = 1.0,
    widths: UNetWidths = "96,120",
    dropout: Dropout = 0.0,
    loudness: NameLoudness = 1.0,
    shift: Shift = 0,
    spoilt: Spoilt = 0,
    compiled: Compiled = False,
    autoencoder: AutoencoderOf = "",
    start: StartPipeline = "",
    snapshots: Snapshots = "",
    seed: Seed = 0,
    device: Device = "auto",
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a small Stable Diffusion pipeline on aligned faces, from nothing: how tiny-faces was made.

    Needs the extra `train` (pip install 'w2wpp[train]'). Hours on two cores, minutes on a GPU; resumes where it was interrupted.
    """
    given = locals()
    with run("base-train", given, sign="options.json") as job:
        from w2wpp.base.train import train_base

        photos = w2w.AlignedFaces.load(faces)
        described = w2w.AlignedFaces.load(portraits) if portraits else None
        pipeline = train_base(photos, out, base_training(photos.size, given), device, described)
        job.results = {"pipeline": pipeline, "curves": out / "training.json"}


def base_training(image_size: int, given: Mapping[str, Any]) -> "BaseTraining":
    """The options of a training on photos of `image_size` pixels. given: the verb's arguments. Raises W2WError for no numbers."""
    from w2wpp.base.build import BaseSizes
    from w2wpp.base.train import BaseTraining
    from w2wpp.base.train_autoencoder import AutoencoderOptions
    from w2wpp.base.train_unet import DenoiserOptions

    alike = ("minutes", "batch", "lr", "shift", "hold", "weight_power", "spoilt", "compiled", "seed")
    return BaseTraining(
        sizes=BaseSizes(image_size=image_size, unet_widths=numbers(given["widths"]), unet_dropout=given["dropout"]),
        autoencoder=AutoencoderOptions(steps=given["autoencoder_steps"], seed=given["seed"]),
        denoiser=DenoiserOptions(
            steps=given["denoiser_steps"],
            name_loudness=given["loudness"],
            snapshots=decimals(given["snapshots"]),
            **{name: given[name] for name in alike},
        ),
        autoencoder_of=given["autoencoder"],
        start=given["start"],
        split=given["split"],
        held_out_split=given["held_out"],
        seed=given["seed"],
    )


@verb(base_model, "sharpen", "w2w base sharpen faces --base base/pipeline --out sharper")
def base_sharpen(
    faces: Faces,
    out: AppendOut,
    base: Base = "tiny-faces",
    split: Annotated[str, typer.Option("--split", help="Split of the photos to train on.")] = "train",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the decoder.")] = 2500,
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="End after this time; 0 is no limit.")] = 0.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Photos in each step.")] = 16,
    lr: Annotated[float, typer.Option("--lr", min=0, help="AdamW's peak learning rate.")] = 1e-3,
    energy: Annotated[float, typer.Option("--energy", min=0, help="Weight of the energy of fine detail; 0 leaves pictures soft.")] = 6.0,
    seed: Seed = 0,
    device: Device = "auto",
    runs: Runs = RUNS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train the decoder of a base further, so that its pictures are sharper. Adapters, points and spaces stay valid."""
    with run("base-sharpen", locals()) as job:
        from w2wpp.base.train import sharpen_base
        from w2wpp.base.train_decoder import DecoderOptions

        options = DecoderOptions(steps=steps, minutes=minutes, batch=batch, lr=lr, energy=energy, seed=seed)
        pipeline = sharpen_base(base, w2w.AlignedFaces.load(faces), out, options, device, split)
        job.results = {"pipeline": pipeline, "curve": out / "decoder.json"}


@verb(base_model, "show", "w2w base show tiny-faces")
def base_show(
    base: Annotated[str, typer.Argument(help="tiny-faces (embedded), a pipeline folder, or a hub id.")] = "tiny-faces",
    faces: Annotated[Path | None, typer.Option("--faces", help="Also measure the base on these aligned faces (minutes).")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Number of pictures in which to look for faces.")] = 200,
    guidance: Guidance = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Where to write the pictures that were measured, as one picture.")] = None,
    device: Device = "auto",
    precision: InPrecision = BasePrecision.auto,
    as_json: Json = False,
) -> None:
    """Describe a base model: its sizes, its words, and the size of its default adapter.

    --faces also measures how good it is: faces found in its pictures, and identity kept by the autoencoder and by names.
    """
    from w2wpp.adapters.train import options_for
    from w2wpp.base.check import check_base, describe_base
    from w2wpp.lora.prompting import Prompting

    if sheet and not faces:
        raise W2WError(f"--sheet {sheet} holds the pictures that were measured, and nothing is without --faces. Give --faces.")
    model = open_base(base, device, precision)
    layout = options_for(base).layout_of(model)
    adapter = {"targets": list(layout.targets), "matrices": len(layout.matrices), "d": layout.d}
    found = {"base": base, **describe_base(model), "default_adapter": adapter}
    if not as_json and found["vocabulary"] > 20:
        found["words"] = [*found["words"][:20], "..."]
    if faces:
        scale = asked(Prompting(), None, guidance).guidance
        found["measured"], rows = check_base(model, w2w.AlignedFaces.load(faces), samples=samples, guidance=scale)
        if sheet:
            w2w.write_image(sheet, w2w.grid(rows))
    show(found, as_json)
