"""Pictures, maps and files as HTML: data in the page itself, so that nothing of a visitor's lies in a file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage
from torch import Tensor

from w2wpp.photos.images import Image


def data_url(data: bytes, kind: str) -> str:
    """Bytes as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(image: Image) -> str:
    """A picture as the data: address of a PNG."""
    file = io.BytesIO()
    PILImage.fromarray(image).save(file, "PNG")
    return data_url(file.getvalue(), "image/png")


def pictures(name: str, images: Sequence[Image], numbers: Sequence[int] = ()) -> str:
    """A row of pictures under a name; with `numbers` every picture is a button that tells its own."""
    cells = []
    for i, image in enumerate(images):
        alt = html.escape(f"{name}, picture {i + 1}" if len(images) > 1 else name)
        cell = f'<img src="{png(image)}" alt="{alt}" width="{image.shape[1]}" height="{image.shape[0]}">'
        cells.append(f'<button type="button" data-i="{numbers[i]}" aria-label="{alt}">{cell}</button>' if numbers else cell)
    return f'<figure><figcaption>{html.escape(name)}</figcaption><div class="w2w-row">{"".join(cells)}</div></figure>'


def canvas(face: Image) -> str:
    """An aligned face under a canvas to paint on, which has its size at least."""
    side = max(256, len(face))
    return (
        f'<div class="w2w-paint"><img src="{png(face)}" alt="aligned face"><canvas width="{side}" height="{side}"></canvas></div>'
        '<button type="button" class="w2w-plain">Clear the mask</button>'
    )


def scatter(places: Tensor, names: Sequence[str], here: Tensor | None = None) -> str:
    """People [n, 2] as dots that can be clicked, and where the current person is [2]."""
    if not len(places):
        return "<p>This space came without a dataset, so there is no map.</p>"
    low, high = places.min(0).values, places.max(0).values
    dots = []
    for i, ((x, y), name) in enumerate(zip(((places - low) / (high - low).clamp_min(1e-9) * 96 + 2).tolist(), names, strict=True)):
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r=".9" data-i="{i}"><title>{html.escape(name)}</title></circle>')
    if here is not None:
        x, y = ((here - low) / (high - low).clamp_min(1e-9) * 96 + 2).clamp(1, 99).tolist()
        dots.append(f'<circle class="here" cx="{x:.1f}" cy="{y:.1f}" r="1.8"><title>the current person</title></circle>')
    return f'<svg class="w2w-map" viewBox="0 0 100 100" role="img" aria-label="map of people">{"".join(dots)}</svg>'


def losses(values: Sequence[float], steps: int) -> str:
    """The losses of the steps that are done, as a line as long as all steps."""
    if not values:
        return ""
    low, high, last = min(values), max(values), max(1, steps - 1)
    points = " ".join(f"{100 * i / last:.1f},{28 - 26 * (value - low) / (high - low or 1):.1f}" for i, value in enumerate(values))
    told = f"loss, {values[0]:.3f} at the first step and {values[-1]:.3f} at step {len(values)}"
    frame = f'class="w2w-loss" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label="{told}"'
    return f'<figure><figcaption>{told}</figcaption><svg {frame}><polyline points="{points}"/></svg></figure>'


def downloads(files: Sequence[Path]) -> str:
    """Files as links that hold them."""
    links = []
    for file in files:
        address = data_url(file.read_bytes(), "application/octet-stream")
        links.append(f'<li><a href="{address}" download="{html.escape(file.name)}">{html.escape(file.name)}</a></li>')
    return f'<ul class="w2w-files">{"".join(links)}</ul>'
