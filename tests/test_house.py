"""The house is as CONTRIBUTING.md draws it: its rooms, what their first lines say, and how long functions and files are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ROOT / "src" / "w2wpp"
FOLDERS = [*sorted(CODE.rglob("__init__.py")), *sorted(ROOT.glob("packages/*/src/*/__init__.py"))]
FILES = [*sorted(CODE.rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    """Every function of a file, methods and inner ones included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("file", FOLDERS, ids=lambda file: file.parent.name)
def test_each_folder_says_in_two_sentences_what_lives_there_and_what_may_not(file: Path) -> None:
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    assert len(re.findall(r"[.;](?:\s|$)", said)) >= 2, said


def test_the_map_names_every_room_once_from_the_top_floor_down() -> None:
    rows = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    rooms = {path.stem for path in CODE.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"} - {"__init__"}
    assert len(rows) == len(set(rows)) and set(rows) == rooms
    layers = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    assert layers
    floors = [re.findall(r"\w+", line) for line in layers[1].splitlines() if line.strip()]
    floor = {room: i for i, beside in enumerate(floors) for room in beside}
    assert [floor[room] for room in rows] == sorted(floor[room] for room in rows)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_has_300_lines_at_most_and_a_function_fewer_than_60(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300
    for function in functions(file):
        assert function.end_lineno and function.end_lineno - function.lineno + 1 < 60, function.name
