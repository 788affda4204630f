"""The figures of a report: rows of pictures of several people, strips, and curves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from w2wpp.base_model import BaseModel
from w2wpp.images import Image, grid, write_image
from w2wpp.layout import Layout


def picture_rows(
    base: BaseModel, layout: Layout, weights: Tensor, prompt: str, seeds: Sequence[int], *, guidance: float = 2.0, steps: int = 20
) -> list[list[Image]]:
    """Draw each adapter of weights [k, d] at each image seed -> k rows of pictures [h, w, 3] uint8.

    All rows share the image seeds, so that what differs between two rows is the adapter alone.
    """
    k, n = len(weights), len(seeds)
    pictures = base.generate(
        prompt, list(seeds) * k, layout=layout, weights=weights.repeat_interleave(n, 0), guidance=guidance, steps=steps
    )
    return [pictures[i * n : (i + 1) * n] for i in range(k)]


def write_rows(folder: Path, ids: Sequence[str], rows: Sequence[Sequence[Image]], seeds: Sequence[int]) -> Path:
    """Write each picture as `folder`/pictures/<id>/<seed>.png, and all of them as one sheet; returns the sheet's path."""
    for key, row in zip(ids, rows, strict=True):
        for seed, picture in zip(seeds, row, strict=True):
            write_image(folder / "pictures" / key / f"{seed}.png", picture)
    write_image(folder / "pictures.png", grid(rows))
    return folder / "pictures.png"


def enlarge(image: Image, side: int = 128) -> Image:
    """Enlarge a small picture by a whole factor, to at least `side` pixels; pixels stay visible."""
    factor = max(1, -(-side // max(image.shape[:2])))
    return np.ascontiguousarray(image.repeat(factor, 0).repeat(factor, 1))


def curves_svg(
    series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, *, log: bool = False, at: Sequence[float] | None = None
) -> str:
    """Draw named curves, over 1..n or the places `at`, as one SVG element."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
    for name, values in series.items():
        axes.plot(at or range(1, len(values) + 1), values, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "w2wpp"}):  # or the ids inside are drawn anew each time
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
