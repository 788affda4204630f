"""The whole loop in one function: fit two spaces beside the embedded one, sample, interpolate, reconstruct, invert, score, report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from w2wpp.base.drawing import picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json
from w2wpp.common.runs import command_line
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.collapse import collapse
from w2wpp.evaluation.id_score import id_score
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.gradient import PUBLISHED
from w2wpp.inversion.invert_photos import invert_photos
from w2wpp.inversion.photo import ready_photo
from w2wpp.photos.descriptors import face_models
from w2wpp.photos.images import Image, grid, write_image, write_rows
from w2wpp.report.figures import enlarge
from w2wpp.report.html import table1_rows, write_report
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.points import interpolate
from w2wpp.spaces.reconstruct import reconstruct
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions


@dataclass(frozen=True)
class DemoOptions:
    """Sizes of the demo; the defaults take some minutes on two CPU cores."""

    base: str = "tiny-faces"
    dataset: str = "tiny-faces"
    space: str = "tiny-faces"  # a trained anchored VAE over the dataset, and its encoder; none if empty
    photo: Path | None = None  # to invert; the astronaut of scikit-image (NASA, public domain) if None
    align_photo: bool = True
    table: Path | None = None  # a table1.json by `w2w evaluate`, to show in the report as well
    prompt: str = "photo of sks person"
    m: int = 128
    vae_widths: tuple[int, ...] = (1024, 512, 256)
    vae_epochs: int = 12
    people: int = 6  # reconstructed
    pictures: int = 5  # of each drawn model
    strip: int = 7  # pictures in the interpolation
    inversion_steps: int = 400
    scored: int = 8  # pictures of the inverted model that are scored
    seed: int = 0
    device: str = "auto"


def run_demo(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Run the loop; write both spaces, pictures, the inverted adapter and report.html to `folder`; return the results.

    Raises W2WError with a trained space and without the extra that its encoder needs, and for a `table` that is none.
    """
    if options.space:
        face_models()  # now, and not when all spaces are fitted
    table1 = read_json(options.table) if options.table else {}
    if table1 and not {"rows", "command", "split"} <= table1.keys():
        raise W2WError(f"{options.table} is no table by `w2w evaluate`. Give its table1.json.")
    start = time.monotonic()
    torch.manual_seed(options.seed)
    base = BaseModel.load(options.base, options.device)
    dataset = WeightDataset.from_pretrained(options.dataset)
    pca, vae, fitted = fit_both(dataset, options, folder)
    spaces: dict[str, Space] = {"PCA-w2w": pca, "VAE-w2w": vae}
    if options.space:
        spaces["anchored VAE"] = Space.from_pretrained(options.space, device=base.device)
    sections = [
        fitted,
        drawn(base, spaces, options, folder),
        walked(base, list(spaces.values())[-1], options, folder),
        rebuilt(base, dataset, {"PCA-w2w": pca, "VAE-w2w": vae}, options, folder),
    ]
    inversion, scores = inverted(base, spaces, options, folder)
    sections.append(inversion)
    if table1:
        text = f"Made by `{table1['command']}` on the {table1['split']} split. ID Score, mean ± standard error over people."
        sections.append({"title": "Table 1", "text": text, "table": table1_rows(table1)})
    seconds = round(time.monotonic() - start, 1)
    results = {
        "title": "Weights2Weights++, the whole loop",
        "subtitle": f"{len(dataset):,} adapters of {dataset.d:,} numbers each, over the base {options.base}; {seconds:.0f} seconds.",
        "command": command_line(),
        "seed": options.seed,
        "seconds": seconds,
        "scores": scores,
        "sections": sections,
    }
    return {**results, "report": write_report(folder, results)}


def fit_both(dataset: WeightDataset, options: DemoOptions, folder: Path) -> tuple[PcaSpace, VaeSpace, dict[str, Any]]:
    """Fit PCA-w2w and VAE-w2w at the same m, and say what each keeps."""
    m = min(options.m, len(dataset) - 1)
    pca = PcaSpace.fit(dataset, m=m)
    vae = VaeSpace.fit(
        dataset, VaeOptions(m=m, widths=options.vae_widths, epochs=options.vae_epochs, seed=options.seed), device=options.device
    )
    pca.save(folder / "pca.safetensors")
    vae.save(folder / "vae.safetensors")
    found = collapse(vae, dataset.rows())
    text = (
        f"With m = {m}, PCA-w2w keeps {float(pca.explained_variance_ratio.sum()):.0%} of the standardised variance. Of the VAE's "
        f"latents {found['active_units']} are active, and what it rebuilds has {found['decoded_spread_ratio']:.0%} of the data's: "
        "near 0% means that it answers with little more than the mean adapter."
    )
    return pca, vae, {"title": "Spaces over the same adapters", "text": text, "curves": vae_curves(vae.history), "collapse": found}


