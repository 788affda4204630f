"""Many processes, one dataset: shares of a population, what became of each person, and how far a training is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Ended, write_faces
from w2wpp.adapters import group_training
from w2wpp.adapters.population import train_population
from w2wpp.adapters.shares import Share
from w2wpp.adapters.status import FILE, Status, read_status
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.images import write_image

OPTIONS = AdapterOptions(prompt="photo of sks person", prior_prompt="photo of a person", prior_pictures=2, steps=2, lr=1e-2)
PEOPLE = {f"Person_{i}": 1 + (i == 2) for i in range(6)}  # seven adapters: two of Person_2


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", PEOPLE)


def trained(base: BaseModel, faces: Path, out: Path, **more: object) -> WeightDataset:
    found = AlignedFaces.load(faces)
    return train_population(base, found, list(found.people), out, OPTIONS, **({"group": 2} | more))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset."""
    return {name: (folder / name).read_bytes() for name in WeightDataset.load(folder).files}


def test_shares_are_runs_of_neighbours_that_together_are_the_whole() -> None:
    for items in (list(range(10)), [1], list[int]()):
        for n in (1, 2, 3, 12):
            shares = [Share(i, n).of_list(items) for i in range(1, n + 1)]
            assert [item for share in shares for item in share] == items
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "0"), ("COUNT", "4"), ("MIN", "0"))}, Share(1, 4)),
        ({f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "7"), ("COUNT", "4"), ("MIN", "1"), ("STEP", "2"))}, Share(4, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Share(2, 2)),
    ],
)
def test_a_scheduler_names_the_share(environment: dict[str, str], expected: Share) -> None:
    assert Share.of("auto", environment) == expected


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "auto"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(W2WError, match=r"shard"):
        Share.of(text, {})
    with pytest.raises(W2WError, match="whole number"):
        Share.of("auto", {"RANK": "1"})


def test_shards_merged_are_the_rows_of_one_process(w2w: Callable[..., Ended], faces: Path, pico: Path, tmp_path: Path) -> None:
    common = ["--runs", tmp_path / "runs", "--json"]
    quick = ["--base", pico, "--steps", 2, "--prior-weight", 0, "--group", 2, "--device", "cpu", *common]
    w2w("adapters", "train", faces, "--out", tmp_path / "whole", *quick).json()
    parts = tmp_path / "parts"
    w2w("adapters", "train", faces, "--out", parts, "--shard", "2/2", *quick).json()
    unfinished = w2w("dataset", "merge", parts / "0002-of-0002", "--out", tmp_path / "less", *common)
    assert unfinished.code == 2 and "shard 1/2 is not among these" in unfinished.err
    w2w("adapters", "train", faces, "--out", parts, "--shard", "1/2", *quick).json()
    folders = sorted(parts.iterdir(), reverse=True)  # whatever the order
    assert w2w("dataset", "merge", *folders, "--out", tmp_path / "merged", *common).json()["n"] == 7
    whole, merged = (WeightDataset.load(tmp_path / name) for name in ("whole", "merged"))
    assert (merged.ids, merged.labels, merged.meta, merged.dtypes) == (whole.ids, whole.labels, whole.meta, whole.dtypes)
    assert torch.equal(merged.rows(), whole.rows())
    told = w2w("adapters", "status", parts, "--json").json()
    assert (told["state"], told["done"], told["people"], told["left"]) == ("ended", 7, 6, 0)
    assert list(told["shards"]) == ["0001-of-0002", "0002-of-0002"]


def test_a_shard_needs_a_group_size(base: BaseModel, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(W2WError, match="Give --group"):
        trained(base, faces, tmp_path / "out", group=None, share=Share(1, 2))
    assert not (tmp_path / "out").exists()


def test_a_person_whose_photos_break_is_listed_and_the_others_are_trained(base: BaseModel, faces: Path, tmp_path: Path) -> None:
    whole = trained(base, faces, tmp_path / "whole")
    good = (faces / "Person_2" / "1.png").read_bytes()
    (faces / "Person_2" / "1.png").write_bytes(good[:40])
    write_image(faces / "Person_4" / "0.png", torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())
    out = tmp_path / "out"
    data = trained(base, faces, out)
    assert data.ids == [name for name in whole.ids if name not in ("Person_2#b", "Person_4")]
    told = read_status(out)
    assert (told["done"], told["left"], told["state"]) == (5, 0, "ended") and list(told["failed"]) == ["Person_2#b", "Person_4"]
    assert "1.png" in told["failed"]["Person_2#b"] and "16x16 were expected" in told["failed"]["Person_4"]
    (faces / "Person_2" / "1.png").write_bytes(good)
    assert len(trained(base, faces, out)) == 5  # not asked for
    again = trained(base, faces, out, retry_failed=True)
    assert again.ids[-1] == "Person_2#b" and list(read_status(out)["failed"]) == ["Person_4"]


def test_nobody_trained_is_an_error(base: BaseModel, faces: Path, tmp_path: Path) -> None:
    for photo in faces.glob("*/*.png"):
        photo.write_bytes(b"no picture")
    with pytest.raises(W2WError, match="none of 7 adapters could be trained"):
        trained(base, faces, tmp_path / "out")


def test_a_run_that_stopped_says_so_and_goes_on_to_the_same_bytes(
    base: BaseModel, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (faces / "Person_0" / "0.png").write_bytes(b"no picture")  # a group of one from the start
    trained(base, faces, tmp_path / "whole")
    out, calls, real = tmp_path / "out", list[dict[str, object]](), group_training.train_adapters

    def killed_later(*words: object, **options: object) -> object:
        calls.append(read_status(out))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(group_training, "train_adapters", killed_later)
    with pytest.raises(KeyboardInterrupt):
        trained(base, faces, out)
    assert [(told["state"], told["done"], told["left"]) for told in calls] == [("running", 0, 7), ("running", 1, 5), ("running", 3, 3)]
    assert calls[1]["people_per_hour"] > 0 and calls[1]["minutes_left"] > 0  # type: ignore[operator]
    assert calls[2]["running"] == ["Person_3", "Person_4"]
    assert read_status(out)["state"] == "stopped" and read_status(out)["minutes_left"] is None
    trained(base, faces, out)
    assert contents(out) == contents(tmp_path / "whole") and read_status(out)["left"] == 0


def test_a_run_whose_process_died_is_not_running(tmp_path: Path) -> None:
    status = Status(total=2, people=2, running=["ann"])
    status.begin(None)
    status.save(tmp_path)
    assert read_status(tmp_path)["state"] == "running"
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    told = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(told | {"pid": child}))
    assert read_status(tmp_path)["state"] == "stopped"


@pytest.mark.parametrize("text", ["[]", '{"total": 1}', "{"])
def test_a_damaged_status_is_one_clear_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(W2WError, match="holds no training"):
        read_status(tmp_path)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(W2WError, match=FILE):
        read_status(tmp_path)
