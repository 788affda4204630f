"""Make a base model from aligned faces: how `tiny-faces` was made. Autoencoder first, then UNet and text encoder."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from w2wpp.alignment import AlignedFaces
from w2wpp.autoencoder_training import AutoencoderOptions, train_autoencoder
from w2wpp.base_build import BaseSizes, build_pipeline
from w2wpp.base_model import pick_device, scaled_latents
from w2wpp.captions import full_name
from w2wpp.denoiser_training import Captioned, DenoiserOptions, train_denoiser
from w2wpp.descriptors import describe_faces
from w2wpp.errors import W2WError
from w2wpp.files import read_json, write_json, write_tensors
from w2wpp.images import batches


@dataclass(frozen=True)
class BaseTraining:
    """Everything that decides a base model besides its photos."""

    sizes: BaseSizes = field(default_factory=BaseSizes)
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    denoiser: DenoiserOptions = field(default_factory=DenoiserOptions)
    split: str = "train"  # whose photos to train on
    held_out_split: str = "val"  # whose photos the validation loss is measured on
    seed: int = 0


def train_base(
    faces: AlignedFaces, out: str | Path, options: BaseTraining, device: str = "auto", portraits: AlignedFaces | None = None
) -> Path:
    """Train a base on the people of one split; returns the pipeline's folder, `out/pipeline`.

    portraits: the same people aligned larger (128 pixels describe a face better than 64); `faces` unless given.
    Goes on where it was interrupted: each stage keeps its checkpoint under `out`. `out/training.json` holds the
    options and the loss curves.
    Raises W2WError if `out` was begun with other options.
    """
    out, picked = Path(out), pick_device(device)
    _keep_options(out / "options.json", options)
    people = faces.of_split(options.split)
    pipeline = build_pipeline(options.sizes, [full_name(person) for person in people], options.seed)
    pipeline.to(picked)
    pixels, owners = _pixels(faces, people)
    # Lines of steps after the last checkpoint come again when a training goes on: the later ones count.
    curves = {"autoencoder": out / "autoencoder.jsonl", "denoiser": out / "denoiser.jsonl"}
    train_autoencoder(pipeline.vae, pixels, options.autoencoder, out / "autoencoder.pt", _logger(curves["autoencoder"]))

    latents = torch.stack([_encode(pipeline.vae, pixels), _encode(pipeline.vae, pixels.flip(-1))], dim=1)
    held_pixels, _ = _pixels(faces, faces.of_split(options.held_out_split))
    labels = [faces.labels[person, name] for person in people for name in faces.people[person]]
    descriptors = _person_descriptors(portraits or faces, people, out / "descriptors.safetensors")
    train_denoiser(
        pipeline,
        Captioned(latents, owners, labels),
        _encode(pipeline.vae, held_pixels),
        descriptors,
        options.denoiser,
        out / "denoiser.pt",
        _logger(curves["denoiser"]),
    )
    save_pipeline(pipeline, out / "pipeline")
    history = {stage: list({line["step"]: line for line in map(json.loads, path.open())}.values()) for stage, path in curves.items()}
    write_json(out / "training.json", {"options": asdict(options), "people": len(people), "photos": len(pixels), "curves": history})
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
    write_json(path, given)


def _pixels(faces: AlignedFaces, people: list[str]) -> tuple[Tensor, list[str]]:
    images = [(person, image) for person in people for image in faces.photos(person)]
    pixels = torch.from_numpy(np.stack([image for _, image in images])).permute(0, 3, 1, 2)
    return pixels, [person for person, _ in images]


@torch.no_grad()
def _encode(vae: Any, pixels: Tensor) -> Tensor:
    return torch.cat([scaled_latents(vae, pixels[s].to(vae.device).float() / 127.5 - 1).cpu() for s in batches(len(pixels), 128)])


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
