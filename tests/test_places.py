"""Folders of results: whole, of one run at a time, never mixed, and replaced only where w2w made them and was asked to."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Ended, write_faces
from w2wpp.adapters.population import train_population
from w2wpp.adapters.portraits import TRAINED_ON
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_text
from w2wpp.common.locks import LOCK, owned
from w2wpp.common.places import RECORD, results_in
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.photos import descriptors
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.images import write_image
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae_options import VaeOptions

W2w = Callable[..., Ended]
FORK = multiprocessing.get_context("fork")


def put(out: Path, files: dict[str, str], overwrite: bool = False) -> None:
    """Results of these files."""
    with results_in(out, overwrite) as aside:
        for name, text in files.items():
            write_text(aside / name, text)


def held(out: Path) -> dict[str, str]:
    """The files of a folder that a user sees."""
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file() and not p.name.startswith(".w2w")}


def test_results_do_not_mix_and_overwriting_spares_what_others_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, {"a/1": "one", "b": "two"})
    with pytest.raises(W2WError, match="--overwrite"):
        put(out, {"c": "three"})
    assert held(out) == {"a/1": "one", "b": "two"}
    write_text(out / "README.md", "mine")
    put(out, {"b": "new"}, overwrite=True)
    assert held(out) == {"b": "new", "README.md": "mine"} and not (out / "a").exists()
    with pytest.raises(W2WError, match=r"README.md was not made by w2w"):
        put(out, {"README.md": "ours", "b": "newer"}, overwrite=True)
    write_text(out / "b", "changed by hand")
    with pytest.raises(W2WError, match="b was not made by w2w, or changed"):
        put(out, {"b": "newest"}, overwrite=True)
    assert held(out) == {"b": "changed by hand", "README.md": "mine"}


def test_a_record_cannot_delete_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_text(tmp_path / "precious", "x")
    sum_ = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of "x"
    (out / "link").parent.mkdir()
    (out / "link").symlink_to(tmp_path / "precious")
    write_text(out / RECORD, json.dumps({"whole": True, "files": {"../precious": sum_, str(tmp_path / "precious"): sum_, "link": sum_}}))
    put(out, {"new": "y"}, overwrite=True)
    assert (tmp_path / "precious").read_text() == "x" and (out / "link").is_symlink()


@pytest.mark.parametrize("way", ["a link to a folder", "a file in the place of a folder", "a folder in the place of a file"])
def test_what_bars_the_way_of_a_result_is_found_before_anything_goes(tmp_path: Path, way: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    put(out, {"first": "one"})
    write_text(elsewhere / "1", "theirs")
    if way == "a link to a folder":
        (out / "a").symlink_to(elsewhere)
    elif way == "a file in the place of a folder":
        write_text(out / "a", "mine")
    else:
        write_text(out / "a" / "1" / "note", "mine")
    before = held(out)
    with pytest.raises(W2WError, match="was not made by w2w"):
        put(out, {"a/1": "new"}, overwrite=True)
    assert held(out) == before and before["first"] == "one"
    assert held(elsewhere) == {"1": "theirs"}


def filling(out: Path, begun: Event) -> None:
    with results_in(out) as aside:
        write_text(aside / "half", "x")
        begun.set()
        time.sleep(60)


def test_a_killed_run_leaves_a_place_for_the_next(tmp_path: Path) -> None:
    out, begun = tmp_path / "out", FORK.Event()
    process = FORK.Process(target=filling, args=(out, begun))
    process.start()
    assert begun.wait(60)
    with pytest.raises(W2WError, match="another run is writing"), owned(out):
        pass
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    put(out, {"whole": "y"})
    assert held(out) == {"whole": "y"} and not list(out.glob(".new*"))


def test_a_run_killed_while_it_moves_its_results_is_started_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    real, moved = os.replace, []

    def stop(source: Path, target: Path) -> None:
        if Path(source).parent.name.startswith(".new") and Path(target).parent == out:
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        put(out, {"a": "1", "b": "2", "c": "3"})
    monkeypatch.undo()
    assert held(out) == {"a": "1"}
    put(out, {"d": "4"})  # unasked: it was never whole
    assert held(out) == {"d": "4"}


def test_blocks_of_one_thread_nest_and_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    with owned(tmp_path / "out"), owned(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out").exists()


def test_two_trainings_of_one_folder_do_not_meet(w2w: W2w, base: BaseModel, pico: Path, tmp_path: Path) -> None:
    faces, out = write_faces(tmp_path / "faces", {"Ada": 1}), tmp_path / "adapters"
    code = f"import time; from w2wpp.common.locks import owned\nwith owned({str(out)!r}): print('owned', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout and other.stdout.readline() == "owned\n"
        options = AdapterOptions(steps=1, prior_weight=0)
        with pytest.raises(W2WError, match="another run is writing"):
            train_population(base, AlignedFaces.load(faces), ["Ada"], out, options, group=1)
        quick = ("--base", pico, "--steps", 1, "--prior-weight", 0, "--runs", tmp_path / "runs")
        ended = w2w("adapters", "train", faces, "--out", out, *quick)
        assert ended.code == 2 and "another run is writing" in ended.err
    finally:
        other.kill()
        other.wait()
    assert len(train_population(base, AlignedFaces.load(faces), ["Ada"], out, options, group=1)) == 1  # the lock died with its process


def test_rows_of_one_run_never_stand_under_the_settings_of_another(layout: Layout, tmp_path: Path) -> None:
    first = WeightDataset.load_or_create(tmp_path / "data", layout, "base", {"steps": 1})
    second = WeightDataset.load_or_create(tmp_path / "data", layout, "base", {"steps": 2})
    with pytest.raises(W2WError, match="started anew"):
        first.append(torch.ones(1, layout.d), ["a"])
    second.append(torch.ones(1, layout.d), ["b"])
    found = WeightDataset.load(tmp_path / "data")
    assert (found.ids, found.meta) == (["b"], {"steps": 2})
    found.verify()


def test_adapters_notice_photos_that_changed(base: BaseModel, tmp_path: Path) -> None:
    folder = write_faces(tmp_path / "faces", {"Ada": 1, "Grace": 1})
    options, out = AdapterOptions(steps=1, prior_weight=0), tmp_path / "adapters"
    faces = AlignedFaces.load(folder)
    data = train_population(base, faces, ["Ada"], out, options, group=1)
    assert data.labels[0][TRAINED_ON]
    train_population(base, faces, ["Ada", "Grace"], out, options, group=2)  # more people may follow
    write_image(folder / "Ada" / "0.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(W2WError, match=r"adapter Ada, whose photos were replaced"):
        train_population(base, faces, ["Ada", "Grace"], out, options, group=2)
    with pytest.raises(W2WError, match=r"adapter Ada, whose photos are gone"):
        train_population(base, AlignedFaces.load(write_faces(tmp_path / "less", {"Grace": 1})), ["Grace"], out, options)


def test_descriptions_follow_their_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = []

    def describe(images: list[np.ndarray]) -> np.ndarray:
        described.append(len(images))
        return np.stack([np.full(128, image.mean(), np.float32) for image in images])

    monkeypatch.setattr(descriptors, "each_described", describe)
    folder = write_faces(tmp_path / "faces", {"Ada": 2, "Grace": 1})
    faces = AlignedFaces.load(folder)
    before = descriptors.described_faces(faces, ["Ada", "Grace"])
    assert torch.equal(descriptors.described_faces(faces, ["Ada"])["Ada"], before["Ada"]) and described == [3]
    write_image(folder / "Ada" / "1.png", np.zeros((16, 16, 3), np.uint8))
    after = descriptors.described_faces(faces, ["Ada", "Grace"])
    assert described == [3, 1] and not after["Ada"][1].any()
    assert torch.equal(after["Ada"][0], before["Ada"][0]) and torch.equal(after["Grace"], before["Grace"])


def test_an_interrupted_description_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was described before an interruption is not described again."""
    described, most = 0, 3

    def describe(images: list[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal described
        for image in images:
            if described == most:
                raise KeyboardInterrupt
            described += 1
            yield np.full(128, image.mean(), np.float32)

    monkeypatch.setattr(descriptors, "each_described", describe)
    faces = AlignedFaces.load(write_faces(tmp_path / "faces", {"Ada": 3, "Grace": 2}))
    with pytest.raises(KeyboardInterrupt):
        descriptors.described_faces(faces, ["Ada", "Grace"])
    most = 100
    found = descriptors.described_faces(faces, ["Ada", "Grace"])
    assert described == 3 + 2 and [len(found[person]) for person in ("Ada", "Grace")] == [3, 2]
    assert all(abs(float(found["Ada"][i].mean()) - float(faces.photos("Ada")[i].mean())) < 1e-3 for i in range(3))


@pytest.fixture
def space(dataset: Path, tmp_path: Path) -> Path:
    PcaSpace.fit(WeightDataset.load(dataset), m=3).save(tmp_path / "space.safetensors")
    return tmp_path / "space.safetensors"


def test_drawing_verbs_keep_to_an_empty_folder(w2w: W2w, space: Path, dataset: Path, pico: Path, tmp_path: Path) -> None:
    quick = ("--base", pico, "--solver-steps", 1, "--runs", tmp_path / "runs", "--json")
    out = tmp_path / "out"
    sample = ("sample", space, "--n", 1, "--pictures", 1, *quick, "--out", out)
    found = w2w(*sample, "--seed", 1).json()
    assert Path(found["sheet"]) == out / "pictures.png" and (out / "pictures.png").is_file()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    generate = ("generate", "photo", "--n", 1, *quick, "--out", out)
    for words in ((*sample, "--seed", 2), generate):
        ended = w2w(*words)
        assert ended.code == 2 and "--overwrite" in ended.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    w2w(*generate, "--overwrite").json()
    assert {p.name for p in (out / "pictures").iterdir()} == {"base"} and not (out / "points.safetensors").exists()


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_exports_replace_nobodys_files(w2w: W2w, dataset: Path, pico: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / ("mine.safetensors" if form == "kohya" else "mine")
    card = tmp_path / "mine.md" if form == "kohya" else out / "README.md"
    words = ("export", "--dataset", dataset, "--format", form, "--base", pico, "--runs", tmp_path / "runs", "--out", out)
    write_text(card, "my own")
    for more in ((), ("--overwrite",)):
        ended = w2w(*words, *more)
        assert ended.code == 2 and card.read_text() == "my own", ended.err
    card.unlink()
    assert w2w(*words, "--id", "person-1").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("mine*/*") if path.is_file()} | {card: card.read_bytes()}
    assert w2w(*words, "--id", "person-2").code == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    assert w2w(*words, "--id", "person-2", "--overwrite").code == 0
    assert card.read_bytes() != before[card]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lr": rate} for rate in (0.0, float("nan"), -1.0)),
        *({"kl_weight": weight} for weight in (-5.0, float("inf"))),
        *({"widths": widths} for widths in ((0,), (8, -1))),
        *({"m": 0}, {"batch": 0}, {"epochs": 0}, {"warmup_epochs": -1}, {"scale": 0.0}, {"adversarial_weight": -1.0}, {"blocks": 0}),
    ],
)
def test_options_of_no_training_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(W2WError, match=next(iter(wrong))):
        VaeOptions(**wrong)  # type: ignore[arg-type]


