"""A folder in exactly the published layout: every place that a user would name, the whole space, one model, and the hub."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Ended, refused
from published_files import ATTRIBUTES, COMPONENTS, DOGS, PROJECTED, N, write_published_files
from published_hub_server import hub_server
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.split import split_by_person
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.published import import_published
from w2wpp.exchange.formats.published_places import PUBLISHED_BASE
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "published"


@pytest.fixture
def files(layout: Layout, root: Path) -> dict[str, Tensor]:
    return write_published_files(root, layout)


def theirs(files: dict[str, Tensor], p: Tensor) -> Tensor:
    """The published decoding of raw coefficients p [n, m], signs of std as they are."""
    return (p @ files["v"][:, : p.shape[1]].T) * files["std"] + files["mean"]


def opened(folder: Path) -> PcaSpace:
    space = Space.load(folder / "space.safetensors")
    assert isinstance(space, PcaSpace)
    return space


@pytest.mark.parametrize(
    ("place", "rows", "m"),
    [
        (".", N, PROJECTED),
        ("files", None, PROJECTED),
        ("weights_datasets", N, None),
        ("weights_datasets/identities", N, None),
        ("weights_datasets/dogs", DOGS, None),
    ],
)
def test_every_folder_of_theirs_finds_what_belongs_to_it(
    w2w: Callable[..., Ended], pico: Path, root: Path, files: dict[str, Tensor], tmp_path: Path, place: str, rows: int | None, m: int | None
) -> None:
    out = tmp_path / "out"
    found = w2w("import", root / place, "--out", out, "--base", pico, "--runs", tmp_path / "runs", "--json").json()
    assert (found.get("n"), found.get("m")) == (rows, m)
    assert found.get("left_out", []) == {".": ["weights_datasets/dogs/dog_weights.pt"], "weights_datasets": ["dogs/dog_weights.pt"]}.get(
        place, []
    )
    if rows:
        data = WeightDataset.load(out)
        assert torch.equal(data.rows(), files["weights"][:rows])
        assert data.labels[1].get("label") == ("breed 1" if rows == DOGS else None)
    if m:
        space = opened(out)
        z, ids = load_points(out / "points.safetensors", space)
        assert ids[:2] == ["0.jpg", "1.jpg"]
        torch.testing.assert_close(space.decode(z), theirs(files, files["projected"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("column_major", [False, True])
def test_all_components_with_deviations_from_the_table(
    base: BaseModel, layout: Layout, root: Path, tmp_path: Path, column_major: bool
) -> None:
    files = write_published_files(root, layout, column_major=column_major)
    assert (files["std"] < 0).any() and (files["std"] == 0).any()
    import_published(Denoiser.of(base), root / "files", tmp_path / "out", m=COMPONENTS, memory=0.001)
    space = opened(tmp_path / "out")
    standard = (files["weights"] - files["mean"]) / torch.where(files["std"] == 0, torch.ones(()), files["std"])
    p = standard @ files["v"]
    torch.testing.assert_close(space.spread, p.std(0), rtol=1e-4, atol=1e-6)
    raw = torch.randn(3, COMPONENTS, generator=torch.Generator().manual_seed(1)) * p.std(0)
    torch.testing.assert_close(space.decode(space.from_raw(raw)), theirs(files, raw), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(space.to_raw(space.encode(theirs(files, raw))), raw, atol=1e-3, rtol=1e-3)
    cut = space.truncate(4)
    torch.testing.assert_close(cut.decode(cut.from_raw(raw[:, :4])), theirs(files, raw[:, :4]), atol=1e-6, rtol=1e-5)


def test_deviations_that_nothing_tells_are_refused(
    w2w: Callable[..., Ended], pico: Path, root: Path, files: dict[str, Tensor], tmp_path: Path
) -> None:
    (root / "weights_datasets" / "identities" / "all_weights.pt").unlink()
    ended = w2w("import", root / "files", "--out", tmp_path / "out", "--base", pico, "--m", COMPONENTS, "--runs", tmp_path / "runs")
    assert ended.code == 2 and "all_weights.pt" in ended.err and f"--m {PROJECTED}" in ended.err
    assert not (tmp_path / "out").exists()


def test_people_stay_together_and_attributes_can_be_edited_at_once(
    w2w: Callable[..., Ended], pico: Path, root: Path, files: dict[str, Tensor], tmp_path: Path
) -> None:
    out, common = tmp_path / "out", ("--base", pico, "--runs", tmp_path / "runs", "--json")
    w2w("import", root, "--out", out, *common).json()
    data = WeightDataset.load(out)
    assert data.labels[2]["person"] == data.labels[3]["person"] == "1001"
    assert {name: data.labels[5][name] for name in ATTRIBUTES} == {name: int(files[name][5]) for name in ATTRIBUTES}
    parts = split_by_person(Adapters.of(data).people, 0)
    assert all({i ^ 1 for i in rows.tolist()} == set(rows.tolist()) for rows in parts.values())
    found = w2w(
        *("edit", out / "space.safetensors", "--points", out / "points.safetensors", "--id", "0.jpg", "--attribute", "Male=-1"),
        *("--dataset", out, "--pictures", 1, "--solver-steps", 2, "--out", tmp_path / "edited", *common),
    ).json()
    assert found["attributes"]["Male"]["auc"] > 0.9


def test_one_model_comes_in_and_goes_out(
    w2w: Callable[..., Ended], pico: Path, root: Path, files: dict[str, Tensor], tmp_path: Path
) -> None:
    out, common = tmp_path / "out", ("--runs", tmp_path / "runs", "--json")
    w2w("import", root, "--out", out, "--part", "space", "--base", pico, *common).json()
    points = tmp_path / "one.safetensors"
    found = w2w("import", root / "w2wmodel.pt", "--space", out / "space.safetensors", "--out", points, *common).json()
    assert found["id"] == "w2wmodel"
    space = opened(out)
    torch.testing.assert_close(space.decode(load_points(points, space)[0]), theirs(files, files["projected"][3:4]), atol=1e-3, rtol=0.02)
    w2w(
        *("export", "--points", points, "--space", out / "space.safetensors", "--format", "w2wmodel", "--base", pico),
        *("--out", tmp_path / "back.pt", *common),
    ).json()
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    torch.testing.assert_close(back, files["projected"][3:4].to(torch.bfloat16).float(), rtol=1e-4, atol=1e-4)
    before = points.read_bytes()
    refused(w2w("import", root / "w2wmodel.pt", "--space", out / "space.safetensors", "--out", points, *common), "is there already")
    assert points.read_bytes() == before
    torch.save(torch.zeros(1, PROJECTED + 1), root / "w2wmodel.pt")
    another = tmp_path / "another.safetensors"
    refused(w2w("import", root / "w2wmodel.pt", "--space", out / "space.safetensors", "--out", another, *common), "larger --m")


def test_the_default_base_is_the_one_they_were_made_on(
    w2w: Callable[..., Ended], root: Path, files: dict[str, Tensor], tmp_path: Path
) -> None:
    ended = w2w("import", root, "--out", tmp_path / "out", "--runs", tmp_path / "runs", "--dry-run")
    assert PUBLISHED_BASE in ended.err and PUBLISHED_BASE in ended.out


def test_the_hub_gives_what_a_part_needs_and_the_table_by_rows(
    w2w: Callable[..., Ended],
    pico: Path,
    root: Path,
    files: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    asked: list[tuple[str, str, str]] = []
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    with hub_server("someone/w2w", root, asked) as endpoint:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        space = w2w("import", "someone/w2w", "--part", "space", "--out", tmp_path / "space", *common).json()
        got = {path.rsplit("/", 1)[-1] for _, path, _ in asked if "/resolve/" in path}
        assert space["m"] == PROJECTED and "V.pt" in got
        assert got.isdisjoint({"all_weights.pt", "pinverse_1000pc.pt", "dog_weights.pt", "w2wmodel.pt"})
        w2w("import", "someone/w2w", "--out", tmp_path / "all", "--memory", 0.001, *common).json()
    ranges = [held for _, path, held in asked if path.endswith("all_weights.pt")]
    assert ranges and all(ranges)  # never the whole file at once
    assert torch.equal(WeightDataset.load(tmp_path / "all").rows(), files["weights"])
    assert not list((tmp_path / "cache").rglob("all_weights.pt"))


def test_a_hub_without_a_network_is_one_line(w2w: Callable[..., Ended], pico: Path, tmp_path: Path) -> None:
    ended = w2w("import", "someone/w2w", "--out", tmp_path / "out", "--base", pico, "--runs", tmp_path / "runs")
    assert ended.code == 2 and "cannot fetch someone/w2w" in ended.err and "network" in ended.err


@pytest.mark.parametrize("name", ["weights_datasets/weight_dimensions.pt", "files/V.pt"])
def test_what_lacks_its_companions_is_refused(base: BaseModel, root: Path, files: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    (root / name).unlink()
    (root / "files" / "weight_dimensions.pt").unlink()
    with pytest.raises(W2WError, match=r"weight_dimensions\.pt beside or above|no V\.pt"):
        import_published(Denoiser.of(base), root, tmp_path / "out", part="all" if "dim" in name else "space")
