"""Names and labels of published rows: a data frame in a .pt file, read without running its code; a list; or our labels.csv."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.dataset.labels import read_table
from w2wpp.dataset.stored_rows import Labels
from w2wpp.exchange.formats.torch_files import load_plain

PERSON = "identity"  # the column that says which rows are one person
# What a pickled data frame of numbers and text is built from, none of which runs the file's code; not pyarrow's buffers, which
# pandas 3 writes and which a file could make point anywhere.
FRAME = (
    "pandas.DataFrame",
    "pandas.Index",
    "pandas.RangeIndex",
    "pandas.core.frame.DataFrame",
    "pandas.core.internals.managers.BlockManager",
    "pandas.core.indexes.base.Index",
    "pandas.core.indexes.base._new_Index",
    "pandas.core.indexes.range.RangeIndex",
    "pandas._libs.internals._unpickle_block",
    "pandas.core.internals.blocks.new_block",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.slice",
)


def named_rows(path: Path | None, n: int) -> tuple[list[str], list[Labels]]:
    """An id and labels for each of n rows: from `labels.csv`, a data frame or a list; the position and none without a file.

    A column `identity` becomes the label `person`, so that splits and direction fits keep a person's rows together.
    Raises W2WError if the file needs code to load, or is of another number of rows.
    """
    if path is None:
        return [f"{i:06d}" for i in range(n)], [{} for _ in range(n)]
    if path.suffix == ".csv":
        table = read_table(path)
        ids, labels = list(table), list(table.values())
    else:
        ids, labels = _listed(_named_values(path), path)
    if len(ids) != n or len(set(ids)) != n:
        raise W2WError(f"{path} names {len(set(ids))} identities for {n} rows. Take it away to name rows by position.")
    return ids, labels


def _listed(found: Any, path: Path) -> tuple[list[str], list[Labels]]:
    """Ids and labels of what a .pt file held: a data frame, a mapping of id -> label, a list or a tensor of labels."""
    if type(found).__name__ == "DataFrame":
        rows = found.to_dict("records")
        labels = [{_renamed(str(k)): _plain(v) for k, v in row.items() if v == v} for row in rows]  # NaN is no label
        return [str(name) for name in found.index], [_with_person(label) for label in labels]
    if isinstance(found, dict):
        return [str(name) for name in found], [{"label": _plain(value)} for value in found.values()]
    if isinstance(found, Tensor) and found.dim() == 1:
        found = found.tolist()
    if isinstance(found, list | tuple) and all(isinstance(value, str | int | float) for value in found):
        return [f"{i:06d}" for i in range(len(found))], [{"label": value} for value in found]
    kind = type(found).__name__
    raise W2WError(f"{path} holds a {kind}; a data frame or a list of labels was expected. Take it away to name rows by position.")


def _renamed(column: str) -> str:
    return "person" if column == PERSON else column


def _with_person(label: Labels) -> Labels:
    """A person is a name: pandas makes a number of an identity that is one."""
    if "person" not in label:
        return label
    person = label["person"]
    return {**label, "person": str(int(person) if isinstance(person, float) and person.is_integer() else person)}


def _named_values(path: Path) -> Any:
    """What a .pt file of names holds: built from pandas' and numpy's own classes by name, anything else is refused by name."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise W2WError(f"cannot read {path}: {error}. Is it a whole .pt file?") from error
    strange = sorted(set(wanted) - set(FRAME))
    if strange:
        raise W2WError(
            f"{path} asks for {strange[0]}, more than numbers and text in numpy; it was not loaded. Take it away to name rows by position."
        )
    if not wanted:
        return load_plain(path)
    try:
        import_module("pandas")
    except ImportError as error:
        raise W2WError(
            f"{path} is a pandas data frame; reading it needs pip install 'w2wpp[tables]'. Or take it away to name rows by position."
        ) from error
    allowed = [(_attribute(name), name) for name in wanted]
    kinds = {type(import_module("numpy").dtype(code)) for code in "?bBhHiIlLqQefdOU"}
    return load_plain(path, allowed=[*allowed, *kinds])


def _attribute(name: str) -> Any:
    module, attribute = name.rsplit(".", 1)
    return getattr(import_module(module), attribute)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value  # numpy's numbers
