"""The way of an inversion: its loss step by step, and the ID Score of what it would draw on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from w2wpp.common.files import write_text
from w2wpp.evaluation.id_score import id_score
from w2wpp.inversion.gradient import Inverted
from w2wpp.inversion.inverted_photos import InvertedPhotos
from w2wpp.report.figures import curves_svg


def trajectory(
    found: InvertedPhotos,
    points: int,
    *,
    pictures: int = 4,
    prompt: str | None = None,
    guidance: float | None = None,
    negative: str = "",
    steps: int = 20,
) -> dict[str, list[Any]]:
    """Draw at `points` places of the way, both ends among them, and score against each person's photos.

    Returns step, and ID Score: the mean over people, None where no face was found.
    """
    last = len(found.history.path) - 1
    at = sorted({int(i) for i in torch.linspace(0, last, max(2, points)).round().tolist()})
    scores = []
    for step in at:
        then = replace(found, history=replace(found.history, z=found.history.path[step]))
        rows = then.pictures(pictures, prompt, guidance=guidance, negative=negative, steps=steps)
        own = [id_score(row, photos) for row, photos in zip(rows, found.photos, strict=True)]
        seen = [score.mean for score in own if score.n_pairs]
        scores.append(fmean(seen) if seen else None)
    return {"step": at, "id": scores}


def write_trajectory(path: Path, found: Inverted, way: Mapping[str, Sequence[Any]]) -> Path:
    """Two curves in one SVG file: each step's loss (its own draws: it is noisy), and ID Score on the way; mean over people."""
    losses = [float(value) for value in found.losses.mean(1)]
    drawn = [curves_svg({"loss": losses}, "step", "loss")] if losses else []
    scored = [(step, score) for step, score in zip(way["step"], way["id"], strict=True) if score is not None]
    drawn.append(curves_svg({"ID Score": [score for _, score in scored]}, "step", "ID Score", at=[step for step, _ in scored]))
    height = 210  # of one figure, in points
    placed = [svg.replace("<svg ", f'<svg y="{i * height}" ', 1) for i, svg in enumerate(drawn)]
    write_text(path, f'<svg xmlns="http://www.w3.org/2000/svg" width="370" height="{height * len(placed)}">{"".join(placed)}</svg>')
    return path
