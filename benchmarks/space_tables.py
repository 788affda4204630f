"""The tables of `benchmarks/one_space.py`, as Markdown."""

from collections.abc import Mapping
from typing import Any

from result_tables import command_of, markdown

WAYS = {
    "base": "the base alone",
    "adapter": "the adapter itself, of half of the photos",
    "pca": "the adapter through PCA",
    "ours_encode": "the adapter through the one space, by `encode`",
    "ours": "the same, by the pictures that the adapter draws",
    "ours_refined": "the same, refined by 20 steps",
}


def reconstruction_text(found: Mapping[str, Any]) -> str:
    """Adapters of unseen people through each space, one row per way."""
    told, pictures = found["reconstruction"], found["pictures"]
    rows = [
        [label, f"{told[way]:.3f} ± {told[f'{way}_se']:.3f}", f"{told[f'{way}_no_face']} of {told['n'] * pictures}"]
        for way, label in WAYS.items()
        if way in told
    ]
    head = ["what draws the person", "ID Score, other half of the photos", "pictures without a face"]
    return f"{markdown({'head': head, 'rows': rows})}\n\n{_about(found, told['n'])}, m = {told['m']}. `{command_of(told)}`"


def inversions_text(found: Mapping[str, Any]) -> str:
    """One photo of each unseen person into each space, one row per space and number of UNet evaluations."""
    pictures = found["n"] * found["pictures"]
    rows = [
        [
            row["space"],
            f"{row['m']}",
            row["teacher"],
            f"{row['unet_evals']:.0f}",
            f"{row['id_other']:.3f} ± {row['id_other_se']:.3f}",
            f"{row['no_face']} of {pictures}",
        ]
        for row in found["inversion"]
    ]
    head = ["space, with an encoder", "m", "teacher", "UNet evaluations", "ID Score, other photos", "pictures without a face"]
    return f"{markdown({'head': head, 'rows': rows})}\n\n{_about(found, found['n'])}. `{command_of(found)}`"


def _about(found: Mapping[str, Any], people: int) -> str:
    return f"{found['split']} split, {people} people, {found['pictures']} pictures each; mean ± standard error over people"
