"""What is held in memory does not grow with the number of rows: counted in rows, and measured as the system counts."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fault_basics
from w2wpp.common.memory import GIB
from w2wpp.dataset.select_merge import copy_rows
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.torch_files import TableFile, write_table
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace

WIDE = Layout.of(nn.ModuleDict({"to_q": nn.Linear(50_000, 50_000, device="meta")}))
MEMORY = 16 * 4 * WIDE.d / GIB  # four rows, each in four copies
SPARE = 96 * 2**20  # bytes a process may add to what it has: two mapped shards and some rows, not half of the data


@pytest.fixture
def big(tmp_path: Path) -> WeightDataset:
    """500 rows of 100,000 numbers in ten shards, 200 MB."""
    data = WeightDataset.create(tmp_path / "data", WIDE, fault_basics.BASE)
    for shard in range(10):
        data.append(torch.full((50, WIDE.d), float(shard)), [f"{shard}-{i}" for i in range(50)])
    return data


def within(spare: int, act: Any) -> str:
    """What `act` says in a process that may not add more than `spare` bytes of memory of its own."""

    def limited() -> str:
        used = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + spare, used + spare))
        act()
        return "done"

    return fault_basics.in_child(limited)


def test_large_datasets_are_handled_in_little_memory(big: WeightDataset, tmp_path: Path) -> None:
    assert rows_within(MEMORY, WIDE.d) == 4
    assert within(SPARE, lambda: torch.ones(5000, WIDE.d)) != "done"  # the limit is one, whatever other tests gave back
    assert within(SPARE, lambda: copy_rows(big, range(500), tmp_path / "copy", MEMORY)) == "done"
    blocks = lambda: (big.rows(range(at, at + 4)) for at in range(0, 500, 4))  # noqa: E731
    assert within(SPARE, lambda: write_table(tmp_path / "all_weights.pt", 500, WIDE.d, blocks())) == "done"

    def read() -> None:
        table = TableFile.open(tmp_path / "all_weights.pt")
        for at in range(0, 500, 4):
            assert torch.equal(table.rows(at, at + 4), big.rows(range(at, at + 4)))

    assert within(SPARE, read) == "done"
    shard = big.folder / "shards" / "000009.safetensors"
    with shard.open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01")
    assert "row 9-49 cannot" in within(SPARE, big.verify)


def test_copies_hold_no_more_rows_than_the_memory_says(big: WeightDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    append = WeightDataset.append
    monkeypatch.setattr(WeightDataset, "append", lambda self, weights, *rest: (held.append(len(weights)), append(self, weights, *rest))[1])
    copy_rows(big, range(30), tmp_path / "copy", MEMORY)
    assert max(held) == 4 and sum(held) == 30


def test_a_space_is_mapped_and_decodes_in_little_more(tmp_path: Path) -> None:
    space = PcaSpace(WIDE, fault_basics.BASE, 500)
    space.components = torch.ones(500, WIDE.d, dtype=torch.bfloat16)  # 100 MB; 200 in float32
    space.save(tmp_path / "space.safetensors")
    file = (tmp_path / "space.safetensors").stat().st_size

    def decode() -> None:
        assert Space.load(tmp_path / "space.safetensors").decode(torch.ones(3, 500)).eq(500).all()

    assert within(file + SPARE, decode) == "done"


FIT = """
import resource, sys
from pathlib import Path
import scipy.linalg, torch
from w2wpp.common.precision import fast_dtype
from w2wpp.spaces.pca import PcaSpace
from w2wpp.dataset.weights import WeightDataset
torch.set_num_threads(1)
zeros = torch.zeros(64, 64, dtype=fast_dtype())
zeros @ zeros, scipy.linalg.eigh(torch.eye(64).numpy())  # start the libraries
used = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
folder, solver, memory, spare = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (used + int(memory * 2**30) + spare,) * 2)
print(PcaSpace.fit(WeightDataset.load(folder), m=8, solver=solver, memory=memory).n)
"""


@pytest.mark.parametrize("solver", ["exact", "streaming"])
def test_a_fit_stays_within_its_memory(big: WeightDataset, solver: str) -> None:
    draw = torch.Generator().manual_seed(0)
    for part in range(3):  # the rows before span one direction
        big.append(torch.randn(100, WIDE.d, generator=draw), [f"last-{part}-{i}" for i in range(100)])
    # 0.15 GiB is half of what the rows take. A new interpreter: what multiplies matrices does not survive a fork.
    command = [sys.executable, "-c", FIT, str(big.folder), solver, "0.15", str(SPARE * 3 // 4)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=250).stdout == "800\n"
