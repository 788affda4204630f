"""Labels go out as a table and come back the same; a table that does not fit changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ended
from w2wpp.common.errors import W2WError
from w2wpp.dataset.labels import label_from, read_table, write_table
from w2wpp.dataset.weights import WeightDataset

LABELS = [
    {"split": "train", "half": "", "age": 31, "loss": 0.25},
    {"split": "val", "name": 'Zoë "Ż", of\nKraków', "smiles": True},
    {"split": "train", "age": 7},
]


@pytest.fixture
def labelled(dataset: Path) -> WeightDataset:
    data = WeightDataset.load(dataset)
    data.set_labels(dict(zip(data.ids, LABELS, strict=False)))
    return data


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_that_go_out_come_back_as_they_were(labelled: WeightDataset, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    before, table = [dict(labels) for labels in labelled.labels], tmp_path / f"labels{suffix}"
    write_table(table, labelled.ids, labelled.labels)
    assert list(read_table(table)) == labelled.ids
    assert label_from(labelled, table) == 0
    assert WeightDataset.load(labelled.folder).labels == before and labelled.where(half="") == [0]


def test_other_tools_read_the_csv(w2w: Callable[..., Ended], labelled: WeightDataset, tmp_path: Path) -> None:
    words = ("dataset", "labels", labelled.folder, "--runs", tmp_path / "runs", "--json")
    assert w2w(*words, "--out", tmp_path / "labels.csv").json()["rows"] == 10
    header, first = (tmp_path / "labels.csv").read_text().splitlines()[:2]
    assert header == "id,split,half,age,loss,name,smiles,person" and first == "person-0,train,,31,0.25,,,"
    # A few lines and columns of one's own: only these change.
    (tmp_path / "mine.csv").write_text("id,split,age\nperson-2,test,7\nperson-0,train,32\n")
    assert w2w(*words, "--set", tmp_path / "mine.csv").json()["changed"] == 2
    data = WeightDataset.load(labelled.folder)
    assert data.labels[2] == {"split": "test", "age": 7} and data.labels[0] == {**LABELS[0], "age": "32"}
    assert data.labels[1] == LABELS[1] and data.where(split="test") == [2]
    data.verify()
    both = w2w(*words, "--set", tmp_path / "mine.csv", "--out", tmp_path / "out.csv")
    embedded = w2w("dataset", "labels", "tiny-faces", "--set", tmp_path / "mine.csv", "--runs", tmp_path / "runs")
    assert both.code == embedded.code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\nperson-0,a\nnobody,b\n", "no row 'nobody'"),
        ("id,split\nperson-0,a\nperson-0,b\n", "person-0 twice"),
        ("file,split\nperson-0,a\n", "called id"),
        ("id,split,split\nperson-0,a,b\n", "no name twice"),
        ("\ufeffid,split\nperson-0,a\n\ufeffperson-1,b\n", "line 3 .* byte order mark"),
        ("id,split\nperson-0\n", "line 2 .* has 1 cells"),
        ("", "is it a csv"),
        ('id,split\nperson-0,"a\n', "is it a csv"),
        ("id,split\nperson-0,\udcff\n", "is it a csv"),
    ],
)
def test_a_table_that_does_not_fit_changes_nothing(labelled: WeightDataset, tmp_path: Path, text: str, message: str) -> None:
    before = (labelled.folder / "manifest.jsonl").read_bytes()
    (tmp_path / "labels.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(W2WError, match=f"(?i){message}"):
        label_from(labelled, tmp_path / "labels.csv")
    assert (labelled.folder / "manifest.jsonl").read_bytes() == before


def test_another_suffix_or_a_column_called_id_is_refused(labelled: WeightDataset, tmp_path: Path) -> None:
    with pytest.raises(W2WError, match=r"\.csv or \.parquet"):
        write_table(tmp_path / "labels.xlsx", ["a"], [{}])
    with pytest.raises(W2WError, match="called id"):
        write_table(tmp_path / "labels.csv", ["a"], [{"id": "b"}])
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    with pytest.raises(W2WError, match="labels"):
        read_table(tmp_path / "labels.parquet")


def test_parquet_keeps_types_and_mixed_columns_become_text(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_table(tmp_path / "labels.parquet", ["a", "b"], [{"age": 3, "mixed": 1}, {"age": None, "mixed": "x"}])
    assert read_table(tmp_path / "labels.parquet") == {"a": {"age": 3, "mixed": "1"}, "b": {"mixed": "x"}}
