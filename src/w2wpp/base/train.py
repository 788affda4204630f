"""Make a base model from aligned faces: how `tiny-faces` was made. Autoencoder first, then UNet and text encoder."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from w2wpp.base.build import BaseSizes, build_pipeline
from w2wpp.base.captions import full_name
from w2wpp.base.model import BaseModel, scaled_latents
from w2wpp.base.train_autoencoder import AutoencoderOptions, train_autoencoder
from w2wpp.base.train_decoder import DecoderOptions, train_decoder
from w2wpp.base.train_unet import Captioned, DenoiserOptions, HeldOut, train_denoiser
from w2wpp.common.assets import located
from w2wpp.common.batches import batches
from w2wpp.common.device import pick_device
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json, write_tensors
from w2wpp.common.seeds import generator
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.descriptors import describe_faces

BEND = 0.04  # how far a spoilt photo is bent at most, of its side


@dataclass(frozen=True)
class BaseTraining:
    """Everything that decides a base model besides its photos."""

    sizes: BaseSizes = field(default_factory=BaseSizes)
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    denoiser: DenoiserOptions = field(default_factory=DenoiserOptions)
    autoencoder_of: str = ""  # a pipeline folder whose autoencoder is taken over as it is, in place of training one
    start: str = ""  # a pipeline folder of the same sizes and people, whose weights are trained further
    split: str = "train"  # whose photos to train on
    held_out_split: str = "val"  # whose photos the validation losses are measured on
    seed: int = 0


def train_base(
    faces: AlignedFaces, out: str | Path, options: BaseTraining, device: str = "auto", portraits: AlignedFaces | None = None
) -> Path:
    """Train a base on the people of one split; returns the pipeline's folder, `out/pipeline`.

    portraits: the same people aligned larger (128 pixels describe a face better than 64); `faces` unless given.
    Resumes where it was interrupted: each stage keeps its checkpoint under `out`. `out/training.json` holds the
    options and the loss curves. Snapshots of the denoiser become pipelines beside it, `out/pipeline-0.5`.
    Raises W2WError if `out` was begun with other options, or holds a pipeline that this training did not make.
    """
    out, picked = Path(out), pick_device(device)
    _keep_options(out / "options.json", options)
    people, strangers = faces.of_split(options.split), faces.of_split(options.held_out_split)
    pipeline = build_pipeline(options.sizes, [full_name(person) for person in people], options.seed)
    if options.autoencoder_of:
        pipeline.register_modules(vae=_autoencoder_of(options.autoencoder_of, pipeline.vae))
    if options.start:
        _take_weights(pipeline, options.start)
    pipeline.to(picked)
    pixels, owners = _pixels(faces, people)
    # Lines of steps after the last checkpoint come again when a training resumes: the later ones count.
    curves = {"autoencoder": out / "autoencoder.jsonl", "denoiser": out / "denoiser.jsonl"}
    if not options.autoencoder_of:
        train_autoencoder(pipeline.vae, pixels, options.autoencoder, out / "autoencoder.pt", _logger(curves["autoencoder"]))

    held_pixels, held_owners = _pixels(faces, strangers)
    labels = [faces.labels[person, name] for person in people for name in faces.people[person]]
    described = _person_descriptors(portraits or faces, [*people, *strangers], out / "descriptors.safetensors")
    place = {person: len(people) + i for i, person in enumerate(strangers)}
    held_out = HeldOut(_encode(pipeline.vae, held_pixels), described[[place[person] for person in held_owners]])
    trained = train_denoiser(
        pipeline,
        Captioned(_encode_views(pipeline.vae, pixels, options.denoiser), owners, labels, options.denoiser.spoilt),
        held_out,
        described[: len(people)],
        options.denoiser,
        out / "denoiser.pt",
        _logger(curves["denoiser"]),
        lambda snapshot, share: save_pipeline(snapshot, out / f"pipeline-{share:g}"),
        trained=bool(options.start),
    )
    save_pipeline(trained, out / "pipeline")
    history = {
        stage: list({line["step"]: line for line in map(json.loads, path.open())}.values())
        for stage, path in curves.items()
        if path.exists()
    }
    write_json(out / "training.json", {"options": asdict(options), "people": len(people), "photos": len(pixels), "curves": history})
    return out / "pipeline"


def sharpen_base(
    base: str | Path, faces: AlignedFaces, out: str | Path, options: DecoderOptions, device: str = "auto", split: str = "train"
) -> Path:
    """Give a base a sharper decoder, trained on the photos of one split; returns the new pipeline's folder, `out/pipeline`.

    Encoder, UNet and text encoder stay, and so do latents and all adapters. Resumes where it was interrupted.
    """
    out, loaded = Path(out), BaseModel.load(base, device, torch.float32)
    pixels, _ = _pixels(faces, faces.of_split(split))
    curve = out / "decoder.jsonl"
    vae = train_decoder(loaded.pipeline.vae, pixels, options, out / "decoder.pt", _logger(curve))
    loaded.pipeline.register_modules(vae=vae)
    save_pipeline(loaded.pipeline, out / "pipeline")
    lines = list({line["step"]: line for line in map(json.loads, curve.open())}.values()) if curve.exists() else []
    write_json(out / "decoder.json", {"options": asdict(options), "photos": len(pixels), "curve": lines})
    return out / "pipeline"


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Save in float16, in a form that `StableDiffusionPipeline.from_pretrained(folder)` runs on a CPU as it is."""
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.to(torch.float16)
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside, safe_serialization=True)
    # transformers would load the text encoder in the precision on disk while diffusers loads the rest in float32.
    config = read_json(aside / "text_encoder" / "config.json")
    write_json(aside / "text_encoder" / "config.json", {**config, "dtype": "float32"})
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _keep_options(path: Path, options: BaseTraining) -> None:
    given = json.loads(json.dumps(asdict(options)))
    if path.exists() and (begun := read_json(path)) != given:
        changed = ", ".join(key for key in given if begun.get(key) != given[key])
        raise W2WError(f"{path.parent} was begun with other options ({changed}; {path.name} says which). Use those, or another --out.")
    if not path.exists() and (path.parent / "pipeline").exists():  # it would be replaced at the end
        raise W2WError(f"{path.parent / 'pipeline'} was not made by this training. Choose another --out.")
    write_json(path, given)


