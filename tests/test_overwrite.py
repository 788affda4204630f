"""One file as a result: it is not replaced unasked, and memory is asked for before the work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ended, refused
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.pca import PcaSpace

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


def test_more_models_than_memory_holds_are_refused(w2w: Call, tmp_path: Path, pico: Path, space: Path) -> None:
    ended = w2w("sample", space, "--base", pico, "--n", 10**12, "--out", tmp_path / "many", "--runs", tmp_path / "runs")
    refused(ended, "1000000000000 models", "GiB are free")
    assert not any((tmp_path / "many").glob("*.safetensors"))
