"""What the trials of faults share: a small dataset, a process of its own for a trial, and what a refusal is."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout

FORK = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import torch
LAYOUT = Layout.of(nn.ModuleDict({"to_q": nn.Linear(5, 3), "to_v": nn.Linear(4, 4)}))
BASE = "0123456789abcdef"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what it holds, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


def refused(act: Callable[[], Any]) -> str:
    """The line with which `act` refuses. Raises AssertionError if it goes through, crashes or says more than a line."""
    try:
        act()
    except W2WError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) <= 2000, repr(str(error))
        return str(error)
    raise AssertionError("it was accepted")


def in_child(act: Callable[[], str], patience: float = 120) -> str:
    """What `act` returns in a process of its own, or "crash: ..." with what it raised. Raises AssertionError if it is not done in time."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run() -> None:
        # The threads of the parent's pools do not come along in a fork: to wait for one is to wait for ever.
        torch.set_num_threads(1)
        try:
            sender.send(act())
        except BaseException as error:
            sender.send(f"crash: {error!r}")

    process = FORK.Process(target=run)
    process.start()
    sender.close()
    try:
        assert receiver.poll(patience), f"not done in {patience:g} seconds"
        return receiver.recv()
    except EOFError:
        return "crash: it died without a word"
    finally:
        process.kill()
        process.join()


def row_of(name: str, i: int) -> Tensor:
    """The row that writer `name` appends as its i-th: its content follows from its id."""
    return torch.randn(1, LAYOUT.d, generator=torch.Generator().manual_seed(hash_of(f"{name}-{i}")))


def hash_of(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(text.encode()[-6:], "little")


def filled(folder: Path, n: int = 12) -> WeightDataset:
    """A dataset of n labelled rows in four shards."""
    data = WeightDataset.create(folder, LAYOUT, BASE, {"steps": 3})
    for first in range(0, n, 3):
        rows = torch.cat([row_of("r", i) for i in range(first, first + 3)])
        data.append(rows, [f"r-{i}" for i in range(first, first + 3)], [{"split": "train", "age": i} for i in range(3)])
    data.set_labels({"r-0": {"split": "val", "age": 9}})
    return data
