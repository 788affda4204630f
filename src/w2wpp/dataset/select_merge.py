"""Datasets out of datasets: rows picked by their labels, and several datasets in one; in a folder, or at an address.

In a folder rows are appended. At an address a dataset is made at once: its shards first, dataset.json last, without which it is none.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from w2wpp import __version__
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.files import apart
from w2wpp.common.locks import owned
from w2wpp.common.storage import Address, fill, place
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.weights import WeightDataset

Part = tuple[WeightDataset, Sequence[int]]  # a dataset, and the positions of the rows meant


def select(
    dataset: WeightDataset, where: Mapping[str, str], out: str | Path, memory: float = 2.0, dtype: torch.dtype | None = None
) -> WeightDataset:
    """Copy the rows that carry all of these labels into the dataset `out`. memory: GiB to hold at a time.

    dtype: precision of the copies; that of the rows unless given. Values are compared as text. Raises W2WError if no row carries them.
    """
    found = [i for i, labels in enumerate(dataset.labels) if all(str(labels.get(key, "")) == value for key, value in where.items())]
    if not found:
        wanted = " and ".join(f"{key}={value}" for key, value in where.items())
        known = ", ".join(dataset.labels[0]) if dataset.labels else ""
        raise W2WError(f"no row of {dataset.folder} has {wanted}; its labels are {known or 'none'}.")
    return _copied([(dataset, found)], out, dataset.meta, memory, dtype)


def merge(datasets: Sequence[WeightDataset], out: str | Path, memory: float = 2.0) -> WeightDataset:
    """Copy the rows of all datasets into the dataset `out`. memory: GiB to hold at a time.

    Raises W2WError if they are of different layouts or bases, or share an id; nothing is then written.
    """
    seen: set[str] = set()
    for dataset in datasets:
        apart(out, dataset.folder)
        datasets[0].check(dataset.layout, dataset.base_id, str(dataset.folder))
        shared = next((name for name in dataset.ids if name in seen), None)
        if shared is not None:
            raise W2WError(f"id {shared} stands in two of these datasets. Select one of them.")
        seen.update(dataset.ids)
    meta = datasets[0].meta if all(dataset.meta == datasets[0].meta for dataset in datasets) else {}  # made in more than one way
    return _copied([(dataset, range(len(dataset))) for dataset in datasets], out, meta, memory)


def copy_rows(
    dataset: WeightDataset,
    indices: Sequence[int],
    out: str | Path,
    memory: float = 2.0,
    meta: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> WeightDataset:
    """Append the rows at these positions to the dataset `out`, started if need be, in shards of 512 rows at most.

    memory: GiB to hold at a time. meta: how all rows of `out` were made; as these unless told. dtype: precision of the copies;
    that of the rows unless given.
    Raises W2WError if `out` is of another layout, base or meta, or has one of the ids.
    """
    apart(out, dataset.folder)
    target = WeightDataset.load_or_create(out, dataset.layout, dataset.base_id, dataset.meta if meta is None else meta)
    with owned(out):
        for _ in _appended(target, dataset, indices, memory, dtype):
            pass
    return target


def _copied(
    parts: Sequence[Part], out: str | Path, meta: Mapping[str, Any], memory: float, dtype: torch.dtype | None = None
) -> WeightDataset:
    """Copy rows of several datasets into `out`, in their order: a folder to append to, or an address where nothing is yet."""
    if isinstance(there := place(out), Address):
        apart(there, *(dataset.folder for dataset, _ in parts))
        what = [[dataset.fingerprint, list(indices)] for dataset, indices in parts]
        made = {
            "rows": hashlib.sha256(json.dumps(what).encode()).hexdigest(),
            "memory": memory,
            "dtype": str(dtype),
            "version": __version__,
        }
        with TemporaryDirectory(prefix="w2w-") as own:
            fill(there, made, _files(parts, Path(own) / "dataset", meta, memory, dtype))
        return WeightDataset.load(out)
    for dataset, indices in parts:
        copied = copy_rows(dataset, indices, out, memory, meta, dtype)
    return copied


def _files(
    parts: Sequence[Part], own: Path, meta: Mapping[str, Any], memory: float, dtype: torch.dtype | None
) -> Iterator[tuple[str, Path | bytes]]:
    """The files of a dataset of these rows, one after the other, so that only one shard takes room here; dataset.json comes last."""
    target = WeightDataset.create(own, parts[0][0].layout, parts[0][0].base_id, meta)
    for dataset, indices in parts:
        for _ in _appended(target, dataset, indices, memory, dtype):
            shard = target.files[-1]
            yield shard, own / shard
            (own / shard).unlink()
    yield "manifest.jsonl", (own / "manifest.jsonl").read_bytes()
    yield "dataset.json", (own / "dataset.json").read_bytes()


def _appended(
    target: WeightDataset, dataset: WeightDataset, indices: Sequence[int], memory: float, dtype: torch.dtype | None
) -> Iterator[slice]:
    """Append rows of a dataset to another, shard by shard; which of `indices` were."""
    dtype = dtype or (getattr(torch, dataset.dtypes.pop()) if len(dataset.dtypes) == 1 else torch.float32)
    for s in batches(len(indices), min(512, rows_within(memory, dataset.d))):
        part = indices[s]
        target.append(dataset.rows(part), [dataset.ids[i] for i in part], [dataset.labels[i] for i in part], dtype)
        yield s
