"""Training on a real Ray: two nodes on this machine, whose workers are stopped and killed, and whose driver dies."""

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import Ended, write_faces
from gated import GatedRecipe
from nodes import NODE, until, workers
from test_shares import contents
from w2wpp.adapters.population import train_population
from w2wpp.adapters.status import read_status
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset import weights
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.scale.schedule import LOST, SLOW, Terms
from w2wpp.scale.training import TrainingRecipe, ray_workers

pytest.importorskip("ray", reason="Ray is not installed: pip install 'w2wpp[scale]'")
from w2wpp.scale.ray_pool import RayPool, connected

PEOPLE = {f"Person_{i:02}": 1 for i in range(12)}
OPTIONS = AdapterOptions(prior_weight=0.0, steps=30)
QUICK = ["--steps", OPTIONS.steps, "--prior-weight", 0, "--group", 1, "--device", "cpu", "--json"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("ray") / "faces", PEOPLE)


@pytest.fixture(scope="module")
def whole(base: BaseModel, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset that one process makes."""
    out = tmp_path_factory.mktemp("ray") / "whole"
    found = AlignedFaces.load(faces)
    train_population(base, found, list(found.people), out, OPTIONS, group=1)
    return contents(out)


def done(out: Path) -> int:
    """How many adapters a status file names."""
    try:
        return int(read_status(out)["done"])
    except W2WError:
        return 0


def test_two_workers_give_the_bytes_of_one_process(
    w2w: Callable[..., Ended], cluster: Any, pico: Path, faces: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    common = ["--base", pico, *QUICK, "--runs", tmp_path / "runs", "--ray", cluster.address, "--cores", 1]
    told = w2w("adapters", "train", faces, "--out", out, *common).json()
    assert told["n"] == 12 and contents(out) == whole


def test_workers_stopped_and_killed_and_a_node_that_is_lost_lose_nothing(
    cluster: Any, base: BaseModel, pico: Path, faces: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, gates = tmp_path / "out", tmp_path / "gates"
    gates.mkdir()
    people = list(PEOPLE)

    def may_begin(first: int, last: int) -> None:
        for name in people[first:last]:
            (gates / name).touch()

    def again(reason: str) -> int:
        return int(read_status(out).get("tried_again", {}).get(reason, 0))

    def harm() -> None:
        try:
            may_begin(0, 3)
            until(lambda: done(out) == 3 and read_status(out)["running"] == people[3:5])  # both workers wait
            slow = workers(cluster)[0]
            slow.send_signal(signal.SIGSTOP)
            may_begin(3, 8)
            until(lambda: again(SLOW))
            slow.send_signal(signal.SIGCONT)  # its result comes second
            until(lambda: done(out) == 8 and read_status(out)["running"] == people[8:10])
            workers(cluster)[0].kill()
            until(lambda: again(LOST) == 1 and len(workers(cluster)) == 2 and len(read_status(out)["running"]) == 2)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            until(lambda: again(LOST) >= 2)
        finally:
            may_begin(0, 12)

    recipe = GatedRecipe(str(pico), base.id, faces, OPTIONS, gates=gates)
    with ThreadPoolExecutor(1) as thread, ray_workers(cluster.address, recipe, cores=1) as engine:
        engine.terms = Terms(slow=2.0, stuck=1e9, least=0.5, ahead=1)  # who waits is not stuck
        harmed, found = thread.submit(harm), AlignedFaces.load(faces)
        train_population(base, found, people, out, OPTIONS, group=1, engine=engine)
        harmed.result()
    cluster.add_node(**NODE)
    told = read_status(out)
    assert contents(out) == whole
    assert (told["state"], told["done"], told["left"], told["failed"]) == ("ended", 12, 0, {})


def test_a_driver_that_is_killed_and_one_whose_disk_is_full_are_run_again_to_the_same_bytes(
    cluster: Any,
    w2w: Callable[..., Ended],
    pico: Path,
    faces: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ["adapters", "train", faces, "--out", out, "--base", pico, *QUICK, "--runs", tmp_path / "runs"]
    words += ["--ray", cluster.address, "--cores", 1]
    command = [sys.executable, "-c", "from w2wpp.cli import main; main()", *map(str, words)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: done(out) >= 2)
    finally:
        driver.kill()
        driver.wait()
    assert read_status(out)["state"] == "stopped" and 2 <= done(out) < 12
    writes, real = list[Path](), weights.write_tensors

    def full(path: Path, *more: Any) -> None:
        writes.append(path)
        if len(writes) == 3:
            raise W2WError(f"cannot write {path}: No space left on device.")
        real(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_tensors", full)
        ended = w2w(*words, "--workers", 1)
    assert ended.code == 2 and "No space left" in ended.err
    assert read_status(out)["state"] == "stopped" and 4 <= done(out) < 12
    assert w2w(*words, "--workers", 1).json()["n"] == 12 and contents(out) == whole


def test_options_of_ray_need_ray(w2w: Callable[..., Ended], faces: Path, tmp_path: Path) -> None:
    common = ["adapters", "train", faces, "--out", tmp_path / "out", "--runs", tmp_path / "runs"]
    assert "--cores was given without --ray" in w2w(*common, "--cores", 2).err


def test_what_a_cluster_cannot_hold_and_workers_that_cannot_load_are_one_line(
    cluster: Any, base: BaseModel, pico: Path, faces: Path
) -> None:
    recipe = TrainingRecipe(str(pico), base.id, faces, OPTIONS)
    with pytest.raises(W2WError, match="99 CPU for a worker"), ray_workers(cluster.address, recipe, cores=99):
        pass
    with pytest.raises(W2WError, match="99 CPU for a worker"), connected(cluster.address):
        RayPool(recipe, 99, gpu=False, workers=1, grows=False)  # as of --ray local
    other = TrainingRecipe(str(pico), "another", faces, OPTIONS)
    with (
        ray_workers(cluster.address, other, cores=1) as engine,
        pytest.raises(W2WError, match=r"workers did not start.* this process has another"),
    ):
        engine.group_size()


def test_what_ray_says_does_not_stand_among_results(cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with connected(cluster.address):
        print("(raylet) a worker died")
    print("{}")
    told = capsys.readouterr()
    assert told.out == "{}\n" and "(raylet) a worker died" in told.err