def vae_curves(history: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The VAE's reconstruction and KL by epoch, train and validation, as a report's curves."""
    return [
        {"caption": caption, "ylabel": key, "log": True, "series": history[key]}
        for key, caption in (("recon", "reconstruction: squared error, x10 units"), ("kl", "KL: nats per latent"))
    ]


def drawn(base: BaseModel, spaces: Mapping[str, Space], options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Two models drawn from each space, one row of pictures per model."""
    figures = []
    for name, space in spaces.items():
        z = space.sample(2, seed=options.seed)
        rows = picture_rows(base, space.layout, space.decode(z), options.prompt, range(options.pictures))
        sheet = write_rows(folder / f"drawn-{name.replace(' ', '-')}", ["0", "1"], enlarged(rows), range(options.pictures))
        figures.append({"file": str(sheet.relative_to(folder)), "caption": f"{name}: one row per drawn model, one column per image seed"})
    return {"title": "New people, drawn from a space", "figures": figures}


def walked(base: BaseModel, space: Space, options: DemoOptions, folder: Path) -> dict[str, Any]:
    """A straight line between two drawn points, at one image seed."""
    ends = space.sample(2, seed=options.seed)
    line = interpolate(ends[0], ends[1], options.strip)
    rows = picture_rows(base, space.layout, space.decode(line), options.prompt, [0])
    write_image(folder / "strip.png", grid([[row[0] for row in enlarged(rows)]]))
    figure = {"file": "strip.png", "caption": f"{space.kind}: from one drawn model to another, one image seed"}
    return {"title": "From one person to another", "figures": [figure]}


def rebuilt(base: BaseModel, dataset: WeightDataset, spaces: Mapping[str, Space], options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Adapters of the dataset over what each space makes of them."""
    first = [i for i, label in enumerate(dataset.labels) if label.get("half") != "b"]
    weights = dataset.rows(first[: options.people])
    found = {name: reconstruct(space, weights) for name, space in spaces.items()}
    versions = [weights, *(back for back, _ in found.values())]
    rows = [[row[0] for row in picture_rows(base, dataset.layout, version, options.prompt, [0])] for version in versions]
    write_image(folder / "reconstructions.png", grid(enlarged(rows)))
    shares = "; ".join(f"{name} {fmean(lost):.0%}" for name, (_, lost) in found.items())
    text = f"Of an adapter's squared distance from the space's centre is lost: {shares}."
    caption = "Top to bottom: the adapter itself, " + ", ".join(spaces) + "; one column per person"
    return {"title": "Adapters, encoded and decoded", "text": text, "figures": [{"file": "reconstructions.png", "caption": caption}]}


def inverted(base: BaseModel, spaces: Mapping[str, Space], options: DemoOptions, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Invert one photo in each space, and score the models' pictures, and the base's, against the photo."""
    photo = ready_photo(options.photo or astronaut(), base, align_face=options.align_photo)
    seeds = range(options.scored)
    rows, evals = {"base": base.generate(options.prompt, seeds)}, {"base": 0.0}
    for name, space in spaces.items():
        trained = space.kind == "anchored-vae"
        encoder = PhotoEncoder.from_pretrained(options.space) if trained else None
        how = None if trained else replace(PUBLISHED, steps=options.inversion_steps)
        found = invert_photos(
            space, photo, base=base, encoder=encoder, options=how, ids=["photo"], prompt=options.prompt, seed=options.seed, align=False
        )
        evals[name] = found.history.unet_evals
        write_peft(folder / f"adapter-{name.replace(' ', '-')}", space.layout, found.weights[0], options.base)
        rows[name] = found.pictures(seeds, options.prompt)[0]
    scores = {name: id_score(pictures, [photo]) for name, pictures in rows.items()}
    write_image(folder / "inverted.png", grid(enlarged([[photo, *row] for row in rows.values()])))
    text = "ID Score against the photo: " + "; ".join(
        f"{name} {score.mean:.2f} (no face found in {score.missed} of {options.scored}; {evals[name]:.0f} UNet evaluations)"
        for name, score in scores.items()
    )
    caption = "The photo, then pictures of: " + ", ".join(rows) + "; one row each"
    section = {"title": "From one photo to a model", "text": text + ".", "figures": [{"file": "inverted.png", "caption": caption}]}
    return section, {name: {"id": score.mean, "missed": score.missed} for name, score in scores.items()}


def astronaut() -> Image:
    """Eileen Collins, photographed by NASA (public domain), as scikit-image ships it: [512, 512, 3] uint8."""
    import skimage.data

    return skimage.data.astronaut()


def enlarged(rows: list[list[Image]]) -> list[list[Image]]:
    """Small pictures, enlarged for the report."""
    return [[enlarge(picture) for picture in row] for row in rows]
