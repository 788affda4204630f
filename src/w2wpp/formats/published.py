"""The published files of Weights2Weights (Dravid et al. 2024), in and out, without unpickling code.

`all_weights.pt` [n, d] with `weight_dimensions.pt`, the names and shapes of its columns; `identity_df.pt`, a data frame
of attributes by identity; and the space: `mean.pt`, `std.pt` [d], `V.pt` [d, components], `proj_1000pc.pt` [n, 1000].
"""

import json
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.denoiser import Denoiser
from w2wpp.errors import W2WError
from w2wpp.files import read_json, write_text
from w2wpp.formats import peft
from w2wpp.formats.torch_files import TableFile, load_plain, write_plain, write_table
from w2wpp.importing import layout_of
from w2wpp.layout import Layout
from w2wpp.point_files import save_points
from w2wpp.progress import track
from w2wpp.shards import rows_within
from w2wpp.spaces.pca import PcaSpace
from w2wpp.tables import read_table
from w2wpp.tables import write_table as write_labels
from w2wpp.weights import Labels, WeightDataset

WEIGHTS, DIMENSIONS, IDENTITIES = "all_weights.pt", "weight_dimensions.pt", "identity_df.pt"
LABELS, LAYOUT = "labels.csv", "layout.json"  # beside them where w2w wrote the files
PUBLISHED_ALPHA = 27.0  # of the published adapters, whose files do not hold it
SPACE = ("mean.pt", "std.pt", "V.pt", "proj_1000pc.pt")
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


def is_published(folder: str | Path) -> bool:
    """Whether a folder holds published files: the table, or the space."""
    return (Path(folder) / WEIGHTS).exists() or (Path(folder) / "V.pt").exists()


