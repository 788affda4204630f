"""A weight dataset is whole after every append, gives back the rows it was given, and notices damage."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import Ended
from w2wpp.common.errors import W2WError
from w2wpp.dataset.manifest import Manifest
from w2wpp.dataset.select_merge import merge
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout

LAYOUT = Layout.of(nn.ModuleDict({"to_q": nn.Linear(5, 3), "to_v": nn.Linear(4, 4)}))
BASE = "0123456789abcdef"


def numbers(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, LAYOUT.d, generator=torch.Generator().manual_seed(seed))


def filled(folder: Path) -> WeightDataset:
    """Three shards of two rows: a0 a1, b0 b1, c0 c1."""
    data = WeightDataset.create(folder, LAYOUT, BASE, {"steps": 3})
    for i, shard in enumerate("abc"):
        labels = [{"person": f"{shard}{k}", "split": "val" if shard == "c" else "train", "half": ""} for k in range(2)]
        data.append(numbers(2, seed=i), [f"{shard}0", f"{shard}1"], labels)
    return data


def everything() -> Tensor:
    return torch.cat([numbers(2, seed=i) for i in range(3)])


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    written = filled(tmp_path / "data")
    read = WeightDataset.load(tmp_path / "data")
    for data in (written, read):
        assert (len(data), data.d, data.layout, data.base_id, data.meta) == (6, LAYOUT.d, LAYOUT, BASE, {"steps": 3})
        assert data.ids == ["a0", "a1", "b0", "b1", "c0", "c1"]
        assert torch.equal(data.rows(), everything())
        assert torch.equal(torch.cat(list(data.blocks(4))), everything())
        assert [len(block) for block in data.blocks(4)] == [4, 2]
        assert data.where(split="val") == [4, 5] and data.where(split="train", person="b1") == [3]
        assert data.index_of("b0") == 2
        data.verify()
    assert read.info()["splits"] == {"train": 4, "val": 2}


def test_rows_without_a_split_are_in_no_split(tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "data", LAYOUT, BASE)
    data.append(numbers(2), ["a", "b"], [{"split": "val"}, {}])
    assert data.info()["splits"] == {"val": 1}


def test_a_folder_of_datasets_names_them(tmp_path: Path) -> None:
    """As `w2w import` writes it from LoRAs of several layouts."""
    with pytest.raises(W2WError, match="w2w import"):
        WeightDataset.load(tmp_path)
    for name in ("unet-28", "unet-14"):
        filled(tmp_path / name)
    with pytest.raises(W2WError, match=f"Name one of the datasets in it: {tmp_path}/unet-14, {tmp_path}/unet-28"):
        WeightDataset.load(tmp_path)


def test_rows_come_in_the_order_asked_for_and_from_no_other_shard(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    (tmp_path / "data" / "shards" / "000001.safetensors").unlink()
    data = WeightDataset.load(tmp_path / "data")
    assert torch.equal(data.rows([5, 0, 5]), everything()[[5, 0, 5]])
    assert data.rows([]).shape == (0, LAYOUT.d)
    with pytest.raises(W2WError, match="000001"):
        data.rows([2])
    for missing in (6, -1):
        with pytest.raises(W2WError, match="6 rows"):
            data.rows([missing])


def test_half_precision_on_disk_is_float32_in_memory(tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "data", LAYOUT, BASE)
    data.append(numbers(2), ["a", "b"], dtype=torch.float16)
    rows = WeightDataset.load(tmp_path / "data").rows()
    assert rows.dtype == torch.float32
    assert torch.equal(rows, numbers(2).half().float())
    with pytest.raises(W2WError, match=r"not numbers in torch\.float16"):
        data.append(1e6 * numbers(1), ["c"], dtype=torch.float16)


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_kill_while_the_manifest_was_written_costs_only_that_shard(tmp_path: Path, cut: int) -> None:
    data = filled(tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.jsonl"
    before = manifest.read_bytes()
    data.append(numbers(1, seed=9), ["Zoë\u2028Żółć"])
    manifest.write_bytes(manifest.read_bytes()[:-cut])  # killed: the shard lies there, its line is torn

    data = WeightDataset.load(tmp_path / "data")
    assert len(data) == 6
    data.append(numbers(1, seed=9), ["Zoë\u2028Żółć"])
    assert manifest.read_bytes().startswith(before)
    again = WeightDataset.load(tmp_path / "data")
    assert torch.equal(again.rows(), torch.cat([everything(), numbers(1, seed=9)]))
    assert again.ids[-1] == "Zoë\u2028Żółć"
    again.verify()


def test_a_kill_before_the_manifest_was_written_leaves_an_orphan_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = filled(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "append", lambda self, line: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            data.append(numbers(1, seed=8), ["lost"])
    assert (tmp_path / "data" / "shards" / "000003.safetensors").exists()
    data = WeightDataset.load(tmp_path / "data")
    assert len(data) == 6
    data.append(numbers(2, seed=9), ["d0", "d1"])
    assert torch.equal(WeightDataset.load(tmp_path / "data").rows([6, 7]), numbers(2, seed=9))


def test_a_full_disk_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = filled(tmp_path / "data")
    before = (tmp_path / "data" / "manifest.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("w2wpp.dataset.manifest.os.fsync", full)
        with pytest.raises(W2WError, match="No space left"):
            data.append(numbers(1), ["d"])
    assert (tmp_path / "data" / "manifest.jsonl").read_bytes() == before
    assert len(data) == len(WeightDataset.load(tmp_path / "data")) == 6


def test_refused_rows_leave_the_dataset_as_it_was(tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    spoiled = numbers(2)
    spoiled[1, 3] = torch.nan
    refused = [
        (spoiled, ["d", "spoiled"], "row spoiled"),
        (numbers(1), ["b1"], "b1 would stand twice"),
        (numbers(2), ["d", "d"], "d would stand twice"),
        (torch.zeros(1, LAYOUT.d + 1), ["d"], f"expects {LAYOUT.d} weights"),
        (numbers(2), ["d"], "2 rows of weights for 1 ids"),
    ]
    for weights, ids, message in refused:
        with pytest.raises(W2WError, match=message):
            data.append(weights, ids)
    assert len(data) == len(WeightDataset.load(tmp_path / "data")) == 6
    assert len(list((tmp_path / "data" / "shards").iterdir())) == 3


@pytest.mark.parametrize(("place", "named"), [(-1, "row b1 cannot"), (12, "rows b0 to b1")])  # in the numbers, in the header
def test_a_flipped_byte_is_found_and_its_rows_are_named(tmp_path: Path, place: int, named: str) -> None:
    data = filled(tmp_path / "data")
    shard = tmp_path / "data" / "shards" / "000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(W2WError, match=named):
        data.verify()


def test_a_shard_cut_short_is_one_clear_line(tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    shard = tmp_path / "data" / "shards" / "000002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(W2WError, match=r"000002\.safetensors does not read") as error:
        data.rows()
    assert "\n" not in str(error.value)
    assert torch.equal(data.rows(range(4)), everything()[:4])


def test_damage_inside_the_manifest_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2] + b"\n" + lines[2])
    with pytest.raises(W2WError, match="damaged at line 1"):
        WeightDataset.load(tmp_path / "data")


def test_a_folder_that_is_no_dataset_or_is_one_already(tmp_path: Path) -> None:
    with pytest.raises(W2WError, match=r"no dataset\.json"):
        WeightDataset.load(tmp_path)
    filled(tmp_path / "data")
    with pytest.raises(W2WError, match="already"):
        WeightDataset.create(tmp_path / "data", LAYOUT, BASE)


def test_only_the_same_adapters_go_on(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    assert len(WeightDataset.load_or_create(tmp_path / "data", LAYOUT, BASE, {"steps": 3})) == 6
    rank_2 = Layout.of(nn.ModuleDict({"to_q": nn.Linear(5, 3), "to_v": nn.Linear(4, 4)}), rank=2)
    refused = [
        (rank_2, BASE, {"steps": 3}, "rank 2"),
        (LAYOUT, "f" * 16, {"steps": 3}, "f" * 16),
        (LAYOUT, BASE, {"steps": 4}, "steps 3, these with 4"),
        (LAYOUT, BASE, {"steps": 3, "adapters": {"lr": 1}}, "adapters.lr unsaid, these with 1"),
    ]
    for layout, base_id, meta, message in refused:
        with pytest.raises(W2WError, match=message):
            WeightDataset.load_or_create(tmp_path / "data", layout, base_id, meta)


def test_a_dataset_without_rows_does_not_bind(tmp_path, layout):
    WeightDataset.create(tmp_path / "empty", layout, "base0", {"lr": 9})
    assert WeightDataset.load_or_create(tmp_path / "empty", layout, "base0", {"lr": 1}).meta == {"lr": 1}


def write(folder: Path, name: str, n: int, ready: Event) -> None:
    data = WeightDataset.load(folder)
    ready.set()
    for i in range(n):
        data.append(torch.full((3, data.d), float(i)), [f"{name}-{i}-{k}" for k in range(3)])


def writer(folder: Path, name: str, n: int) -> BaseProcess:
    """Another process that appends n shards; it has begun."""
    fork = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import torch
    ready = fork.Event()
    started = fork.Process(target=write, args=(folder, name, n, ready))
    started.start()
    assert ready.wait(60)
    return started


def test_many_processes_append_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    writers = [writer(tmp_path / "data", f"w{i}", 10) for i in range(4)]
    for started in writers:
        started.join(60)
    assert [started.exitcode for started in writers] == [0] * 4
    data = WeightDataset.load(tmp_path / "data")
    assert len(data) == 6 + 4 * 10 * 3
    data.verify()
    for i in range(4):
        assert data.rows([data.index_of(f"w{i}-7-2")])[0].eq(7).all()


def test_select_and_merge_copy_rows_whole(tmp_path: Path, w2w: Callable[..., Ended]) -> None:
    data = filled(tmp_path / "data")
    common = ("--runs", tmp_path / "runs", "--json")
    w2w("dataset", "select", tmp_path / "data", "--where", "split=val", "--out", tmp_path / "val", *common).json()
    w2w("dataset", "select", tmp_path / "data", "--where", "split=train", "--out", tmp_path / "train", *common).json()
    assert WeightDataset.load(tmp_path / "val").ids == ["c0", "c1"]
    merged = w2w("dataset", "merge", tmp_path / "val", tmp_path / "train", "--out", tmp_path / "both", *common).json()
    assert merged["n"] == 6
    both = WeightDataset.load(tmp_path / "both")
    both.verify()
    assert torch.equal(both.rows([both.index_of(name) for name in data.ids]), everything())
    assert both.labels[0] == data.labels[4]
    otherwise = WeightDataset.create(tmp_path / "otherwise", LAYOUT, BASE, {"start": "encoder"})
    otherwise.append(numbers(1), ["new"])
    assert merge([data, otherwise], tmp_path / "mixed").meta == {}  # nothing is true of all rows
    assert merge([otherwise], tmp_path / "same").meta == {"start": "encoder"}
    with pytest.raises(W2WError, match="was made with start"):
        merge([data], tmp_path / "same")
    again = w2w("dataset", "merge", tmp_path / "val", tmp_path / "data", "--out", tmp_path / "twice", *common)
    assert again.code == 2 and "c0" in again.err and not (tmp_path / "twice").exists()
    nobody = w2w("dataset", "select", tmp_path / "data", "--where", "split=test", "--out", tmp_path / "none", *common)
    assert nobody.code == 2 and "split=test" in nobody.err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_are_those_of_the_rows(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2wpp.dataset.shards.PIECE", 5)  # several pieces a row
    data = WeightDataset.create(tmp_path / "data", LAYOUT, BASE)
    for i in range(3):
        data.append(numbers(4, seed=i), [f"{i}-{k}" for k in range(4)], dtype=dtype)
    rows = data.rows()
    assert torch.equal(rows, torch.cat([numbers(4, seed=i) for i in range(3)]).to(dtype).float())
    assert torch.equal(data.columns(3, 9), rows[:, 3:9])
    order = [7, 0, 8, 9, 7]
    assert torch.equal(data.columns(0, LAYOUT.d, order), rows[order])
    for kept in (torch.float32, torch.bfloat16):
        assert torch.equal(data.columns(2, 3, dtype=kept), rows[:, 2:3].to(kept))
        assert torch.equal(data.rows(order, kept), rows[order].to(kept))
    assert data.columns(4, 4).shape == (12, 0)
    for start, stop in ((-1, 3), (3, LAYOUT.d + 1), (4, 3)):
        with pytest.raises(W2WError, match="columns"):
            data.columns(start, stop)
    with pytest.raises(W2WError, match="row 12"):
        data.columns(0, 1, [12])
