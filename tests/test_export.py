"""Adapters go out alone or by the folder, with a model card, and back into a dataset as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from conftest import Ended
from w2wpp.common.errors import W2WError
from w2wpp.common.files import new_folder
from w2wpp.common.names import file_name
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.exporting import export, from_dataset
from w2wpp.exchange.formats.peft import read_peft
from w2wpp.exchange.formats.torch_files import TableFile, load_plain, write_table
from w2wpp.lora.layout import Layout

Command = Callable[..., Ended]


def test_w2ws_own_layout_comes_back_exactly(w2w: Command, dataset: Path, pico: Path, tmp_path: Path) -> None:
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    WeightDataset.load(dataset).set_labels({"person-3": {"person": "Zoë, of Żółć", "age": 31}})
    w2w("export", "--dataset", dataset, "--all", "--format", "w2w", "--memory", 0.001, "--out", tmp_path / "w2w", *common).json()
    data = WeightDataset.load(dataset)
    # As the original's code reads them: whole, mapped, and with its own order and shapes of columns.
    for mapped in (False, True):
        assert torch.equal(torch.load(tmp_path / "w2w" / "all_weights.pt", weights_only=True, mmap=mapped), data.rows())
    dimensions = torch.load(tmp_path / "w2w" / "weight_dimensions.pt", weights_only=True)
    assert sum(numbers[0] for numbers, _ in dimensions.values()) == data.d
    found = w2w("import", tmp_path / "w2w", "--out", tmp_path / "again", *common).json()
    again = WeightDataset.load(tmp_path / "again")
    assert found["imported"] == 10 and again.layout == data.layout and again.ids == data.ids
    assert torch.equal(again.rows(), data.rows())
    refused = w2w("import", tmp_path / "w2w", "--rank", 2, "--out", tmp_path / "no", *common)
    assert refused.code == 2 and "--rank" in refused.err
    (tmp_path / "w2w" / "layout.json").unlink()  # as published, with the published alpha
    w2w("import", tmp_path / "w2w", "--out", tmp_path / "published", *common).json()
    assert WeightDataset.load(tmp_path / "published").layout.alpha == 27
    assert again.labels[3] == {"person": "Zoë, of Żółć", "age": "31"}  # a csv holds text


def test_a_table_is_read_and_written_as_torch_does(tmp_path: Path) -> None:
    table = torch.randn(7, 5)
    write_table(tmp_path / "ours.pt", 7, 5, table.split(3))
    assert torch.equal(torch.load(tmp_path / "ours.pt", weights_only=True), table)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.save(torch.cat([table, table]).to(dtype)[7:], tmp_path / "theirs.pt")  # a view: its numbers begin later in the file
        found = TableFile.open(tmp_path / "theirs.pt")
        assert torch.equal(torch.cat([found.rows(0, 4), found.rows(4, 7)]), table.to(dtype))
    for wrong in (table.T, table[0], table.long(), [table], {"a": 1}):
        torch.save(wrong, tmp_path / "theirs.pt")
        with pytest.raises(W2WError, match="a table"):
            TableFile.open(tmp_path / "theirs.pt")
    assert load_plain(tmp_path / "theirs.pt") == {"a": 1}


@pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
def test_a_whole_dataset_goes_out_and_comes_back(w2w: Command, dataset: Path, pico: Path, tmp_path: Path, form: str) -> None:
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    words = ("export", "--dataset", dataset, "--all", "--format", form, "--licence", "cc-by-4.0", "--out", tmp_path / "out")
    assert w2w(*words, *common).json()["of"] == 10
    head, card = (tmp_path / "out" / "README.md").read_text().split("---\n")[1:]
    assert yaml.safe_load(head)["license"] == "cc-by-4.0" and yaml.safe_load(head)["base_model"] == str(pico)
    for fact in ("rank 1, alpha 27", "to_q, to_v", "Space", "Method", "Seed", "person-0, person-1", "Licence"):
        assert fact in card
    again = w2w(*words, *common)
    assert again.code == 2 and "not empty" in again.err  # nothing is written over
    assert w2w("import", tmp_path / "out", "--alpha", 27, "--out", tmp_path / "back", *common).json()["imported"] == 10
    data, back = WeightDataset.load(dataset), WeightDataset.load(tmp_path / "back")
    assert sorted(back.ids) == sorted(data.ids)
    for name in data.ids:
        for layer in data.layout.modules:
            products = []
            for one in (data, back):
                matrices = one.layout.unflatten(one.rows([one.index_of(name)])[0])
                products.append(one.layout.scale * matrices[f"{layer}.lora_B.weight"] @ matrices[f"{layer}.lora_A.weight"])
            torch.testing.assert_close(products[0], products[1], atol=1e-6, rtol=1e-4)


def test_points_go_out_by_name(w2w: Command, dataset: Path, pico: Path, layout: Layout, tmp_path: Path) -> None:
    common = ("--runs", tmp_path / "runs", "--json")
    w2w("fit", "pca", dataset, "--m", 4, "--out", tmp_path / "space.safetensors", *common).json()
    words = ("sample", tmp_path / "space.safetensors", "--n", 3, "--pictures", 1, "--solver-steps", 1, "--seed", 5, "--base", pico, *common)
    run = Path(w2w(*words).json()["out"])
    points = run / "points.safetensors"
    given = ("--points", points, "--space", tmp_path / "space.safetensors", "--base", pico, *common)
    found = w2w("export", *given, "--all", "--out", tmp_path / "out").json()
    card = Path(found["card"]).read_text()
    assert "pca, m = 4" in card and "w2w sample" in card and "**Seed**: 5" in card
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(folders) == 3 and all(read_peft(folder)[0] == layout for folder in folders)
    alone = w2w("export", *given, "--id", folders[1].name, "--out", tmp_path / "one").json()
    assert torch.equal(read_peft(tmp_path / "one")[1], read_peft(folders[1])[1]) and alone["of"] == folders[1].name
    unknown = w2w("export", *given, "--id", "nobody", "--out", tmp_path / "none")
    assert unknown.code == 2 and "nobody" in unknown.err and not (tmp_path / "none").exists()


def test_an_id_cannot_leave_the_folder(base, layout: Layout, tmp_path: Path) -> None:
    names = ["../../outside", "/etc/passwd", "a/b", "..", ".hidden", "a\nb", "Zoë Ż", "a%2Fb", "C:\\x"]
    data = WeightDataset.create(tmp_path / "data", layout, base.id)
    data.append(torch.ones(len(names), layout.d), names)
    denoiser = Denoiser.of(base)
    export(from_dataset(tmp_path / "data", denoiser, everything=True), tmp_path / "out", "kohya", denoiser)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(names)
    assert file_name("Zoë Ż") == "Zoë Ż"
    with pytest.raises(W2WError, match="too long"):
        file_name("ż" * 200)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as aside:
        (aside / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
