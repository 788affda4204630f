"""The report of a fitted VAE: its losses, six panels on its latents, and adapters beside their reconstructions."""

from pathlib import Path
from typing import Any

from w2wpp.base.drawing import picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.common.runs import command_line
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.images import write_image
from w2wpp.report.html import write_report
from w2wpp.report.latent_panels import encoded, latent_figures, latent_panels, reconstruction_grid
from w2wpp.spaces.vae import VaeSpace

LOOKED_AT = 1000  # adapters at most, evenly spaced, that the panels are drawn of
PICTURES = 5  # of each adapter and of its reconstruction


def write_vae_report(space: VaeSpace, data: WeightDataset, folder: Path, *, base: BaseModel | None = None, n: int = 0) -> dict[str, Any]:
    """Write `folder`/report.html and its pictures; returns what the panels say in numbers, with the report's path.

    base, n: draw the first n adapters of the dataset over their reconstructions. Raises W2WError if the base is another.
    """
    rows = data.rows(range(0, len(data), max(1, -(-len(data) // LOOKED_AT))))
    means, errors = encoded(space, rows)
    write_image(folder / "latents.png", latent_panels(means, errors))
    figures = [{"file": "latents.png", "caption": f"Six panels on {space.m} latents over {len(rows)} adapters."}]
    if base is not None and n:
        data.check(data.layout, base.id, f"base {base.source}")
        some = data.rows(range(min(n, len(data))))
        words = data.prompting
        originals, rebuilt = (
            picture_rows(base, data.layout, weights, words.prompt, range(PICTURES), guidance=words.guidance)
            for weights in (some, space.decode(space.encode(some)).cpu())
        )
        write_image(folder / "reconstructions.png", reconstruction_grid(originals, rebuilt))
        figures.append({"file": "reconstructions.png", "caption": "Adapters, each over its reconstruction at the same image seeds."})
    history = space.history
    curves = [
        {"caption": name, "ylabel": name, "log": False, "series": history[key]}
        for key, name in (("recon", "squared error"), ("kl", "KL per latent, nats"))
        if key in history
    ]
    found = latent_figures(means, errors)
    sections = [
        {"title": "Losses", "curves": curves},
        {
            "title": "Latents and reconstructions",
            "figures": figures,
            "table": {"head": list(found), "rows": [[f"{value:.4g}" for value in found.values()]]},
        },
    ]
    head = {"title": f"VAE of m = {space.m}", "subtitle": f"Variant {space.options.variant}."}
    head |= {"command": command_line(), "seed": str(space.options.seed)}
    return {**found, "report": write_report(folder, {**head, "sections": sections})}
