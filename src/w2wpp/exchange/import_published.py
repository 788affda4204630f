"""Published files of Weights2Weights, from a folder, from the hub or one by one, to a dataset, a space or a point."""

import os
from pathlib import Path
from typing import Any

import torch

from w2wpp.common.errors import W2WError
from w2wpp.common.files import apart, replaceable
from w2wpp.common.hub import is_hub_id
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.published import import_model, import_published
from w2wpp.exchange.formats.published_places import Part
from w2wpp.exchange.formats.seed_vae import read_vae
from w2wpp.exchange.formats.torch_files import load_plain
from w2wpp.exchange.published_hub import fetch_published
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space


def import_files(
    source: str | Path,
    base: str,
    out: Path,
    *,
    m: int | None = None,
    part: Part = "all",
    alpha: float | None = None,
    memory: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The files of a folder or of a repository of the hub, as `import_published` has them."""
    denoiser = Denoiser.load(base)
    folder, table = fetch_published(str(source), part) if is_hub_id(source) else (Path(source), None)
    return import_published(denoiser, folder, out, m=m, part=part, alpha=alpha, memory=memory, dtype=dtype, remote=table)


def import_file(source: Path, space: Path | None, out: Path, base: str) -> dict[str, Any]:
    """A w2wmodel.pt as a points file, a vae.pt as a space. out: the file, or the folder that it goes to.

    Raises W2WError for coefficients without the space that they lie in, and for a file that is there already.
    """

    def new(name: str) -> Path:
        file = out if out.suffix == ".safetensors" else out / name
        apart(file, source, space)
        replaceable(file, overwrite=True)
        if os.path.lexists(file):
            raise W2WError(f"{file} is there already. Choose another --out.")
        return file

    if isinstance(load_plain(source, device="meta"), dict):
        if space:
            raise W2WError(f"{source} is a VAE, a space of its own. Leave out --space.")
        file = new("space.safetensors")
        denoiser = Denoiser.load(base)
        vae = read_vae(source, Layout.of(denoiser.module), denoiser.id)
        vae.save(file)
        return {"space": file, "kind": vae.kind, "m": vae.m, "widths": list(vae.options.widths), "base": base}
    if space is None:
        raise W2WError(f"{source} holds coefficients of a space. Give it as --space, one that `w2w import` made.")
    points = new("points.safetensors")
    return {"id": import_model(source, Space.from_pretrained(space), points), "points": points}