def test_a_prompt_is_never_cut(w2w: W2w, pico: Path, base: BaseModel, tmp_path: Path) -> None:
    limit = base.pipeline.tokenizer.model_max_length
    assert base.encode_text(["photo " * (limit - 2)]).shape[1] == limit
    with pytest.raises(W2WError, match=f"has {limit + 1} tokens"):
        base.encode_text(["photo", "photo " * (limit - 2) + "sks"])
    ended = w2w("generate", "photo " * 20 + "sks person", "--base", pico, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    assert ended.code == 2 and "tokens" in ended.err and not (tmp_path / "out").exists()


def test_a_verb_that_resumes_refuses_a_folder_of_something_else(w2w: W2w, dataset: Path, tmp_path: Path) -> None:
    faces, out = write_faces(tmp_path / "faces", {"Ada": 2}), tmp_path / "mine"
    write_text(out / "thesis.txt", "mine")
    for words in (
        ("faces", "align", faces),
        ("base", "train", faces),
        ("adapters", "train", faces),
        ("evaluate", faces),
        ("invert", "tiny-faces", faces / "Ada"),
        ("dataset", "merge", dataset),
        ("dataset", "select", dataset, "--where", "person=person-1"),
    ):
        ended = w2w(*words, "--out", out, "--runs", tmp_path / "runs")
        assert ended.code == 2 and "thesis.txt" in ended.err, words
    assert held(out) == {"thesis.txt": "mine"}


def test_a_folder_that_went_away_is_given_back(tmp_path: Path) -> None:
    with owned(tmp_path / "out"):
        shutil.rmtree(tmp_path / "out")
    with owned(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_an_index_of_faces_that_says_nothing_of_photos_is_one_line(tmp_path: Path) -> None:
    for text in (b'{"person": "Ada"}\n', b"[]\n", b"\xff\xfe\n"):
        (tmp_path / "faces.jsonl").write_bytes(text)
        with pytest.raises(W2WError, match="is damaged"):
            AlignedFaces.load(tmp_path)
