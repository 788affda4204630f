"""A verb that is killed, before any one of the moves that make its files, is run again as it was and ends with the same files."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from conftest import write_faces
from test_evaluate import RECOGNISER, TRAINED
from w2wpp.base.model import BaseModel
from w2wpp.cli import main
from w2wpp.common.locks import LOCK
from w2wpp.common.places import RECORD
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation import table1_methods
from w2wpp.inversion.gradient import PUBLISHED
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos import faces
from w2wpp.spaces.pca import PcaSpace

FORK = get_context("fork")  # a new interpreter would take seconds to import torch
VARIES = ("seconds", "command", "report.html", RECORD)  # from run to run


def constant(value: Any) -> Any:
    """JSON without what varies."""
    if isinstance(value, Mapping):
        return {key: constant(part) for key, part in value.items() if key not in VARIES}
    return [constant(part) for part in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, Any]:
    """Every file below a folder and what it holds, but for locks and what varies."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, *VARIES)):
        found[str(path.relative_to(folder))] = held(path)
    return found


def held(path: Path) -> Any:
    """What a file holds; a safetensors file's header may name its entries in any order."""
    if path.suffix == ".json":
        return constant(json.loads(path.read_bytes()))
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).tolist() for name in file.keys()}, file.metadata()  # noqa: SIM118
    return path.read_bytes()


def ended(words: list[str], kill_before: int | None = None) -> tuple[int, int]:
    """Run a verb in a process of its own: its exit code, and how many files it moved to their places.

    kill_before: the number of the move before which it is killed; its exit code is then -9.
    """
    seen, told = FORK.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)  # no pool of threads lives on in a fork
        moves, real = 0, os.replace

        def moved(source: Path, target: Path) -> None:
            nonlocal moves
            if moves == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            moves += 1
            real(source, target)

        os.replace = moved  # type: ignore[assignment]
        sys.argv = ["w2w", *words]
        with open(os.devnull, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:  # type: ignore[assignment]
            try:
                main()
            finally:
                told.send(moves)

    process = FORK.Process(target=child)
    process.start()
    told.close()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, seen.recv() if process.exitcode >= 0 else 0


@pytest.fixture
def verbs(base: BaseModel, pico: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The words of each verb that makes a folder, on the pico pipeline."""
    monkeypatch.setattr(faces, "default_recogniser", lambda: RECOGNISER)
    monkeypatch.setattr(table1_methods, "PUBLISHED", replace(PUBLISHED, steps=2))
    data = WeightDataset.create(tmp_path / "adapters", layout, base.id, {"adapters": asdict(TRAINED)})
    weights = initial_weights(layout) + 0.02 * torch.randn(8, layout.d, generator=torch.Generator().manual_seed(0))
    data.append(weights, [f"p{i}" for i in range(8)], [{"person": f"p{i}"} for i in range(8)])
    spaced = PcaSpace.fit(data, m=3)
    spaced.save(tmp_path / "space.safetensors")
    people = write_faces(tmp_path / "faces", {"Ada": 4, "Grace": 3}, split="test")
    space, adapters = str(tmp_path / "space.safetensors"), str(tmp_path / "adapters")
    few = ["--base", str(pico), "--solver-steps", "1", "--device", "cpu", "--runs", str(tmp_path / "runs")]
    photos = [str(people / "Ada" / f"{i}.png") for i in range(2)]
    return {
        "sample": ["sample", space, "--n", "2", "--pictures", "1", *few],
        "generate": ["generate", "photo of sks person", "--dataset", adapters, "--id", "p3", "--n", "3", *few],
        "invert": ["invert", space, *photos, "--no-align", "--steps", "2", "--pictures", "1", *few],
        "evaluate": ["evaluate", str(people), "--dataset", adapters, "--m", "3", "--pictures", "1", "--steps", "1", *few],
    }


@pytest.mark.parametrize("verb", ["sample", "generate", "invert", "evaluate"])
def test_killed_and_run_again(verb: str, verbs: dict[str, list[str]], tmp_path: Path) -> None:
    words, whole = verbs[verb], tmp_path / "whole"
    code, moves = ended([*words, "--out", str(whole)])
    assert code == 0 and moves > 3
    for place in sorted({1, moves // 2, moves - 2, moves - 1}):
        out = tmp_path / f"killed-{place}"
        assert ended([*words, "--out", str(out)], place)[0] == -signal.SIGKILL
        complete = tree(out) == tree(whole)  # killed while it noted that it had ended
        assert complete or ended([*words, "--out", str(out)])[0] == 0, f"{verb}, killed before move {place} of {moves}"
        assert tree(out) == tree(whole), f"{verb}, killed before move {place} of {moves}"