def import_published(
    base: Denoiser,
    folder: str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    memory: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Import a folder of published files into the folder `out`; returns what was found.

    The table becomes a dataset, whose rows are named and labelled by `labels.csv` (of `w2w export`) or `identity_df.pt`
    where there is one, else by position; the space becomes `space.safetensors`, its projections `points.safetensors`.
    alpha: that of `layout.json` (of `w2w export`) unless given, else the published adapters'. memory: GiB that rows may take
    at a time.
    An interrupted import goes on where it stopped.
    Raises W2WError if a file is missing, was altered, needs code to load, or does not fit the base.
    """
    folder, out = Path(folder), Path(out)
    if alpha is None:
        kept = folder / LAYOUT
        alpha = Layout.from_json(json.dumps(read_json(kept))).alpha if kept.exists() else PUBLISHED_ALPHA
    layout, order = published_layout(base, folder, alpha)
    found: dict[str, Any] = {}
    if (folder / WEIGHTS).exists():
        found |= _import_table(base, folder, out, layout, order, memory, dtype)
    if (folder / "V.pt").exists():
        found |= _import_space(base, folder, out, layout, order)
    return found


def _import_table(
    base: Denoiser, folder: Path, out: Path, layout: Layout, order: Tensor, memory: float, dtype: torch.dtype
) -> dict[str, Any]:
    table = TableFile.open(folder / WEIGHTS)
    layout.check_width(table.d, f"{folder / WEIGHTS}")
    ids, labels = identities(folder, table.n)
    dataset = WeightDataset.open_or_create(out, layout, base.id, {"base": base.source, "imported": {"published": True}})
    first, rows = len(dataset), min(1024, rows_within(memory, table.d))
    for at in track(range(first, table.n, rows), f"import {rows} at a time"):
        stop = min(at + rows, table.n)
        dataset.append(table.rows(at, stop)[:, order].float(), ids[at:stop], labels[at:stop], dtype)
    return {**dataset.info(), "imported": len(dataset) - first}


def _import_space(base: Denoiser, folder: Path, out: Path, layout: Layout, order: Tensor) -> dict[str, Any]:
    """w = (p V^T) std + mean, and p drawn with the projections' own means and deviations (`sampling.py` of the original)."""
    missing = [name for name in SPACE if not (folder / name).exists()]
    if missing:
        raise W2WError(f"{folder} has V.pt and lacks {', '.join(missing)}. Download the rest, or take V.pt away.")
    mean, std, v, projected = (_tensor(folder / name) for name in SPACE)
    m = projected.shape[1] if projected.dim() == 2 else 0
    shapes = [list(tensor.shape) for tensor in (mean.flatten(), std.flatten(), v)]
    if not (shapes[0] == shapes[1] == [layout.d] and v.dim() == 2 and len(v) == layout.d and 0 < m <= v.shape[1] and len(projected) > 1):
        raise W2WError(
            f"{folder}: {', '.join(SPACE)} have shapes {shapes}, {list(projected.shape)}; [{layout.d}] twice, [{layout.d}, k >= m], [n, m]."
        )
    projected, components = projected.float(), v[order][:, :m].T.contiguous().float()
    centre, spread = projected.mean(0), projected.std(0)
    std = std.flatten().float()[order]
    if not (spread > 0).all() or not (std >= 0).all():
        raise W2WError(f"{folder}: a deviation in std.pt is below 0, or a column of {SPACE[3]} never varies.")
    space = PcaSpace(layout, base.id, m)
    space.scale = torch.where(std > 0, std, 1.0)
    space.mean = mean.flatten().float()[order] + (centre @ components) * std
    space.components, space.spread = components, spread
    space.explained_variance_ratio = spread.square() / int((std > 0).sum())
    space.frozen().save(out / "space.safetensors")
    ids, _ = identities(folder, len(projected))
    save_points(out / "points.safetensors", (projected - centre) / spread, ids, space)
    return {"space": out / "space.safetensors", "points": out / "points.safetensors", "m": m}


def write_published(
    folder: str | Path,
    layout: Layout,
    ids: Sequence[str],
    labels: Sequence[Labels],
    rows: Callable[[Sequence[int]], Tensor],
    memory: float = 2.0,
) -> None:
    """Write n adapters as `all_weights.pt` and `weight_dimensions.pt`, with `labels.csv` for ids and labels, `layout.json` for alpha.

    `torch.load(weights_only=True)` reads both. rows: positions -> weights [k, d]. memory: GiB that rows may take at a time.
    """
    folder, size = Path(folder), rows_within(memory, layout.d)
    blocks = (rows(range(len(ids))[at : at + size]) for at in track(range(0, len(ids), size), f"export {size} at a time"))
    write_table(folder / WEIGHTS, len(ids), layout.d, blocks)
    shapes = {f"{peft.PREFIX}{m.name}": [(m.shape[0] * m.shape[1],), torch.Size(m.shape)] for m in layout.matrices}
    write_plain(folder / DIMENSIONS, shapes)
    write_labels(folder / LABELS, ids, labels)
    write_text(folder / LAYOUT, layout.to_json())


def published_layout(base: Denoiser, folder: Path, alpha: float) -> tuple[Layout, Tensor]:
    """The layout that `weight_dimensions.pt` describes, and for each of its numbers the column [d] that it stands in."""
    dimensions = load_plain(folder / DIMENSIONS)
    if not isinstance(dimensions, dict) or not dimensions:
        raise W2WError(f"{folder / DIMENSIONS} should hold a dict of key -> [(numbers,), shape].")
    shapes = {_matrix(key, folder): _shape(key, value, folder) for key, value in dimensions.items()}
    ranks = {shape[0] if ".lora_A." in name else shape[1] for name, shape in shapes.items()}
    if len(ranks) != 1:
        raise W2WError(f"{folder / DIMENSIONS} has matrices of ranks {sorted(ranks)}; one rank was expected.")
    layers = {name.rsplit(".lora_", 1)[0] for name in shapes}
    layout = layout_of(base.module, layers, ranks.pop(), alpha)
    columns, start = {}, 0
    for name, (height, width) in shapes.items():
        columns[name] = torch.arange(start, start := start + height * width).view(height, width)
    return layout, layout.flatten(columns)


def identities(folder: Path, n: int) -> tuple[list[str], list[Labels]]:
    """An id and labels for each of n rows: from `labels.csv`, from `identity_df.pt`, else the position and none."""
    if (folder / LABELS).exists():
        table = read_table(folder / LABELS)
        ids, labels = list(table), list(table.values())
        who = LABELS
    elif (folder / IDENTITIES).exists():
        frame = _frame(folder / IDENTITIES)
        ids = [str(name) for name in frame.index]
        labels = [{str(k): _plain(v) for k, v in row.items() if v == v} for row in frame.to_dict("records")]  # NaN is no label
        who = IDENTITIES
    else:
        return [f"{i:06d}" for i in range(n)], [{} for _ in range(n)]
    if len(ids) != n or len(set(ids)) != n:
        raise W2WError(f"{folder / who} names {len(set(ids))} identities for {n} rows. Take it away to name rows by position.")
    return ids, labels


def _frame(path: Path) -> Any:
    """The data frame in a .pt file: built from pandas' and numpy's own classes by name, anything else is refused by name."""
    try:
        import_module("pandas")
    except ImportError as error:
        raise W2WError(
            f"{path} is a pandas data frame; reading it needs pip install 'w2wpp[tables]'. Or take it away to name rows by position."
        ) from error
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise W2WError(f"cannot read {path}: {error}. Is it a whole .pt file?") from error
    strange = sorted(set(wanted) - set(FRAME))
    if strange:
        raise W2WError(
            f"{path} asks for {strange[0]}, more than numbers and text in numpy; it was not loaded. Take it away to name rows by position."
        )
    allowed = [(_named(name), name) for name in wanted]
    kinds = {type(import_module("numpy").dtype(code)) for code in "?bBhHiIlLqQefdOU"}
    frame = load_plain(path, allowed=[*allowed, *kinds])
    if type(frame).__name__ != "DataFrame":
        raise W2WError(f"{path} holds a {type(frame).__name__}; a data frame was expected. Take it away to name rows by position.")
    return frame


def _named(name: str) -> Any:
    module, attribute = name.rsplit(".", 1)
    return getattr(import_module(module), attribute)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value  # numpy's numbers


def _tensor(path: Path) -> Tensor:
    found = load_plain(path)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not all(torch.isfinite(part).all() for part in found.split(4096)):
        raise W2WError(f"{path} does not hold one tensor of finite numbers. Download it again.")
    return found


def _matrix(key: Any, folder: Path) -> str:
    """A layout's matrix name for a published key, such as `base_model.model.<layer>.lora_A.identity1.weight`."""
    found = re.fullmatch(r"(?:base_model\.model\.)?(?P<layer>.+)\.(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight", str(key))
    if not found:
        raise W2WError(f"{folder / DIMENSIONS} has the key {key}; {peft.PREFIX}<layer>.lora_A.weight and lora_B.weight were expected.")
    return f"{found['layer']}.{found['factor']}.weight"


def _shape(key: str, value: Any, folder: Path) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in value[-1])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise W2WError(f"{folder / DIMENSIONS} says {value!r} of {key}; [(numbers,), (rows, columns)] was expected.") from error
    if not 0 < height * width < 2**40 or height < 0:
        raise W2WError(f"{folder / DIMENSIONS} says {value!r} of {key}; a shape of numbers above 0 was expected.")
    return height, width
