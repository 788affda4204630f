"""The six panels: their numbers tell an active latent from a dead one, and the picture is one."""

from collections.abc import Callable
from pathlib import Path

import torch

from conftest import Ended
from w2wpp.lora.layout import Layout
from w2wpp.report.latent_panels import encoded, latent_figures, latent_panels, normality
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions


def test_active_latents_are_counted_and_odd_ones_are_found() -> None:
    means = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    means[:, 1] *= 0.01
    means[:, 2] = 0
    means[:, 3] = means[:, 3].abs() ** 3
    found = latent_figures(means, torch.full((200,), 0.5))
    assert (found["latents"], found["active"], found["reconstruction_error"]) == (4, 2, 0.5)
    odd = normality(means)
    assert odd[3] > 10 > odd[0] and odd[2] == 0


def test_a_vae_gives_a_picture(layout: Layout) -> None:
    space = VaeSpace(layout, "base", VaeOptions(m=3, widths=(4,), variant="vanilla")).frozen()
    means, errors = encoded(space, 0.02 * torch.randn(25, layout.d))
    assert means.shape == (25, 3) and errors.shape == (25,)
    picture = latent_panels(means, errors)
    assert picture.shape[2] == 3 and picture.std() > 5


def test_fitting_a_vae_writes_its_report(w2w: Callable[..., Ended], pico: Path, dataset: Path, tmp_path: Path) -> None:
    ended = w2w(
        *("fit", "vae", dataset, "--m", 3, "--widths", "8", "--epochs", 2, "--report", tmp_path / "report", "--reconstructions", 2),
        *("--base", pico, "--runs", tmp_path / "runs", "--json"),
    )
    found = ended.json()
    assert found["latents"]["latents"] == 3
    text = (tmp_path / "report" / "report.html").read_text()
    assert text.count("data:image/png") == 2 and "<svg" in text
