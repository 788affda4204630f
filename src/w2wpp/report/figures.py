"""The figures of a report: rows of pictures of several people, strips, and curves."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from w2wpp.photos.images import Image


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
