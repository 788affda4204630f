"""What owners of many LoRAs ask: nearest rows as brute force finds them, duplicates, mixes and ranks as dense products say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.names import file_name
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.canonical import to_rows
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.lora_file import read_lora
from w2wpp.fleet.index import ProductIndex
from w2wpp.fleet.mix import as_lora, mixed, rank_that_keeps, resize_dataset, resized_layout
from w2wpp.fleet.products import Products, inner, inners, query_of
from w2wpp.fleet.similar import nearest_rows
from w2wpp.fleet.sketch import ProductSketch
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import write_image

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def rank2(base: BaseModel) -> Layout:
    return Layout.of(base.pipeline.unet, rank=2, alpha=3.0)


@pytest.fixture
def many(tmp_path: Path, base: BaseModel, rank2: Layout) -> WeightDataset:
    """Sixty adapters around four kinds, the last two copies of the first, one of them in another gauge."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, rank2.d, generator=draw)
    rows = kinds[torch.arange(58) % 4] + 0.4 * torch.randn(58, rank2.d, generator=draw)
    other = {name: m.clone() for name, m in rank2.unflatten(rows[0]).items()}
    mix = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    for name, matrix in other.items():
        other[name] = torch.linalg.inv(mix) @ matrix if ".lora_A." in name else matrix @ mix
    data = WeightDataset.create(tmp_path / "many", rank2, base.id)
    data.append(torch.cat([rows, rows[:1], rank2.flatten(other)[None]]), [f"r{i}" for i in range(60)])
    return data


def dense(layout: Layout, rows: Tensor) -> Tensor:
    """All products of each row, laid flat: [n, a lot]."""
    matrices = layout.unflatten(rows.double())
    products = [matrices[f"{x}.lora_B.weight"] @ matrices[f"{x}.lora_A.weight"] * layout.scale for x in layout.modules]
    return torch.cat([product.flatten(1) for product in products], 1)


def test_inner_products_are_those_of_the_products(many: WeightDataset) -> None:
    rows, layers = many.rows(), list(many.layout.modules)
    whole = dense(many.layout, rows)
    found = inner(Products.of_rows(many.layout, rows, layers), Products.of_rows(many.layout, rows[7:8], layers)).sum(1)
    torch.testing.assert_close(found, whole @ whole[7], rtol=1e-5, atol=1e-5)


def test_the_index_finds_what_brute_force_finds(many: WeightDataset) -> None:
    whole = dense(many.layout, many.rows())
    unit = whole / whole.norm(dim=1, keepdim=True)
    for memory, least in ((2.0, 1.0), (0.0001, 0.6)):  # the second has room for four landmarks and eight numbers
        index = ProductIndex.build(many, memory)
        for of in (0, 5, 30):
            query, _ = query_of(f"r{of}", many, None, list(many.layout.modules))
            _, ceiling = index.cosines(many, query, list(many.layout.modules))
            assert ((unit @ unit[of]) <= ceiling.double() + 1e-6).all()
            wanted = (unit @ unit[of]).topk(6)
            found = nearest_rows(many, query, 6, index=index, memory=memory, most=20)
            assert found.read == 20 and (not found.proved or sorted(found.rows) == sorted(wanted.indices.tolist()))
            assert len(set(found.rows) & set(wanted.indices.tolist())) >= 6 * least
            exact = nearest_rows(many, query, 6, index=index, memory=memory)  # of few rows all are read
            assert exact.read == 60 and exact.proved and sorted(exact.rows) == sorted(wanted.indices.tolist())
            torch.testing.assert_close(torch.tensor(exact.cosines, dtype=torch.float64), wanted.values, atol=1e-6, rtol=0)


def test_sketches_have_the_inner_products_in_the_mean(many: WeightDataset) -> None:
    whole = dense(many.layout, many.rows())
    parts = Products.of_rows(many.layout, many.rows(), many.layout.modules)
    wanted, norms = whole @ whole.T, whole.norm(dim=1)
    for size, most in ((64, 0.25), (4096, 0.035)):  # the error falls with the root of the size
        sketch = ProductSketch(size).of(parts).double()
        assert ((sketch @ sketch.T - wanted) / norms[:, None] / norms).square().mean().sqrt() < most
    torch.testing.assert_close(inners(parts, parts), wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))