def _pixels(faces: AlignedFaces, people: list[str]) -> tuple[Tensor, list[str]]:
    images = [(person, image) for person in people for image in faces.photos(person)]
    pixels = torch.from_numpy(np.stack([image for _, image in images])).permute(0, 3, 1, 2)
    return pixels, [person for person, _ in images]


@torch.no_grad()
def _encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] uint8 -> latents [n, c, h', w'] float16 on the autoencoder's device."""
    return torch.cat([scaled_latents(vae, pixels[s].to(vae.device).float() / 127.5 - 1).half() for s in batches(len(pixels), 512)])


def _encode_views(vae: Any, pixels: Tensor, options: DenoiserOptions) -> Tensor:
    """Latents of each picture and of its mirror image, both moved by up to `shift` pixels each way: [n, views, c, h', w'].

    Whole pixels, for a turned or scaled photo would be a blurred one. The first view is the picture as it is. Spoilt views
    come last.
    """
    size, moves = pixels.shape[-1], sorted(range(-options.shift, options.shift + 1), key=abs)
    views = []
    for down in moves:
        for right in moves:
            rows, columns = (reflected(size, by) for by in (down, right))
            moved = pixels[..., rows, :][..., columns]
            views += [_encode(vae, moved), _encode(vae, moved.flip(-1))]
    for i in range(options.spoilt):
        draw = generator(options.seed, "spoilt", i, device=vae.device)
        views.append(_encode(vae, spoilt(pixels.to(vae.device), draw)))
    return torch.stack(views, 1)


def reflected(size: int, by: int) -> Tensor:
    """Where each of `size` pixels of a row is taken from when the row moves by `by`; the gap shows what is next to it, mirrored."""
    place = torch.arange(size) - by
    return (size - 1) - ((size - 1) - place.abs()).abs()


def spoilt(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Photos [n, 3, h, w] uint8 as faces go wrong: bent by a smooth field, and half of them mixed with another photo in patches."""
    n, size, device = len(pixels), pixels.shape[-1], pixels.device

    def smooth(channels: int, points: int) -> Tensor:
        field = torch.randn(n, channels, points, points, generator=draw, device=device)
        return F.interpolate(field, (size, size), mode="bicubic", align_corners=True)

    mixed = torch.rand(n, generator=draw, device=device)[:, None, None, None] < 0.5
    mask = torch.where(mixed, torch.sigmoid(6 * smooth(1, 4)), 1.0)
    bend = BEND * (0.4 + 0.6 * torch.rand(n, generator=draw, device=device))[:, None, None, None] * smooth(2, 5)
    other = torch.randperm(n, generator=draw, device=device)
    line = torch.linspace(-1, 1, size, device=device)
    still = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    done = []
    for s in batches(n, 1024):
        blend = mask[s] * pixels[s].float() + (1 - mask[s]) * pixels[other[s]].float()
        place = still + 2 * bend[s].permute(0, 2, 3, 1)
        bent = F.grid_sample(blend, place, mode="bilinear", padding_mode="reflection", align_corners=True)
        done.append(bent.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(done)


def _take_weights(pipeline: Any, source: str) -> None:
    """Load the UNet and text encoder of a pipeline folder. Raises W2WError if they do not fit, or its words are others."""
    trained = BaseModel.load(source, "cpu").pipeline
    if trained.tokenizer.get_vocab() != pipeline.tokenizer.get_vocab():
        raise W2WError(f"{source} knows other words or people than this base. Train further on the photos it was trained on.")
    try:
        for part in ("unet", "text_encoder"):
            getattr(pipeline, part).load_state_dict(getattr(trained, part).state_dict())
    except RuntimeError as error:
        raise W2WError(f"{source} is of other sizes than this base ({str(error).splitlines()[0]}).") from error


def _autoencoder_of(source: str, like: Any) -> Any:
    """The autoencoder of a pipeline folder. Raises W2WError if it is none, or of other sizes than `like`."""
    folder = located(source, "pipeline")
    try:
        vae = AutoencoderTiny.from_pretrained(str(folder), subfolder="vae").eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        raise W2WError(f"the autoencoder of {source} does not load ({str(error).splitlines()[0]}). Give a pipeline folder.") from error
    keys = ("latent_channels", "encoder_block_out_channels")
    if any(json.dumps(vae.config[key]) != json.dumps(like.config[key]) for key in keys):  # tuples and lists
        found = ", ".join(f"{key} {vae.config[key]}" for key in keys)
        raise W2WError(f"the autoencoder of {source} has {found}, which does not fit the sizes of this base.")
    return vae


def _person_descriptors(portraits: AlignedFaces, people: list[str], cache: Path) -> Tensor:
    if not cache.exists():
        images = [portraits.photos(person) for person in people]
        described = torch.from_numpy(describe_faces([image for photos in images for image in photos]))
        means = [part.mean(0) for part in described.split([len(photos) for photos in images])]
        write_tensors(cache, {"descriptors": torch.stack(means)})
    return load_file(cache)["descriptors"]


def _logger(path: Path) -> Any:
    def log(line: dict[str, float]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")

    return log
