"""Names from elsewhere become files below --out and nowhere else, and no result goes where something is read."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Ended
from w2wpp.common.errors import W2WError
from w2wpp.common.files import apart, write_text
from w2wpp.common.names import DEVICES, LONGEST, file_name, file_names
from w2wpp.common.runs import new_run, newest
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.images import write_rows
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import save_points

W2w = Callable[..., Ended]
HOSTILE = [
    "../../../x",
    "/abs/x",
    "..",
    ".",
    "NUL",
    "com1.txt",
    "a\0b",
    "C:\\x",
    "a/../b",
    ".hidden",
    "end.",
    "end ",
    " x",
    "a\nb",
    "\ud800",
]
# What ids are made of: mostly letters with a meaning to some file system.
IDS = st.text(st.one_of(st.sampled_from('./\\:*?"<>|%~ -\0\n'), st.characters(exclude_categories=())), min_size=1, max_size=16)


@settings(max_examples=300)
@given(IDS)
def test_a_name_is_one_plain_part_of_a_path_and_can_be_read_back(name: str) -> None:
    file = file_name(name)
    assert Path(file).name == file and file not in (".", "..") and not set(file) & set('/\\:*?"<>|\0\n')
    assert not file.startswith(".") and not file.endswith((".", " ")) and file.split(".")[0].upper() not in DEVICES
    assert (len(file.encode()) <= LONGEST and unicodedata.is_normalized("NFC", file)) or name >= "\u1100"
    assert unquote(file, errors="surrogatepass") == name  # so no two names are one file


@given(st.lists(IDS, min_size=1, max_size=5))
def test_names_of_one_file_are_refused_and_others_are_files_each(names: list[str]) -> None:
    try:
        files = file_names(names)
    except W2WError:
        assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names) or any(
            letter >= "\u1100" for name in names for letter in name
        )
    else:
        assert len({file.casefold() for file in files}) == len(names)


def test_names_of_no_file_and_two_names_of_one_are_refused() -> None:
    for name in ("", "x" * 300, "é" * 101):
        with pytest.raises(W2WError):
            file_name(name)
    for names in (["Ada", "ada"], ["x", "x"]):
        with pytest.raises(W2WError, match="one file"):
            file_names(names)
    assert len(set(file_names(HOSTILE))) == len(HOSTILE)
    assert file_name("Zoë Ż#b") == "Zoë Ż#b"


def around(folder: Path) -> set[str]:
    """What lies in a folder and above it, as far as the test made it."""
    return {str(path) for path in folder.parent.parent.rglob("*") if not path.is_relative_to(folder)}


def test_pictures_of_hostile_ids_stay_below_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    out.mkdir(parents=True)
    before = around(out)
    write_rows(out, HOSTILE, [[np.zeros((2, 2, 3), np.uint8)]] * len(HOSTILE), [0])
    assert around(out) == before and not Path("/abs/x").exists()
    assert len(list((out / "pictures").iterdir())) == len(HOSTILE)


def test_ids_of_datasets_and_points_do_not_leave_out(w2w: W2w, dataset: Path, pico: Path, tmp_path: Path) -> None:
    data, above = WeightDataset.load(dataset), f"../../../{tmp_path.name}-x"
    data.append(data.rows([0]), [above], [{"person": above}])
    space = PcaSpace.fit(data, m=3)
    space.save(tmp_path / "space.safetensors")
    save_points(tmp_path / "points.safetensors", torch.zeros(2, 3), [above, str(tmp_path / "abs" / "x")], space)
    quick = ("--base", pico, "--solver-steps", 1, "--runs", tmp_path / "runs")
    points = ("--points", tmp_path / "points.safetensors", "--space", tmp_path / "space.safetensors")
    for words in (
        ("generate", "photo", "--n", 1, "--dataset", dataset, "--id", above, *quick),
        ("generate", "photo", "--n", 1, *points, "--id", tmp_path / "abs" / "x", *quick),
    ):
        ended = w2w(*words, "--out", tmp_path / "deep" / "er" / str(hash(words)))
        assert ended.code == 0, ended.err
    assert not (tmp_path / "abs").exists() and not list(tmp_path.parent.rglob(f"{tmp_path.name}-x"))


@pytest.mark.parametrize("relation", ["is", "contains", "lies in", "is by a link"])
def test_a_result_keeps_away_from_what_is_read(tmp_path: Path, relation: str) -> None:
    source = tmp_path / "top" / "photos"
    (source / "Ada").mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    out = {"is": source, "contains": tmp_path / "top", "lies in": source / "Ada" / "new", "is by a link": tmp_path / "link"}[relation]
    with pytest.raises(W2WError, match="Choose another --out"):
        apart(out, None, "no/such/hub-id", source)
    apart(tmp_path / "top" / "photos-aligned", source)


def test_every_verb_refuses_an_out_in_its_input(w2w: W2w, dataset: Path, tmp_path: Path) -> None:
    photos = tmp_path / "p"
    write_text(photos / "Ada" / "1.png", "not touched")
    PcaSpace.fit(WeightDataset.load(dataset), m=3).save(tmp_path / "s" / "space.safetensors")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    space = tmp_path / "s" / "space.safetensors"
    for words in (
        ("faces", "align", photos, "--out", photos),
        ("faces", "align", photos, "--out", photos / "Ada"),
        ("faces", "align", photos, "--out", tmp_path),
        ("fit", "pca", dataset, "--m", 2, "--out", dataset / "manifest.jsonl"),
        ("dataset", "select", dataset, "--where", "person=person-1", "--out", dataset),
        ("dataset", "merge", dataset, "--out", dataset / "more"),
        ("sample", space, "--out", tmp_path / "s"),
        ("invert", space, photos / "Ada", "--out", photos / "Ada" / "me"),
        ("export", "--dataset", dataset, "--out", dataset),
        ("generate", "--dataset", dataset, "--out", dataset / "pictures"),
        ("adapters", "train", photos, "--out", photos),
        ("evaluate", photos, "--out", photos),
    ):
        ended = w2w(*words, "--runs", tmp_path / "runs")
        assert ended.code == 2 and "Choose another --out" in ended.err, (words, ended.err)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("taken", ["9999-x", "123456-x", "²³45-x", "99999999999-x", "0005"])
def test_runs_go_on_whatever_lies_there(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    first, second = new_run(tmp_path, "demo", {}), new_run(tmp_path, "demo", {})
    numbers = [int(folder.name.split("-")[0]) for folder in (first, second)]
    assert numbers[1] == numbers[0] + 1
    for folder in (first, second):
        write_text(folder / "results.json", "{}")
    assert newest(tmp_path, "demo") == second


def test_a_file_of_the_longest_name_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "x")
    assert os.listdir(tmp_path) == ["n" * 255]
