"""The public names: what the stub promises, what `w2w.__all__` lists and what is there are the same."""

import ast
from importlib import import_module
from pathlib import Path

import w2wpp as w2w


def stub_names() -> dict[str, str]:
    """The names that the stub imports, with their modules."""
    tree = ast.parse(Path(w2w.__file__).with_suffix(".pyi").read_text())
    return {alias.name: str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def stub_all() -> list[str]:
    """What the stub's `__all__` says."""
    tree = ast.parse(Path(w2w.__file__).with_suffix(".pyi").read_text())
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def test_stub_all_and_what_is_there_agree() -> None:
    names = stub_names()
    assert sorted(w2w.__all__) == sorted([*names, "__version__"]) == sorted(stub_all())
    for name, module in names.items():
        assert getattr(w2w, name) is getattr(import_module(f"w2wpp.{module}"), name)
    assert set(names) <= set(dir(w2w))


def test_public_names_are_few_and_documented() -> None:
    assert len(w2w.__all__) <= 50
    assert [name for name in stub_names() if not (getattr(w2w, name).__doc__ or "").strip()] == []


def test_nothing_imports_a_module_that_only_posix_has() -> None:
    posix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for file in Path(w2w.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text())
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not posix & modules, file


def test_no_public_name_hides_a_room() -> None:
    rooms = {path.name for path in Path(w2w.__file__).parent.iterdir() if path.is_dir()}
    assert not rooms & set(w2w.__all__)
