"""The published recipes through the command: negative prompts, sampling by a factor, edits and inversion in raw coefficients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Ended
from published_files import write_published_files
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import write_image
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points
from w2wpp.spaces.published_edits import published_debias, published_direction
from w2wpp.spaces.vae import VaeSpace

Call = Callable[..., Ended]


@pytest.fixture
def files(layout: Layout, tmp_path: Path) -> dict[str, Tensor]:
    return write_published_files(tmp_path / "published", layout)


@pytest.fixture
def out(w2w: Call, files: dict[str, Tensor], pico: Path, tmp_path: Path) -> Path:
    """The published folder, imported."""
    w2w("import", tmp_path / "published", "--out", tmp_path / "out", "--base", pico, "--runs", tmp_path / "runs", "--json").json()
    return tmp_path / "out"


def opened(out: Path) -> PcaSpace:
    space = Space.load(out / "space.safetensors")
    assert isinstance(space, PcaSpace)
    return space


def test_guidance_leads_away_from_the_negative_prompt(base: BaseModel) -> None:
    def draw(guidance: float, negative: str) -> np.ndarray:
        return base.generate("photo of sks person", [0], guidance=guidance, negative=negative, steps=2)[0]

    assert np.array_equal(draw(2.0, ""), base.generate("photo of sks person", [0], guidance=2.0, steps=2)[0])
    assert not np.array_equal(draw(4.0, "smiling"), draw(4.0, ""))
    assert np.array_equal(draw(1.0, "smiling"), draw(1.0, ""))  # no guidance, nothing to lead away from
    same = draw(4.0, "photo of sks person").astype(int) - draw(1.0, "").astype(int)
    assert np.abs(same).max() <= 1  # away from itself is nowhere


def test_a_factor_draws_nearer_to_the_mean(w2w: Call, out: Path, pico: Path, tmp_path: Path) -> None:
    drawn = []
    for factor in (1.0, 0.5):
        words = ("--factor", factor, "--n", 2, "--pictures", 1, "--solver-steps", 2, "--out", tmp_path / str(factor))
        w2w("sample", out / "space.safetensors", *words, "--base", pico, "--runs", tmp_path / "runs", "--json").json()
        drawn.append(load_points(tmp_path / str(factor) / "points.safetensors", opened(out))[0])
    torch.testing.assert_close(drawn[1], drawn[0] / 2)


@pytest.mark.parametrize("from_points", [False, True])
def test_the_published_edit_is_pinverse_times_labels_on_raw_coefficients(
    w2w: Call, out: Path, files: dict[str, Tensor], pico: Path, tmp_path: Path, from_points: bool
) -> None:
    source = ("--dataset", out / "points.safetensors", "--labels", out / "labels.csv") if from_points else ("--dataset", out)
    w2w(
        *("edit", out / "space.safetensors", "--points", out / "points.safetensors", "--id", "4.jpg", "--published", *source),
        *("--attribute", "Bald=30", "--debias", "Male", "--pictures", 1, "--solver-steps", 2, "--base", pico),
        *("--out", tmp_path / "edited", "--runs", tmp_path / "runs", "--json"),
    ).json()
    projected = files["projected"]
    bald, male = (torch.linalg.pinv(projected) @ files[name] for name in ("Bald", "Male"))
    theirs = projected[4] + 30 * (bald - (bald @ male) / male.norm() ** 2 * male)
    space = opened(out)
    z, ids = load_points(tmp_path / "edited" / "points.safetensors", space)
    assert ids == ["4.jpg-edited"]
    torch.testing.assert_close(space.to_raw(z)[0], theirs, atol=5e-3, rtol=1e-3)


def test_directions_leave_unlabelled_rows_out_and_debiasing_is_orthogonal() -> None:
    draw = torch.Generator().manual_seed(0)
    raw, labels = torch.randn(30, 4, generator=draw), torch.randn(30, generator=draw).sign()
    some = labels.clone()
    some[20:] = float("nan")
    torch.testing.assert_close(published_direction(raw, some), published_direction(raw[:20], labels[:20]))
    one, other = published_direction(raw, labels), published_direction(raw, raw[:, 0])
    assert abs(float(published_debias(one, [other]) @ other)) < 1e-9


def test_the_published_inversion_through_the_command(
    w2w: Call, out: Path, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2wpp.inversion import published

    monkeypatch.setenv("W2WPP_PRECISION", "float32")  # Adam's first step is its rate where gradients are not rounded away

    monkeypatch.setattr(published, "RAW", published.PublishedOptions(steps=2))
    monkeypatch.setattr(published, "OUT_OF_DISTRIBUTION", published.PublishedOptions(steps=1, lr=1.0, components=2))
    write_image(tmp_path / "me.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    common = ("--no-align", "--pictures", 1, "--solver-steps", 2, "--base", pico, "--runs", tmp_path / "runs", "--json")
    words = ("invert", out / "space.safetensors", tmp_path / "me.png", *common)
    found = w2w(*words, "--published", "--negative-prompt", "smiling", "--out", tmp_path / "a").json()
    assert (found["start"], found["unet_evals"]) == ("zero", 2)
    space = opened(out)
    raw = space.to_raw(load_points(tmp_path / "a" / "points.safetensors", space)[0])[0]
    assert (raw.abs() <= 0.2 + 1e-3).all() and (raw.abs() > 1e-3).any()  # two steps of 0.1
    w2w(*words, "--published", "--out-of-distribution", "--out", tmp_path / "b").json()
    raw = space.to_raw(load_points(tmp_path / "b" / "points.safetensors", space)[0])[0]
    torch.testing.assert_close(raw[:2].abs(), torch.ones(2), atol=5e-2, rtol=0)  # Adam's epsilon counts beside gradients this small
    ended = w2w(*words, "--out-of-distribution", "--out", tmp_path / "c")
    assert ended.code == 2 and "--published" in ended.err


def test_a_vae_is_inverted_by_the_seeds_recipe(dataset: Path) -> None:
    from w2wpp.dataset.weights import WeightDataset
    from w2wpp.inversion.published import published_options
    from w2wpp.spaces.vae_options import VaeOptions

    data = WeightDataset.load(dataset)
    space = VaeSpace(data.layout, data.base_id, VaeOptions(m=3, widths=(8,), variant="vanilla")).frozen()
    options = published_options(space, activity=dataset)
    assert options.decoupled and options.timesteps > 1 and options.activity == (0.0, 0.0, 0.0)  # an untrained network moves little
    with pytest.raises(W2WError, match="components of a pca"):
        published_options(space, out_of_distribution=True)
