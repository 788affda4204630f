"""A map of a dataset: adapters as dots in the plane, near where their products are alike, with names and pictures."""

import base64
import html
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image as PILImage
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import replacing, write_text
from w2wpp.common.names import file_name
from w2wpp.common.seeds import generator
from w2wpp.fleet.index import ProductIndex
from w2wpp.photos.images import read_image

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def positions(index: ProductIndex, seed: int = 0) -> Tensor:
    """A place [n, 2] for each row: the two strongest directions of the products' cosines, by PCA.

    Raises W2WError for fewer than three rows.
    """
    unit = index.phi / index.norms.square().sum(1).sqrt().clamp_min(1e-30)[:, None]
    if len(unit) < 3:
        raise W2WError(f"{len(unit)} adapters make no map; three or more were expected.")
    unit = torch.nn.functional.pad(unit, (0, max(0, 2 - unit.shape[1])))  # rows that are all alike, or all zero, span less
    centred = unit - unit.mean(0)
    start = torch.randn(centred.shape[1], min(12, len(unit)), generator=generator(seed, "map"))
    for _ in range(8):
        start = torch.linalg.qr(centred.T @ (centred @ start))[0]
    u, values, _ = torch.linalg.svd(centred @ start, full_matrices=False)
    return u[:, :2] * values[:2]


def draw_map(path: Path, places: Tensor, names: Sequence[str]) -> None:
    """The map as a picture, .png or .svg; names stand beside the dots of up to 150 adapters."""
    matplotlib = import_module("matplotlib.figure")
    figure = matplotlib.Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*places.T.tolist(), s=12, color="#2f6f8f")
    for (x, y), name in zip(places.tolist(), names, strict=True) if len(names) <= 150 else ():
        axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{len(names)} adapters, near where their products are alike")
    with replacing(path) as aside:
        figure.savefig(aside, dpi=150, format=path.suffix.removeprefix("."))


def picture_of(folder: Path, name: str) -> Path | None:
    """The picture of an adapter in a folder: `<id>.png` and its like, or the first in a folder of that name.

    The id is written as `names.file_name` writes it, as in the pictures of `w2w`; None for one that names no file.
    """
    try:
        plain = file_name(name)
    except W2WError:
        return None
    for ending in IMAGES:
        if (found := folder / f"{plain}{ending}").is_file():
            return found
    inside = folder / plain
    found_in = sorted(path for path in inside.iterdir() if path.suffix.lower() in IMAGES) if inside.is_dir() else []
    return found_in[0] if found_in else None


def thumbnail(path: Path, side: int = 64) -> str:
    """A picture as a small one within HTML. Raises W2WError naming one that cannot be read."""
    image = PILImage.fromarray(read_image(path))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def html_map(path: Path, places: Tensor, names: Sequence[str], pictures: Path | None = None) -> int:
    """The map as one HTML file without scripts: names on hovering, thumbnails where there are pictures; returns how many."""
    low, high = places.min(0).values, places.max(0).values
    spread = (places - low) / (high - low).clamp_min(1e-12) * torch.tensor([1100.0, 750.0]) + 50
    drawn, dots = 0, []
    for (x, y), name in zip(spread.tolist(), names, strict=True):
        title = f"<title>{html.escape(name)}</title>"
        if pictures and (found := picture_of(pictures, name)):
            dots.append(f'<g>{title}<image x="{x - 24:.1f}" y="{y - 24:.1f}" width="48" height="48" href="{thumbnail(found)}"/></g>')
            drawn += 1
        else:
            dots.append(f'<g>{title}<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>')
        if len(names) <= 150:
            dots.append(f'<text x="{x + 8:.1f}" y="{y - 6:.1f}">{html.escape(name)}</text>')
    style = "body{font-family:sans-serif;margin:1em}circle{fill:#2f6f8f}text{font-size:11px}"
    text = f'<!doctype html><meta charset="utf-8"><title>Map of adapters</title><style>{style}</style>'
    text += f"<h1>{len(names)} adapters, near where their products are alike</h1>"
    write_text(path, text + f'<svg viewBox="0 0 1250 850" width="100%">{"".join(dots)}</svg>\n')
    return drawn
