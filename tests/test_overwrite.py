"""One file as a result: it is not replaced unasked, and memory is asked for before the work."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ended, refused
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_text
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import save_points

Call = Callable[..., Ended]


@pytest.fixture
def space(tmp_path: Path, dataset: Path) -> Path:
    PcaSpace.fit(WeightDataset.load(dataset), m=3).save(tmp_path / "space.safetensors")
    return tmp_path / "space.safetensors"


def test_a_result_that_is_there_is_replaced_when_asked(w2w: Call, tmp_path: Path, dataset: Path, space: Path) -> None:
    runs, before = tmp_path / "runs", space.read_bytes()
    table = tmp_path / "labels.csv"
    table.write_text("mine")
    refused(w2w("fit", "pca", dataset, "--m", 2, "--out", space, "--runs", runs), "space.safetensors is there already", "--overwrite")
    refused(w2w("dataset", "labels", dataset, "--out", table, "--runs", runs), "labels.csv is there already")
    faces = tmp_path / "faces"
    also = w2w("fit", "anchored-vae", dataset, "--faces", faces, "--encoder", table, "--out", tmp_path / "new", "--runs", runs)
    refused(also, "--encoder", "labels.csv is there already")
    refused(w2w("export", "--space", space, "--format", "vae", "--out", table, "--runs", runs), "labels.csv is there already")
    assert (space.read_bytes(), table.read_text()) == (before, "mine")
    assert w2w("fit", "pca", dataset, "--m", 2, "--out", space, "--overwrite", "--runs", runs).code == 0
    assert space.read_bytes() != before


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_folder_is_no_file_and_is_told_before_the_work(
    w2w: Call, tmp_path: Path, dataset: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PcaSpace, "fit", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "mine").mkdir()
    ended = w2w("fit", "pca", dataset, "--m", 2, "--out", tmp_path / "mine", *flags, "--runs", tmp_path / "runs")
    refused(ended, "is a folder, and the result is one file")


def test_a_pipe_or_a_link_is_not_replaced_and_a_file_is_no_folder(w2w: Call, tmp_path: Path, dataset: Path) -> None:
    def fit(out: Path, *flags: str) -> Ended:
        return w2w("fit", "pca", dataset, "--m", 2, "--out", out, *flags, "--runs", tmp_path / "runs")

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "mine.txt").write_text("mine")
    refused(fit(tmp_path / "pipe", "--overwrite"), "is a device, pipe or socket")
    refused(fit(tmp_path / "link"), "link is there already")
    refused(fit(tmp_path / "mine.txt" / "space.safetensors"), "mine.txt is no folder")
    refused(fit(tmp_path / ("a" * 300)), "File name too long")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()
    with pytest.raises(W2WError, match="is a device, pipe or socket"):
        write_text(tmp_path / "pipe", "text")


def test_a_report_does_not_mix_with_files_of_others(w2w: Call, tmp_path: Path, dataset: Path) -> None:
    def fit(report: Path, *flags: str) -> Ended:
        words = ("fit", "vae", dataset, "--m", 2, "--epochs", 1, "--widths", "8", "--out", tmp_path / "vae.safetensors")
        return w2w(*words, "--report", report, *flags, "--runs", tmp_path / "runs")

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.html").write_text("mine")
    refused(fit(mine), "report.html is there already")
    (mine / "report.html").rename(mine / "notes.html")
    refused(fit(mine), "is not empty")
    refused(fit(mine / "notes.html"), "notes.html is no folder")
    refused(fit(dataset), "--report")
    assert (mine / "notes.html").read_text() == "mine" and not (tmp_path / "vae.safetensors").exists()


def test_points_that_were_kept_are_not_lost_to_a_fit_that_is_refused(w2w: Call, tmp_path: Path, space: Path) -> None:
    opened, kept = Space.load(space), tmp_path / "kept.safetensors"
    for n, name in ((9, "few"), (12, "kept")):
        save_points(tmp_path / f"{name}.safetensors", opened.sample(n), [f"p{i}" for i in range(n)], opened)
    before = kept.read_bytes()
    words = ("fit", "prior", space, "--points", tmp_path / "few.safetensors", "--kind", "mixture", "--keep-points", kept, "--overwrite")
    refused(w2w(*words, "--out", tmp_path / "prior.safetensors", "--runs", tmp_path / "runs"), "points of 9 people are too few")
    assert kept.read_bytes() == before


def test_more_models_than_memory_holds_are_refused(w2w: Call, tmp_path: Path, pico: Path, space: Path) -> None:
    ended = w2w("sample", space, "--base", pico, "--n", 10**12, "--out", tmp_path / "many", "--runs", tmp_path / "runs")
    refused(ended, "1000000000000 models", "GiB are free")
    assert not any((tmp_path / "many").glob("*.safetensors"))
