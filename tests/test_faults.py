"""Kills, full disks, damaged files, malformed adapters: nothing is lost, one clear line, no code run, no silent wrong number.

`benchmarks/faults.py` does the same some thousand times over.
"""

import json
from pathlib import Path

import pytest
import torch

import faults
from w2wpp.base_model import BaseModel
from w2wpp.denoiser import Denoiser
from w2wpp.errors import W2WError
from w2wpp.importing import import_loras
from w2wpp.layout import Layout
from w2wpp.manifest import sealed, unsealed
from w2wpp.weights import WeightDataset


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    found = faults.kill_writers(tmp_path / "data", 50)
    assert found["kills"] == 50 and found["acknowledged"] > 0  # some got to write


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    found = faults.fill_the_disk(tmp_path)
    assert found["stopped"] >= 16  # each of the eight writers at two sizes


def test_damage_is_refused_or_says_what_was_there(tmp_path: Path) -> None:
    found = faults.damage_everything(tmp_path, 45)  # and what is read, where a file has a checksum, is as it was
    assert found["shard"] == {"refused": 45}  # verify finds every one
    assert all(counts["refused"] > 0 for counts in found.values())


def test_malformed_adapters_are_refused_in_one_line_and_leave_the_dataset_alone(base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "data", layout, base.id)
    data.append(0.1 * torch.ones(1, layout.d), ["there"])
    before, around = faults.tree(tmp_path / "data"), sorted(tmp_path.iterdir())
    (tmp_path / "given").mkdir()
    found = faults.refuse_malformed(
        tmp_path / "given", base.pipeline.unet, 330, lambda file: import_loras(Denoiser.of(base), file, tmp_path / "data")
    )
    assert found["kinds"] > 250
    assert faults.tree(tmp_path / "data") == before
    assert sorted(tmp_path.iterdir()) == sorted([*around, tmp_path / "given"])


@pytest.mark.parametrize(
    "elsewhere", ["../../etc/passwd", "/etc/passwd", "shards/../../000001.safetensors", "shards/000001.safetensors/../x"]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path, elsewhere: str) -> None:
    data = faults.filled(tmp_path / "data", 3)
    manifest = data.folder / "manifest.jsonl"
    line = unsealed(json.loads(manifest.read_text().splitlines()[0]))
    manifest.write_text(json.dumps(sealed({**line, "file": elsewhere})) + "\n")
    with pytest.raises(W2WError, match="damaged"):
        WeightDataset.open(data.folder)


def test_a_manifest_cut_by_more_than_a_line_is_found(tmp_path: Path) -> None:
    data = faults.filled(tmp_path / "data")
    manifest = data.folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0])
    cut = WeightDataset.open(data.folder)
    assert cut.info()["unlisted_shards"] == 3
    with pytest.raises(W2WError, match=r"000001\.safetensors"):
        cut.verify()
