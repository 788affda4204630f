"""Kills, full disks, damaged files, malformed adapters: nothing is lost, one clear line, no code run, no silent wrong number.

`benchmarks/faults.py` does the same some thousand times over.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fault_adapters
import fault_basics
import fault_damage
import fault_files
import faults
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.manifest import sealed, unsealed
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.importing import import_loras
from w2wpp.lora.layout import Layout


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    found = faults.kill_writers(tmp_path / "data", 50)
    assert found["kills"] == 50 and found["acknowledged"] > 0  # some got to write


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    found = faults.fill_the_disk(tmp_path)
    assert found["stopped"] >= 16  # each of the eight writers at two sizes


def test_damage_is_refused_or_says_what_was_there(tmp_path: Path) -> None:
    found = fault_damage.damage_everything(tmp_path, 45)  # and what is read, where a file has a checksum, is as it was
    assert found["shard"] == {"refused": 45}  # verify finds every one
    assert all(counts["refused"] > 0 for counts in found.values())


def test_malformed_adapters_are_refused_in_one_line_and_leave_nothing(base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    there = sorted(tmp_path.iterdir())
    found = fault_adapters.refuse_malformed(
        tmp_path / "given", base.pipeline.unet, 330, lambda file: import_loras(Denoiser.of(base), file, tmp_path / "out")
    )
    assert found["kinds"] > 250
    assert sorted(tmp_path.iterdir()) == there


def test_a_file_without_a_row_leaves_a_dataset_as_it_was(base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    good, bad, out = tmp_path / "good.safetensors", tmp_path / "bad.safetensors", tmp_path / "out"
    write_kohya(good, layout, 0.1 * torch.ones(layout.d))
    import_loras(Denoiser.of(base), good, out)
    before = fault_basics.tree(out)
    save_file({key: tensor * float("nan") for key, tensor in load_file(good).items()}, bad)
    with pytest.raises(W2WError, match="bad"):
        import_loras(Denoiser.of(base), bad, out)
    assert fault_basics.tree(out) == before


@pytest.mark.parametrize(
    "elsewhere", ["../../etc/passwd", "/etc/passwd", "shards/../../000001.safetensors", "shards/000001.safetensors/../x"]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path, elsewhere: str) -> None:
    data = fault_basics.filled(tmp_path / "data", 3)
    manifest = data.folder / "manifest.jsonl"
    line = unsealed(json.loads(manifest.read_text().splitlines()[0]))
    manifest.write_text(json.dumps(sealed({**line, "file": elsewhere})) + "\n")
    with pytest.raises(W2WError, match="damaged"):
        WeightDataset.load(data.folder)


def test_a_manifest_cut_by_more_than_a_line_is_found(tmp_path: Path) -> None:
    data = fault_basics.filled(tmp_path / "data")
    manifest = data.folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0])
    cut = WeightDataset.load(data.folder)
    assert cut.info()["unlisted_shards"] == 3
    with pytest.raises(W2WError, match=r"000001\.safetensors"):
        cut.verify()


def test_pictures_names_labels_and_killed_results(tmp_path: Path) -> None:
    pictures = fault_files.read_odd_pictures(tmp_path, 120)
    assert pictures["refused"] > 60 and pictures["read"] > 0
    assert fault_files.name_files(tmp_path, 200)["members"] > 50
    labels = fault_files.read_odd_labels(tmp_path, 60)
    assert labels["refused"] > 20 and labels["read"] > 0
    results = fault_files.kill_results(tmp_path, 6)
    assert results["kills"] + results["ended_before"] == 6  # how many are caught writing depends on the machine