def test_a_file_finds_its_rows(w2w: Command, many: WeightDataset, pico: Path, tmp_path: Path) -> None:
    write_kohya(tmp_path / "ada.safetensors", many.layout, many.rows([3])[0])
    words = ("similar", tmp_path / "ada.safetensors", "--in", many.folder, "--base", pico, "--k", 3, "--json")
    found = w2w(*words).json()
    assert found["nearest"][0]["id"] == "r3" and found["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-6)
    assert (many.folder / "products.index").exists()
    exact = w2w(*words, "--exact").json()
    assert [row["id"] for row in exact["nearest"]] == [row["id"] for row in found["nearest"]] and exact["rows_read"] == 60
    layers = w2w(*words, "--layer", "attn2", "--by-layer").json()["nearest"][0]["layers"]
    assert layers and all("attn2" in layer and cosine == pytest.approx(1, abs=1e-6) for layer, cosine in layers.items())
    assert w2w(*words[:1], "nobody", *words[2:]).code == 2
    assert w2w("dataset", "info", many.folder, "--verify", "--json").json()["n"] == 60  # the index is no stranger to the dataset


def test_equal_and_nearly_equal_rows_are_grouped(w2w: Command, many: WeightDataset) -> None:
    groups = w2w("dedupe", many.folder, "--threshold", 0.999, "--json").json()["groups"]
    assert [(group["ids"], group["kind"]) for group in groups] == [(["r0", "r58", "r59"], "equal")]
    near = w2w("dedupe", many.folder, "--threshold", 0.3, "--json").json()["groups"]
    assert sorted(len(group["ids"]) for group in near) == [14, 14, 15, 17] and {group["kind"] for group in near} == {"nearly equal"}


@pytest.mark.parametrize("method", ["weighted", "spherical", "ties", "dare"])
def test_a_mix_is_that_of_the_products(many: WeightDataset, method: str) -> None:
    rows = many.rows([0, 1])
    loras = [as_lora(many.layout, row, "") for row in rows]
    wide = resized_layout(many.layout, 16)
    found, errors = to_rows([mixed(loras, [0.6, 0.4], method)], wide)
    a, b = dense(many.layout, rows)
    if method == "weighted":
        wanted = 0.6 * a + 0.4 * b
    elif method == "spherical":
        angle = torch.acos(a @ b / a.norm() / b.norm())
        wanted = (torch.sin(0.6 * angle) * a + torch.sin(0.4 * angle) * b) / torch.sin(angle)
    else:  # peft's own: half of the numbers are kept, so that the mix lies between the two
        both = dense(wide, found)[0]
        assert 0.3 < float(both @ (0.6 * a + 0.4 * b) / both.norm() / (0.6 * a + 0.4 * b).norm()) <= 1
        assert torch.equal(to_rows([mixed(loras, [0.6, 0.4], method)], wide)[0], found)  # the same again
        return
    assert errors[0] < 1e-5
    torch.testing.assert_close(dense(wide, found)[0], wanted, atol=1e-4, rtol=1e-4)


def test_a_smaller_rank_keeps_what_was_asked(w2w: Command, many: WeightDataset, tmp_path: Path) -> None:
    common = ("--runs", tmp_path / "runs", "--json")
    found = w2w("resize", many.folder, "--rank", 1, "--out", tmp_path / "thin", *common).json()
    thin = WeightDataset.load(tmp_path / "thin")
    before, after = dense(many.layout, many.rows()), dense(thin.layout, thin.rows())
    lost = (before - after).norm(dim=1) / before.norm(dim=1)
    assert found["rank"] == 1 and found["worst_rank_error"]["error"] == pytest.approx(float(lost.max()), rel=1e-3)
    share = 1 - float(lost.max()) ** 2
    loras = [as_lora(many.layout, row, "") for row in many.rows()]
    assert rank_that_keeps(loras, share - 0.01) == 1 and rank_that_keeps(loras, share + 0.01) == 2
    assert w2w("resize", many.folder, "--out", tmp_path / "x", *common).code == 2


def test_files_are_mixed_and_resized(w2w: Command, many: WeightDataset, pico: Path, base: BaseModel, tmp_path: Path) -> None:
    for i in (0, 1):
        write_kohya(tmp_path / f"{i}.safetensors", many.layout, many.rows([i])[0])
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    words = ("mix", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--weight", 0.7, "--weight", 0.3, "--rank", 4)
    found = w2w(*words, "--out", tmp_path / "mix.safetensors", *common).json()
    assert found["rank_error"] < 1e-5
    lora = read_lora(tmp_path / "mix.safetensors", Denoiser.of(base))
    rows = [as_lora(many.layout, row, "") for row in many.rows([0, 1])]
    wanted = to_rows([mixed(rows, [0.7, 0.3])], resized_layout(many.layout, 4))[0]
    torch.testing.assert_close(to_rows([lora], resized_layout(many.layout, 4))[0], wanted, atol=1e-4, rtol=1e-3)
    thin = w2w("resize", tmp_path / "mix.safetensors", "--rank", 1, "--out", tmp_path / "thin.safetensors", *common).json()
    assert thin["from"] == 4 and 0.1 < thin["rank_error"] < 1


def test_a_map_has_names_and_thumbnails(w2w: Command, many: WeightDataset, tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "r0.png", np.zeros((16, 16, 3), np.uint8))
    common = ("--runs", tmp_path / "runs", "--json")
    words = ("map", many.folder, "--pictures", tmp_path / "pictures", "--out", tmp_path / "map.html", *common)
    assert w2w(*words).json()["thumbnails"] == 1
    text = (tmp_path / "map.html").read_text()
    assert all(f"<title>r{i}</title>" in text for i in range(60)) and "data:image/jpeg" in text and "<script" not in text
    w2w("map", many.folder, "--out", tmp_path / "map.png", *common).json()
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_pictures_are_found_by_the_names_that_w2w_gives_them(w2w: Command, base: BaseModel, rank2: Layout, tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "some", rank2, base.id)
    ids = ["a/b", "../outside", "c"]
    data.append(torch.randn(3, rank2.d, generator=torch.Generator().manual_seed(0)), ids)
    write_image(tmp_path / "outside.png", np.zeros((8, 8, 3), np.uint8))
    write_image(tmp_path / "pictures" / file_name("a/b") / "0.png", np.zeros((8, 8, 3), np.uint8))
    words = ("map", data.folder, "--pictures", tmp_path / "pictures", "--out", tmp_path / "map.html", "--runs", tmp_path / "runs", "--json")
    assert w2w(*words).json()["thumbnails"] == 1
    (tmp_path / "pictures" / "c.png").write_bytes(b"no picture")
    ended = w2w(*words, "--overwrite")
    assert ended.code == 2 and "c.png" in ended.err


def test_a_resized_dataset_resumes_and_mixes_with_no_other(many: WeightDataset, tmp_path: Path) -> None:
    whole = resize_dataset(many, str(tmp_path / "whole"), 1, None)
    rows = WeightDataset.load(tmp_path / "whole")
    begun = WeightDataset.create(tmp_path / "begun", rows.layout, rows.base_id, rows.meta)
    begun.append(rows.rows(range(7)), rows.ids[:7], rows.labels[:7])
    assert resize_dataset(many, str(tmp_path / "begun"), 1, None)["worst_rank_error"] == whole["worst_rank_error"]
    assert torch.equal(WeightDataset.load(tmp_path / "begun").rows(), rows.rows())
    other = WeightDataset.create(tmp_path / "other", rows.layout, rows.base_id, rows.meta)
    other.append(rows.rows([0]), ["somebody"])
    with pytest.raises(W2WError, match="not the first"):
        resize_dataset(many, str(tmp_path / "other"), 1, None)


def test_names_are_no_formulas_on_a_map(w2w: Command, base: BaseModel, rank2: Layout, tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "dollars", rank2, base.id)
    data.append(torch.randn(3, rank2.d, generator=torch.Generator().manual_seed(0)), ["a$\\frac$", "b$x_{$", "$$"])
    for ending in ("png", "svg"):
        drawn = tmp_path / f"map.{ending}"
        w2w("map", data.folder, "--out", drawn, "--runs", tmp_path / "runs", "--json").json()
        assert drawn.stat().st_size > 1000


@pytest.mark.parametrize("size", [0.0, 1.0, 1e30])
def test_rows_that_are_all_alike_or_far_too_large(w2w: Command, base: BaseModel, rank2: Layout, tmp_path: Path, size: float) -> None:
    data = WeightDataset.create(tmp_path / "alike", rank2, base.id)
    data.append(torch.full((3, rank2.d), size), ["a", "b", "c"])
    for words in (("map", data.folder, "--out", tmp_path / "map.html", "--runs", tmp_path / "runs"), ("dedupe", data.folder)):
        ended = w2w(*words)
        assert ended.code == 2 and "so large" in ended.err if size > 1 else ended.code == 0


@pytest.mark.parametrize("verb", ["mix", "resize", "import"])
def test_a_rank_beyond_all_layers_is_refused(w2w: Command, tmp_path: Path, verb: str) -> None:
    ended = w2w(verb, "a", *["b"] * (verb == "mix"), "--rank", 10**7, "--out", tmp_path / "out.safetensors", "--runs", tmp_path / "runs")
    assert ended.code == 2 and "--rank" in ended.err and not list(tmp_path.iterdir())


def test_a_dataset_of_no_rows_is_not_resized(w2w: Command, base: BaseModel, rank2: Layout, tmp_path: Path) -> None:
    WeightDataset.create(tmp_path / "empty", rank2, base.id)
    for words in (("--rank", 1), ("--keep", 0.9)):
        ended = w2w("resize", tmp_path / "empty", *words, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
        assert ended.code == 2 and "has no rows" in ended.err and not (tmp_path / "out" / "dataset.json").exists()


def test_a_mix_never_replaces_what_it_reads(w2w: Command, many: WeightDataset, pico: Path, tmp_path: Path) -> None:
    for i in (0, 1):
        write_kohya(tmp_path / f"{i}.safetensors", many.layout, many.rows([i])[0])
    before = (tmp_path / "0.safetensors").read_bytes()
    words = ("mix", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--base", pico, "--runs", tmp_path / "runs", "--overwrite")
    ended = w2w(*words, "--out", tmp_path / "0.safetensors")
    assert ended.code == 2 and "is the input" in ended.err and (tmp_path / "0.safetensors").read_bytes() == before


def test_a_base_known_by_fewer_parts_reads_files(many: WeightDataset, base: BaseModel, tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", many.layout, many.rows([3])[0])
    plain = Denoiser(base.pipeline.unet, base.source)  # of a hub id: its files are not known, so that its id says less
    assert plain.id != many.base_id
    assert query_of(str(tmp_path / "a.safetensors"), many, plain, list(many.layout.modules))[1] == 0
