"""The published files of Weights2Weights (Dravid et al. 2024), in and out, without unpickling code.

`all_weights.pt` [n, d] with `weight_dimensions.pt`, the names and shapes of its columns; `identity_df.pt`, a data frame
of attributes by identity; the space (`published_space`); and `w2wmodel.pt` [1, m], one model's raw coefficients.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_text
from w2wpp.common.progress import track
from w2wpp.dataset.labels import write_table as write_labels
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.stored_rows import Labels
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats import peft
from w2wpp.exchange.formats.identity_frame import named_rows
from w2wpp.exchange.formats.published_places import DIMENSIONS, LABELS, LAYOUT, TABLES, Part, Places, find_published
from w2wpp.exchange.formats.published_space import read_space, read_tensor
from w2wpp.exchange.formats.torch_files import TableFile, load_plain, write_plain, write_table
from w2wpp.lora.layout import Layout, layout_of
from w2wpp.lora.prompting import PUBLISHED, Prompting
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import save_points

PUBLISHED_ALPHA = 27.0  # of the published adapters, whose files do not hold it


def import_published(
    base: Denoiser,
    source: str | Path,
    out: str | Path,
    *,
    m: int | None = None,
    part: Part = "all",
    alpha: float | None = None,
    memory: float = 2.0,
    dtype: torch.dtype = torch.float32,
    remote: TableFile | None = None,
) -> dict[str, Any]:
    """Import published files into the folder `out`; returns what was found. `source`: any folder of theirs (`find_published`).

    The table becomes a dataset, whose rows are named and labelled by `labels.csv` (of `w2w export`) or `identity_df.pt`
    where there is one, else by position; the space becomes `space.safetensors`, its projections `points.safetensors` and
    their labels `labels.csv`. m: components, as many as the projections have unless given.
    alpha: that of `layout.json` (of `w2w export`) unless given, else the published adapters'. memory: GiB that rows may take
    at a time. remote: the table, where it does not lie in the folder. An interrupted import resumes where it stopped.
    Raises W2WError if a file is missing, was altered, needs code to load, or does not fit the base.
    """
    out = Path(out)
    places = find_published(source, part, table_elsewhere=remote is not None)
    if alpha is None:
        alpha = Layout.from_json(json.dumps(read_json(places.layout))).alpha if places.layout else PUBLISHED_ALPHA
    layout, order = published_layout(base, places.dimensions, alpha)
    table = remote or (TableFile.open(places.table) if places.table else None)
    found: dict[str, Any] = {}
    if table:
        told = {"prompting": Prompting().to_dict()} if places.ours else {}  # what `w2w export` wrote does not say more
        found |= _import_table(base, table, places.labels, out, layout, order, memory, dtype, told)
    if places.space:
        fitted_to = table or (TableFile.open(places.all_weights) if places.all_weights and m else None)
        found |= _import_space(base, places, fitted_to, out, layout, order, m, memory)
    elif m is not None:
        raise W2WError(f"--m {m} is for the components of V.pt, which is not among these files. Leave it out.")
    return {**found, **({"left_out": list(places.left)} if places.left else {})}


def _import_table(
    base: Denoiser,
    table: TableFile,
    names: Path | None,
    out: Path,
    layout: Layout,
    order: Tensor,
    memory: float,
    dtype: torch.dtype,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    layout.check_width(table.d, f"{table.path}")
    ids, labels = named_rows(names, table.n)
    meta = {"base": base.source, "imported": {"published": True}, **told}
    dataset = WeightDataset.load_or_create(out, layout, base.id, meta)
    first, rows = len(dataset), min(1024, rows_within(memory, table.d))
    if dataset.ids != ids[:first]:
        raise W2WError(f"{out} holds {first} rows that are not the first of {table.path}. Choose another --out.")
    for at in track(range(first, table.n, rows), "import", f"groups of {rows} adapters"):
        stop = min(at + rows, table.n)
        dataset.append(table.rows(at, stop)[:, order].float(), ids[at:stop], labels[at:stop], dtype)
    return {**dataset.info(), "imported": len(dataset) - first}


def _import_space(
    base: Denoiser, places: Places, table: TableFile | None, out: Path, layout: Layout, order: Tensor, m: int | None, memory: float
) -> dict[str, Any]:
    space, z = read_space(places, table, base.id, layout, order, m, memory)
    space.prompting = Prompting.known(PUBLISHED)
    space.save(out / "space.safetensors")
    found: dict[str, Any] = {"space": out / "space.safetensors", "m": space.m}
    if z is None:
        return {**found, "points": None}
    ids, labels = named_rows(places.labels, len(z))
    save_points(out / "points.safetensors", z, ids, space)
    write_labels(out / LABELS, ids, labels)
    return {**found, "points": out / "points.safetensors", "labels": out / LABELS}


def import_model(path: str | Path, space: Space, out: str | Path) -> str:
    """Read one model of the published notebooks, raw coefficients [1, m], as a point of a PCA space; returns its id.

    Coefficients that the file lacks are 0, as the published code has them. Raises W2WError for more than the space has.
    """
    path, space = Path(path), _pca(space)
    raw = read_tensor(path).float()
    if raw.dim() != 2 or not 1 <= raw.shape[1] <= space.m:
        raise W2WError(f"{path} holds {list(raw.shape)}; [1, m] with m up to {space.m} was expected. Import the space with a larger --m.")
    padded = torch.cat([raw, torch.zeros(len(raw), space.m - raw.shape[1])], 1)
    ids = [path.stem] if len(raw) == 1 else [f"{path.stem}-{i}" for i in range(len(raw))]
    save_points(out, space.from_raw(padded), ids, space)
    return ids[0]


def write_model(path: str | Path, z: Tensor, space: Space) -> None:
    """Write a point z [1, m] of a PCA space as `w2wmodel.pt`: its raw coefficients [1, m] float32."""
    write_plain(Path(path), _pca(space).to_raw(z).float().contiguous())


def _pca(space: Space) -> PcaSpace:
    if not isinstance(space, PcaSpace):
        raise W2WError(f"{space.source} is a space of kind {space.kind}; published models are coefficients of a pca. Give such a space.")
    return space


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
    blocks = (rows(range(len(ids))[at : at + size]) for at in track(range(0, len(ids), size), "export", f"groups of {size} adapters"))
    write_table(folder / TABLES["people"], len(ids), layout.d, blocks)
    shapes = {f"{peft.PREFIX}{m.name}": [(m.shape[0] * m.shape[1],), torch.Size(m.shape)] for m in layout.matrices}
    write_plain(folder / DIMENSIONS, shapes)
    write_labels(folder / LABELS, ids, labels)
    write_text(folder / LAYOUT, layout.to_json())


def published_layout(base: Denoiser, path: Path, alpha: float) -> tuple[Layout, Tensor]:
    """The layout that `weight_dimensions.pt` describes, and for each of its numbers the column [d] that it stands in."""
    dimensions = load_plain(path)
    if not isinstance(dimensions, dict) or not dimensions:
        raise W2WError(f"{path} should hold a dict of key -> [(numbers,), shape].")
    shapes = {_matrix(key, path): _shape(key, value, path) for key, value in dimensions.items()}
    ranks = {shape[0] if ".lora_A." in name else shape[1] for name, shape in shapes.items()}
    if len(ranks) != 1:
        raise W2WError(f"{path} has matrices of ranks {sorted(ranks)}; one rank was expected.")
    layers = {name.rsplit(".lora_", 1)[0] for name in shapes}
    layout = layout_of(base.module, layers, ranks.pop(), alpha)
    columns, start = {}, 0
    for name, (height, width) in shapes.items():
        columns[name] = torch.arange(start, start := start + height * width).view(height, width)
    return layout, layout.flatten(columns)


def _matrix(key: Any, path: Path) -> str:
    """A layout's matrix name for a published key, such as `base_model.model.<layer>.lora_A.identity1.weight`."""
    found = re.fullmatch(r"(?:base_model\.model\.)?(?P<layer>.+)\.(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight", str(key))
    if not found:
        raise W2WError(f"{path} has the key {key}; {peft.PREFIX}<layer>.lora_A.weight and lora_B.weight were expected.")
    return f"{found['layer']}.{found['factor']}.weight"


def _shape(key: str, value: Any, path: Path) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in value[-1])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise W2WError(f"{path} says {value!r} of {key}; [(numbers,), (rows, columns)] was expected.") from error
    if not 0 < height * width < 2**40 or height < 0:
        raise W2WError(f"{path} says {value!r} of {key}; a shape of numbers above 0 was expected.")
    return height, width
