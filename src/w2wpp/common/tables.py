"""Read a csv of labels with full strictness: whatever is wrong with a line is said, with its number."""

import csv
from dataclasses import dataclass
from pathlib import Path

from w2wpp.common.errors import W2WError

MARK = "\ufeff"  # at the beginning of a file it says UTF-8; anywhere else it would be an unseen letter of a name


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    line: int  # its number in the file, where it ends; the header's is 1
    cells: dict[str, str]  # column -> text


def read_rows(path: str | Path, *, trim: bool = True) -> tuple[list[str], list[Row]]:
    """The columns and rows of a csv in UTF-8, with commas, quotes closed, and as many cells in every line as its header has.

    A byte order mark (Excel's) and spaces around the names of columns do not count, nor, unless told, spaces around cells;
    empty lines are passed over. Raises W2WError naming the line.
    """
    rows: list[Row] = []
    columns: list[str] = []
    number = 0
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True, skipinitialspace=trim)
            for cells in reader:
                number = reader.line_num
                if not any(cells) and len(cells) <= 1:
                    continue
                if any(MARK in cell for cell in cells):
                    raise W2WError(f"line {number} of {path} has a byte order mark in it, which no editor shows. Were two files joined?")
                if not columns:
                    columns = _columns([cell.strip() for cell in cells], path)
                    continue
                if len(cells) != len(columns):
                    raise W2WError(f"line {number} of {path} has {len(cells)} cells; its header has {len(columns)}. Mend the line.")
                told = [cell.strip() for cell in cells] if trim else cells
                rows.append(Row(number, dict(zip(columns, told, strict=True))))
    except UnicodeDecodeError as error:
        raise W2WError(f"cannot read labels {path}: it is not UTF-8 ({error.reason}). Is it a csv in UTF-8?") from error
    except csv.Error as error:
        raise W2WError(f"cannot read labels {path}: line {number + 1} ({error}). Is it a csv, its quotes closed?") from error
    except (OSError, ValueError) as error:
        raise W2WError(f"cannot read labels {path}: {getattr(error, 'strerror', None) or error}. Is it a csv?") from error
    if not columns:
        raise W2WError(f"cannot read labels {path}: it is empty. Is it a csv with a line of column names?")
    return columns, rows


def rows_by(path: str | Path, column: str, *, trim: bool = True) -> dict[str, Row]:
    """The rows of a csv by what stands in `column`, which the rows' cells then lack.

    Raises W2WError if there is no such column, or naming the line where it is empty or says what a line before said.
    """
    columns, rows = read_rows(path, trim=trim)
    if column not in columns:
        hint = " Are there semicolons for commas?" if any(";" in name for name in columns) else ""
        raise W2WError(f"{path} has columns {', '.join(columns)}; one called {column} was expected, and no name twice.{hint}")
    found: dict[str, Row] = {}
    for row in rows:
        name = row.cells[column]
        if not name:
            raise W2WError(f"line {row.line} of {path} has nothing in column {column}. Mend or drop the line.")
        if name in found:
            raise W2WError(f"line {row.line} of {path} names {name} twice: line {found[name].line} does, too. Keep one line of it.")
        found[name] = Row(row.line, {key: value for key, value in row.cells.items() if key != column})
    return found


def _columns(names: list[str], path: str | Path) -> list[str]:
    if len(set(names)) < len(names) or "" in names:
        raise W2WError(f"{path} has columns {', '.join(names)}; each needs a name, and no name twice. Mend its first line.")
    return names
