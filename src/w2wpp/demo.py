"""The whole loop in one function: what the one space does (sample, interpolate, reconstruct, edit, find, invert), beside PCA; a report."""

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
from w2wpp.evaluation.id_score import id_score
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.from_adapter import AdapterReading, points_of_adapters
from w2wpp.inversion.gradient import PUBLISHED
from w2wpp.inversion.invert_photos import invert_photos
from w2wpp.inversion.photo import ready_photo
from w2wpp.photos.descriptors import face_models
from w2wpp.photos.images import Image, grid, write_image, write_rows
from w2wpp.report.figures import enlarge
from w2wpp.report.html import table1_rows, write_report
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import Space
from w2wpp.spaces.edits import edit, encode_rows, telling_directions
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.points import interpolate, nearest
from w2wpp.spaces.reconstruct import reconstruct

SIDE = 192  # pixels, at least, of each picture in the report
STRENGTHS = (-1.5, -0.75, 0.0, 0.75, 1.5)  # of the edits: at 2, some faces break


@dataclass(frozen=True)
class DemoOptions:
    """Sizes of the demo; the defaults take some minutes on two CPU cores."""

    base: str = "tiny-faces"
    dataset: str = "tiny-faces"
    space: str = "tiny-faces"  # a trained anchored VAE over the dataset, and its encoder; one is fitted here, without an encoder, if empty
    photo: Path | None = None  # to invert; the astronaut of scikit-image (NASA, public domain) if None
    align_photo: bool = True
    table: Path | None = None  # a table1.json by `w2w evaluate`, to show in the report as well
    prompt: str = "photo of sks person"
    m: int = 128
    components: int = 1024  # of an anchored VAE that is fitted here
    people: int = 6  # reconstructed
    pictures: int = 5  # of each drawn model
    strip: int = 7  # pictures in the interpolation
    attributes: int = 2  # edited
    found: int = 3  # nearest people shown for each drawn model
    inversion_steps: int = 400  # in PCA, as published
    scored: int = 8  # pictures of the inverted model that are scored
    seed: int = 0
    device: str = "auto"


