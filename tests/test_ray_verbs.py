"""Verbs on a real Ray of two nodes give what one process gives, also where a worker is killed on the way."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import Ended, write_faces
from nodes import until, workers
from quick_table import SHORT, SMALL, ColourRecogniser, QuickTable
from test_generate_all import pictures
from test_pca import WIDE, spectrum
from test_shares import contents
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation import table1_methods as ways
from w2wpp.evaluation.table1 import table1
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.scale.in_order import Event
from w2wpp.scale.schedule import LOST, Terms
from w2wpp.scale.workers import Workers, ray_pool
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace, Solver
from w2wpp.spaces.table_recipe import TableRecipe
from waiting import WaitingRecipe

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'w2wpp[scale]'")

W2w = Callable[..., Ended]


def test_a_killed_worker_changes_no_result_and_what_cannot_be_done_is_one_line(cluster: Any, tmp_path: Path) -> None:
    def harm() -> None:
        try:
            until(lambda: (tmp_path / "begun-0").exists() and (tmp_path / "begun-1").exists())
            workers(cluster)[0].kill()
            until(lambda: mapper.again[LOST] == 1)
        finally:
            (tmp_path / "go").touch()

    with ThreadPoolExecutor(1) as thread, ray_pool(cluster.address, WaitingRecipe(tmp_path), 1) as pool:
        mapper = Workers[int](pool, Terms(slow=1e9, stuck=1e9))
        harmed = thread.submit(harm)
        assert list(mapper(range(5), 100)) == [100, 101, 102, 103, 104]
        harmed.result()
        assert list(mapper([7], 1)) == [8]  # and they stay for the next
        with pytest.raises(W2WError, match="-3 is negative"):
            list(mapper([1, -3, 2], 0))
        assert list(mapper([8, 9], 1)) == [9, 10]
        (tmp_path / "go").unlink()
        mapper.terms = Terms(slow=1e9, stuck=1e9, tries=1)
        with pytest.raises(W2WError, match="a part of the work could not be done"):
            (tmp_path / "begun-0").unlink()
            harmed = thread.submit(harm)
            list(mapper([0], 0))


def test_nothing_starts_ray_again_once_it_has_ended(cluster: Any, tmp_path: Path) -> None:
    with ray_pool(cluster.address, WaitingRecipe(tmp_path), 1) as pool:
        heard = list[Event]()
        pool.grow(1)
        while not heard:
            heard += pool.heard(0.5)
    pool.drop(heard[0].worker)  # as where a result was never taken, and its iterator ends late
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> WeightDataset:
    """More rows than numbers in each, in several blocks."""
    data = WeightDataset.create(tmp_path_factory.mktemp("ray") / "data", WIDE, "base")
    data.append(spectrum("slow", 5000), [str(i) for i in range(5000)])
    return data


def same(one: Space, two: Space) -> bool:
    expected, found = one.state_dict(), two.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_pca_of_two_workers_is_that_of_one_process(cluster: Any, adapters: WeightDataset) -> None:
    solvers: list[Solver] = ["exact", "streaming"]
    with ray_pool(cluster.address, TableRecipe(str(adapters.folder), adapters.fingerprint), 1) as pool:
        mapper = Workers[Any](pool)
        for solver in solvers:
            expected = PcaSpace.fit(adapters, m=12, solver=solver, memory=0.01)
            assert same(PcaSpace.fit(adapters, m=12, solver=solver, memory=0.01, mapper=mapper), expected)


def test_fit_pca_takes_workers(w2w: W2w, cluster: Any, tmp_path: Path) -> None:
    wider = Layout.of(nn.ModuleDict({"to_q": nn.Linear(3000, 2000)}))  # products of columns, in several blocks
    data = WeightDataset.create(tmp_path / "data", wider, "base")
    data.append(torch.randn(40, wider.d, generator=torch.Generator().manual_seed(0)), [str(i) for i in range(40)])
    words = ["fit", "pca", data.folder, "--m", 12, "--runs", tmp_path / "runs", "--json"]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    w2w(*words, "--out", one).json()
    assert w2w(*words, "--out", two, "--ray", cluster.address, "--cores", 1, "--workers", 1).json()["n"] == 40
    assert same(Space.load(one), Space.load(two))


def test_workers_who_see_another_dataset_are_refused(cluster: Any, adapters: WeightDataset) -> None:
    with (
        ray_pool(cluster.address, TableRecipe(str(adapters.folder), "another"), 1) as pool,
        pytest.raises(W2WError, match=r"workers did not start.* holds other rows"),
    ):
        list(Workers[Any](pool)([1]))


def test_a_table_of_two_workers_is_that_of_one_process(
    cluster: Any, base: BaseModel, layout: Layout, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = AlignedFaces.load(write_faces(tmp_path / "faces", {f"Person_{i}": 2 for i in range(5)}, split="test"))
    data = WeightDataset.create(tmp_path / "adapters", layout, base.id, {"adapters": asdict(AdapterOptions(prior_weight=0, steps=2))})
    rows = initial_weights(layout) + 0.02 * torch.randn(10, layout.d, generator=torch.Generator().manual_seed(0))
    data.append(rows, [f"p{i}" for i in range(10)], [{"person": f"p{i}"} for i in range(10)])
    options = replace(SMALL, ms=(2,))
    recipe = QuickTable(str(pico), base.id, str(data.folder), data.fingerprint, faces.folder, options, 3, ColourRecogniser(), device="cpu")
    monkeypatch.setattr(ways, "PUBLISHED", SHORT)
    how: dict[str, Any] = {"seed": 3, "options": options, "recogniser": ColourRecogniser()}
    table1(base, data, faces, folder=tmp_path / "one", **how)
    with ray_pool(cluster.address, recipe, 1) as pool:
        mapper = Workers[Any](pool, Terms(slow=1e9, stuck=1e9))
        table1(base, data, faces, folder=tmp_path / "two", mapper=mapper, **how)
        again = table1(base, data, faces, folder=tmp_path / "two", mapper=mapper, **how)  # every row is there
    assert len(again["rows"]) == 8
    one, two = ({path.relative_to(folder): path for path in sorted(folder.rglob("*.*"))} for folder in (tmp_path / "one", tmp_path / "two"))
    assert len(one) == 15 and one.keys() == two.keys()
    for name, path in one.items():
        if path.parent.name == "rows":
            expected, found = (read_json(file) | {"seconds": 0} for file in (path, two[name]))
            assert found == expected, name
        else:
            assert two[name].read_bytes() == path.read_bytes(), name


def test_an_import_by_two_workers_gives_the_bytes_of_one_process(
    w2w: W2w, cluster: Any, base: BaseModel, pico: Path, tmp_path: Path
) -> None:
    layout, draw = Layout.of(base.pipeline.unet, rank=3, alpha=3.0), torch.Generator().manual_seed(0)
    for i in range(20):
        write_peft(tmp_path / "loras" / f"person-{i:02}", layout, torch.randn(layout.d, generator=draw), str(pico))
    with (tmp_path / "loras" / "person-03" / "adapter_model.safetensors").open("r+b") as damaged:
        damaged.seek(-4, 2)
        damaged.write(b"\x00\x00\xc0\x7f")
    words = ["import", tmp_path / "loras", "--base", pico, "--rank", 2, "--runs", tmp_path / "runs", "--json"]
    expected = w2w(*words, "--out", tmp_path / "one").json()
    found = w2w(*words, "--out", tmp_path / "two", "--ray", cluster.address, "--cores", 1, "--workers", 2).json()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert found["files"] == expected["files"] and (found["imported"], found["skipped"]) == (19, 1)
    refused = w2w(*words, "--out", tmp_path / "three", "--ray", cluster.address, "--threads", 2)
    assert refused.code == 2 and "--threads was given with --ray" in refused.err


def test_pictures_of_all_by_two_workers_are_those_of_one_process(w2w: W2w, cluster: Any, dataset: Path, pico: Path, tmp_path: Path) -> None:
    words = ["generate", "--all", "--dataset", dataset, "--n", 16, "--solver-steps", 2, "--base", pico, "--device", "cpu"]
    words += ["--runs", tmp_path / "runs", "--json", "--out"]
    w2w(*words, tmp_path / "one").json()
    told = w2w(*words, tmp_path / "two", "--ray", cluster.address, "--cores", 1).json()
    assert told["drawn"] == 10 and pictures(tmp_path / "two") == pictures(tmp_path / "one")


def test_an_update_is_not_shared_out(w2w: W2w, dataset: Path, tmp_path: Path) -> None:
    refused = w2w("fit", "pca", dataset, "--update", tmp_path / "x.safetensors", "--ray", "auto", "--runs", tmp_path / "runs")
    assert refused.code == 2 and "--ray was given with --update" in refused.err
