"""Labels of adapters as a table, one row per adapter and one column per label: csv, or parquet with the extra `tables`."""

import csv
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from w2wpp.common.errors import W2WError
from w2wpp.common.files import replacing
from w2wpp.common.tables import rows_by
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset

ID = "id"


def write_table(path: str | Path, ids: Sequence[str], labels: Sequence[Labels]) -> None:
    """Write ids and labels as .csv or .parquet, whole or not at all; a label that a row lacks is an empty cell.

    Raises W2WError for another suffix, or a label that is called `id`.
    """
    path, columns = _checked(path), list(dict.fromkeys(key for label in labels for key in label))
    if ID in columns:
        raise W2WError(f"a row has a label called {ID}, which is the name of the first column. Call it something else.")
    if path.suffix == ".csv":
        with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow([ID, *columns])
            writer.writerows([name, *(_cell(label.get(key)) for key in columns)] for name, label in zip(ids, labels, strict=True))
        return
    arrow, parquet = _arrow(path)
    table = {ID: list(ids)} | {key: [label.get(key) for label in labels] for key in columns}
    with replacing(path) as aside:
        parquet.write_table(arrow.table({key: _column(arrow, values) for key, values in table.items()}), aside)


def read_table(path: str | Path) -> dict[str, Labels]:
    """Read a .csv or .parquet with a column `id` and others -> {id: {column: value}}.

    A csv's values are text, an empty one included; a parquet file's have its types, and null is no label.
    Raises W2WError if the file does not read, has no column `id`, or names an id twice.
    """
    path = _checked(path)
    if path.suffix == ".csv":
        return {name: dict(row.cells) for name, row in rows_by(path, ID, trim=False).items()}
    _, parquet = _arrow(path)
    try:
        table = parquet.read_table(path)
        header, rows = table.column_names, [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
    except Exception as error:  # pyarrow reports a bad file with many exceptions
        raise W2WError(f"cannot read labels {path}: {error}. Is it a whole parquet file?") from error
    if ID not in header or len(set(header)) < len(header):
        raise W2WError(f"{path} has columns {', '.join(map(str, header))}; one called {ID} was expected, and no name twice.")
    found: dict[str, Labels] = {}
    for row in rows:
        values = dict(zip(header, row, strict=True))
        name = str(values.pop(ID))
        if name in found:
            raise W2WError(f"{path} names {name} twice. Keep one line of it.")
        found[name] = {key: value for key, value in values.items() if value is not None}
    return found


def label_from(dataset: WeightDataset, path: str | Path) -> int:
    """Set the labels that a table names, of the rows that it names; returns how many rows changed.

    Other rows and other labels stay. A csv's cell that says what the label says already leaves its type alone, and an
    empty one where there is no label adds none; so labels that were written and read back are the same.
    Raises W2WError naming an id that is not in the dataset.
    """
    changed: dict[str, Labels] = {}
    text = Path(path).suffix == ".csv"
    for name, told in read_table(path).items():
        labels = dataset.labels[dataset.index_of(name)]
        new = {key: value for key, value in told.items() if not (text and _cell(labels.get(key)) == value)}
        if any(key not in labels or labels[key] != value for key, value in new.items()):
            changed[name] = {**labels, **new}
    if changed:
        dataset.set_labels(changed)
    return len(changed)


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise W2WError(f"{path} is no table of labels: its name should end with .csv or .parquet.")
    return path


def _cell(value: Any) -> str:
    """A label as a csv holds it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise W2WError(f"{path} is parquet, which needs pip install 'w2wpp[tables]'. Or give a .csv.") from error


def _column(arrow: Any, values: list[Any]) -> Any:
    """A column of one type where the labels have one, of text where they do not."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and not kinds & {dict, list}:
        return arrow.array(values)
    return arrow.array([None if value is None else _cell(value) for value in values])