def run_demo(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Run the loop; write PCA's space, pictures, the inverted adapters and report.html to `folder`; return the results.

    Raises W2WError with a trained space and without the extra that its encoder needs, and for a `table` that is none.
    """
    if options.space:
        face_models()  # now, and not when pictures have been drawn
    table1 = read_json(options.table) if options.table else {}
    if table1 and not {"rows", "command", "split"} <= table1.keys():
        raise W2WError(f"{options.table} is no table by `w2w evaluate`. Give its table1.json.")
    start = time.monotonic()
    torch.manual_seed(options.seed)
    base = BaseModel.load(options.base, options.device)
    dataset = WeightDataset.from_pretrained(options.dataset)
    spaces = both_spaces(dataset, options, base, folder)
    space = spaces["anchored VAE"]
    z = encode_rows(space, dataset)
    sections = [
        drawn(base, spaces, options, folder),
        walked(base, space, options, folder),
        rebuilt(base, dataset, spaces, options, folder),
        edited(base, space, dataset, z, options, folder),
        found_near(base, space, dataset, z, options, folder),
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


def both_spaces(dataset: WeightDataset, options: DemoOptions, base: BaseModel, folder: Path) -> dict[str, Space]:
    """PCA, fitted here, and the anchored VAE that does everything: the trained one, or one fitted here without photos."""
    m = min(options.m, len(dataset) - 1)
    pca = PcaSpace.fit(dataset, m=m)
    pca.save(folder / "pca.safetensors")
    if options.space:
        return {"PCA-w2w": pca, "anchored VAE": Space.from_pretrained(options.space, device=base.device)}
    how = AnchoredOptions(m=m, components=min(options.components, len(dataset) - 1), seed=options.seed)
    fitted = AnchoredVaeSpace.fit(dataset, how, device=options.device)
    fitted.save(folder / "anchored-vae.safetensors")
    return {"PCA-w2w": pca, "anchored VAE": fitted}


def drawn(base: BaseModel, spaces: Mapping[str, Space], options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Two models drawn from each space, one row of pictures per model."""
    figures = []
    for name, space in spaces.items():
        z = space.sample(2, seed=options.seed)
        rows = picture_rows(base, space.layout, space.decode(z), options.prompt, range(options.pictures))
        sheet = write_rows(folder / f"drawn-{name.replace(' ', '-')}", ["0", "1"], enlarged(rows), range(options.pictures))
        figures.append({"file": str(sheet.relative_to(folder)), "caption": f"{name}: one row per drawn model, one column per image seed"})
    return {"title": "New people, drawn from a space", "figures": figures}


def people_of(dataset: WeightDataset, n: int) -> list[int]:
    """The first row of each of the first n people."""
    first: dict[str, int] = {}
    for i, label in enumerate(dataset.labels):
        first.setdefault(str(label.get("person", dataset.ids[i])), i)
    return list(first.values())[:n]


def walked(base: BaseModel, space: Space, options: DemoOptions, folder: Path) -> dict[str, Any]:
    """A straight line between two drawn points, at one image seed."""
    ends = space.sample(2, seed=options.seed)
    line = interpolate(ends[0], ends[1], options.strip)
    rows = picture_rows(base, space.layout, space.decode(line), options.prompt, [options.seed])
    write_image(folder / "strip.png", grid([[row[0] for row in enlarged(rows)]]))
    figure = {"file": "strip.png", "caption": "From one drawn model to another, one image seed"}
    return {"title": "From one person to another", "figures": [figure]}


def rebuilt(base: BaseModel, dataset: WeightDataset, spaces: Mapping[str, Space], options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Adapters of the dataset over what each space makes of them: of their weights, or with an encoder of what they draw."""
    chosen = people_of(dataset, options.people)
    weights, ids = dataset.rows(chosen), [dataset.ids[i] for i in chosen]
    versions, told = [weights], []
    for name, space in spaces.items():
        if options.space and space.kind != "pca":
            encoder = PhotoEncoder.from_pretrained(options.space)
            z = points_of_adapters(base, space, encoder, weights, ids, AdapterReading(prompt=options.prompt))
            versions.append(reconstruct(space, weights, z)[0])
            told.append(f"{name} reads the pictures that adapters draw")
        else:
            back, lost = reconstruct(space, weights)
            versions.append(back)
            told.append(f"{name} reads their weights, and loses {fmean(lost):.0%} of the squared distance from its centre")
    rows = [[row[0] for row in picture_rows(base, dataset.layout, version, options.prompt, [options.seed])] for version in versions]
    write_image(folder / "reconstructions.png", grid(enlarged(rows)))
    caption = "Top to bottom: the adapter itself, " + ", ".join(spaces) + "; one column per person"
    figure = {"file": "reconstructions.png", "caption": caption}
    return {"title": "Adapters, to points and back", "text": "; ".join(told) + ".", "figures": [figure]}


def edited(base: BaseModel, space: Space, dataset: WeightDataset, z: torch.Tensor, options: DemoOptions, folder: Path) -> dict[str, Any]:
    """A drawn model, moved along the attributes that labels and points of the dataset tell of. z: its rows as points [n, m]."""
    directions = telling_directions(space, dataset, z, options.attributes)
    title = "One attribute changed"
    if not directions:
        return {"title": title, "text": "No label of these adapters can be told from their points."}
    person = space.sample(1, seed=options.seed).cpu()
    rows = []
    for direction in directions.values():
        moved = torch.cat([edit(person, [direction], [strength]) for strength in STRENGTHS])
        pictures = picture_rows(base, space.layout, space.decode(moved), options.prompt, [options.seed])
        rows.append([row[0] for row in enlarged(pictures)])
    write_image(folder / "edits.png", grid(rows))
    strengths = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    caption = f"Top to bottom: {', '.join(directions)}; left to right: strengths {strengths}, one image seed"
    return {"title": title, "figures": [{"file": "edits.png", "caption": caption}]}


def found_near(
    base: BaseModel, space: Space, dataset: WeightDataset, z: torch.Tensor, options: DemoOptions, folder: Path
) -> dict[str, Any]:
    """The drawn models, each beside the adapters of the dataset that are nearest to it."""
    new, mine = space.sample(2, seed=options.seed), people_of(dataset, len(dataset))
    distances, places = nearest(new.cpu(), z[mine], min(options.found, len(mine)))
    own = picture_rows(base, space.layout, space.decode(new), options.prompt, [options.seed])
    rows, told = [], []
    for i, near in enumerate(places.tolist()):
        there = [mine[place] for place in near]
        beside = picture_rows(base, dataset.layout, dataset.rows(there), options.prompt, [options.seed])
        rows.append([own[i][0], *(row[0] for row in beside)])
        told.append(", ".join(f"{dataset.ids[k]} {far:.1f}" for k, far in zip(there, distances[i].tolist(), strict=True)))
    write_image(folder / "nearest.png", grid(enlarged(rows)))
    text = "Nearest people and their distance, in the prior's standard deviations: " + "; ".join(told) + "."
    figure = {"file": "nearest.png", "caption": "A drawn model, then pictures by the adapters nearest to it; one row each"}
    return {"title": "Who is near", "text": text, "figures": [figure]}


def inverted(base: BaseModel, spaces: Mapping[str, Space], options: DemoOptions, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Invert one photo in each space, and score the models' pictures, and the base's, against the photo."""
    photo = ready_photo(options.photo or astronaut(), base, align_face=options.align_photo)
    seeds = range(options.scored)
    rows, evals = {"base": base.generate(options.prompt, seeds)}, {"base": 0.0}
    for name, space in spaces.items():
        trained = options.space and space.kind != "pca"
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
    return [[enlarge(picture, SIDE) for picture in row] for row in rows]
