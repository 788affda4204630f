"""The weight dataset: thousands of adapters as rows of one table `weights [n, d]`, read without loading all of it.

A folder: `dataset.json` (layout, base, how the adapters were made), `shards/NNNNNN.safetensors` (tensor `weights`),
and `manifest.jsonl`, a line a shard with its rows' ids, labels and checksums and its own checksum. A shard is written
aside, synced and renamed before its line is appended, so a killed writer leaves the dataset as it was. Writers take
turns by a lock on the folder, and each sees what the others added before it adds.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2wpp.base_model import ASSETS
from w2wpp.errors import W2WError
from w2wpp.files import read_json, write_json, write_tensors
from w2wpp.images import batches
from w2wpp.layout import Layout

FORMAT = "w2wpp-weights-1"
Labels = dict[str, Any]


@dataclass
class WeightDataset:
    """Adapters of one layout on one base, on disk."""

    folder: Path
    layout: Layout
    base_id: str
    meta: dict[str, Any] = field(default_factory=dict)  # how the adapters were made
    ids: list[str] = field(default_factory=list, repr=False)
    labels: list[Labels] = field(default_factory=list, repr=False)
    _shards: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @classmethod
    def create(cls, folder: str | Path, layout: Layout, base_id: str, meta: Mapping[str, Any] | None = None) -> "WeightDataset":
        """Start an empty dataset. Raises W2WError if the folder holds one already."""
        folder = Path(folder)
        if (folder / "dataset.json").exists():
            raise W2WError(f"{folder} holds a weight dataset already. Choose another folder.")
        described = {"format": FORMAT, "base_id": base_id, "layout": json.loads(layout.to_json()), "meta": dict(meta or {})}
        write_json(folder / "dataset.json", described)
        return cls(folder, layout, base_id, dict(meta or {}))

    @classmethod
    def open(cls, folder: str | Path) -> "WeightDataset":
        """Open a dataset folder, or `tiny-faces`, the embedded one. Raises W2WError if it is none.

        A last manifest line that a kill cut short is left out; so are shards that no line names.
        """
        folder = ASSETS / "tiny_faces" / "weights" if str(folder) == "tiny-faces" else Path(folder)
        if not (folder / "dataset.json").is_file():
            raise W2WError(f"{folder} is not a weight dataset: it has no dataset.json. Make one with `w2w adapters train`.")
        described = read_json(folder / "dataset.json")
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise W2WError(f"{folder}/dataset.json is not of format {FORMAT}.")
        try:
            layout = Layout.from_json(json.dumps(described["layout"]))
            dataset = cls(folder, layout, described["base_id"], described["meta"])
        except KeyError as error:
            raise W2WError(f"{folder}/dataset.json lacks {error}. Was it written by w2w?") from error
        dataset.refresh()
        return dataset

    def refresh(self) -> None:
        """Take in what other writers added since this dataset was opened. Raises W2WError if the manifest is damaged."""
        try:
            for line in self._manifest_lines()[len(self._shards) :]:
                self._take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise W2WError(
                f"{self.folder}/manifest.jsonl is damaged at shard {len(self._shards)} ({error}). Take it from a copy."
            ) from error

    @classmethod
    def open_or_create(cls, folder: str | Path, layout: Layout, base_id: str, meta: Mapping[str, Any]) -> "WeightDataset":
        """Open a dataset to append to, or start it. Raises W2WError if it is of another layout, base or making."""
        if not (Path(folder) / "dataset.json").exists():
            return cls.create(folder, layout, base_id, meta)
        dataset = cls.open(folder)
        if not dataset.ids:  # started, but nothing was added: what was meant first does not bind
            (Path(folder) / "dataset.json").unlink()
            return cls.create(folder, layout, base_id, meta)
        dataset.check(layout, base_id, "these adapters")
        wanted = json.loads(json.dumps(dict(meta)))
        if dataset.meta != wanted:
            keys = sorted(key for key in {*dataset.meta, *wanted} if dataset.meta.get(key) != wanted.get(key))
            found, expected = dataset.meta.get(keys[0]), wanted.get(keys[0])
            raise W2WError(f"{folder} was made with {keys[0]} {found}, not {expected}. Use the same options, or another folder.")
        return dataset

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Numbers an adapter."""
        return self.layout.d

    @property
    def fingerprint(self) -> str:
        """Which rows these are: 16 hex digits over ids and checksums. A copy of the dataset has the same."""
        digest = hashlib.sha256(json.dumps([self.base_id, self.ids]).encode())
        for shard in self._shards:
            digest.update(shard["sha256"].encode())
        return digest.hexdigest()[:16]

    def check(self, layout: Layout, base_id: str, who: str) -> None:
        """Raise W2WError unless adapters of `who` could stand in this dataset."""
        self.layout.check_same(layout, str(self.folder), who)
        if base_id != self.base_id:
            raise W2WError(f"{self.folder} holds adapters of base {self.base_id}; {who} belongs to base {base_id}.")

    def append(
        self, weights: Tensor, ids: Sequence[str], labels: Sequence[Labels] | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Add rows [n, d] as one shard, kept in `dtype`. The dataset has all of them afterwards, or none.

        Raises W2WError for another d, NaN or infinite weights, or an id that is already there.
        """
        labels = list(labels or [{} for _ in ids])
        if not len(weights) == len(ids) == len(labels):
            raise W2WError(f"{len(weights)} rows of weights for {len(ids)} ids and {len(labels)} labels; they must be as many.")
        self.layout.check_width(weights.shape[-1], f"row {ids[0]}" if ids else "nothing")
        kept = weights.detach().to("cpu", dtype)
        bad = (~torch.isfinite(kept)).any(1)
        if bad.any():
            raise W2WError(f"row {ids[int(bad.nonzero()[0])]} has weights that are not numbers in {dtype}. Leave it out or train it again.")
        sums = _row_sums(kept)
        rows = [{"id": name, "labels": label, "crc32": crc} for name, label, crc in zip(ids, labels, sums, strict=True)]
        with self._turn():
            self.refresh()
            repeated = [name for name, count in Counter([*self.ids, *ids]).items() if count > 1]
            if repeated:
                raise W2WError(f"id {repeated[0]} would stand twice in {self.folder}. Give every row an id of its own.")
            file = f"shards/{len(self._shards):06d}.safetensors"
            write_tensors(self.folder / file, {"weights": kept})
            line = {"file": file, "dtype": str(dtype).removeprefix("torch."), "sha256": _sha256(self.folder / file), "rows": rows}
            self._append_line(json.dumps(line, ensure_ascii=False))
            self._take(line)

    def rows(self, indices: Sequence[int] | None = None) -> Tensor:
        """Rows by position, [k, d] float32; all of them unless told. Reads no others from disk.

        Raises W2WError for a position that is not there, or a shard that is missing or cut short.
        """
        wanted = range(len(self)) if indices is None else indices
        out = torch.empty(len(wanted), self.d)
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for place, index in enumerate(wanted):
            if not 0 <= index < len(self):
                raise W2WError(f"{self.folder} has {len(self)} rows; row {index} is not there.")
            shard, row = self._place(index)
            by_shard.setdefault(shard, []).append((place, row))
        for shard, pairs in by_shard.items():
            with self._opened(shard) as tensor:
                for (place, row), length in _stretches(pairs):
                    out[place : place + length] = tensor[row : row + length]
        return out

    def blocks(self, rows: int = 512) -> Iterator[Tensor]:
        """All rows in order, [at most `rows`, d] float32 at a time."""
        for s in batches(len(self), rows):
            yield self.rows(range(s.start, s.stop))

    def where(self, **labels: Any) -> list[int]:
        """Positions of the rows that carry all these labels, for example `where(split="train", half="")`."""
        return [i for i, found in enumerate(self.labels) if all(found.get(key) == value for key, value in labels.items())]

    def copy_to(self, out: str | Path, indices: Sequence[int], rows: int = 512) -> "WeightDataset":
        """Append the rows at these positions to the dataset `out`, started if need be, in shards of `rows`.

        Raises W2WError if `out` is of another layout or base, or has one of the ids. This is how datasets are merged.
        """
        if (Path(out) / "dataset.json").exists():
            target = WeightDataset.open(out)
            target.check(self.layout, self.base_id, str(self.folder))
        else:
            target = WeightDataset.create(out, self.layout, self.base_id, self.meta)
        dtypes = {getattr(torch, shard["dtype"]) for shard in self._shards}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        for s in batches(len(indices), rows):
            part = indices[s]
            target.append(self.rows(part), [self.ids[i] for i in part], [self.labels[i] for i in part], dtype)
        return target

    def index_of(self, name: str) -> int:
        """The position of a row by its id. Raises W2WError if it is not there."""
        if name not in self.ids:
            raise W2WError(f"{self.folder} has no row {name!r}; it has {len(self)} such as {', '.join(self.ids[:3])}.")
        return self.ids.index(name)

    def verify(self) -> None:
        """Read every shard again. Raises W2WError naming the rows of one whose checksum differs."""
        for number, shard in enumerate(self._shards):
            path, rows = self.folder / shard["file"], [row["id"] for row in shard["rows"]]
            if path.is_file() and _sha256(path) == shard["sha256"]:
                continue
            damaged = self._damaged_rows(number)
            if damaged:
                raise W2WError(f"{path} is damaged: row {', '.join(damaged)} cannot be trusted, the others can. Train it again.")
            raise W2WError(f"{path} is damaged: rows {rows[0]} to {rows[-1]} ({len(rows)}) cannot be trusted. Train them again.")

    def _damaged_rows(self, shard: int) -> list[str]:
        """The ids of the rows of a damaged shard whose numbers changed; none where more than numbers is damaged."""
        rows = self._shards[shard]["rows"]
        if any("crc32" not in row for row in rows):
            return []
        try:
            with self._opened(shard) as tensor:
                found = _row_sums(tensor[:])
        except W2WError:
            return []
        return [row["id"] for row, crc in zip(rows, found, strict=True) if row["crc32"] != crc]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the folder's lock, which the system drops when a process dies."""
        with (self.folder / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def info(self) -> dict[str, Any]:
        """What the dataset holds, as plain values."""
        people = {label.get("person", name) for name, label in zip(self.ids, self.labels, strict=True)}
        return {
            "folder": str(self.folder),
            "n": len(self),
            "d": self.d,
            "people": len(people),
            "second_adapters": sum(label.get("half") == "b" for label in self.labels),
            "splits": dict(Counter(label.get("split", "") for label in self.labels)),
            "rank": self.layout.rank,
            "alpha": self.layout.alpha,
            "targets": list(self.layout.targets),
            "matrices": len(self.layout.matrices),
            "base_id": self.base_id,
            "shards": len(self._shards),
            "bytes": sum((self.folder / shard["file"]).stat().st_size for shard in self._shards),
            "meta": self.meta,
        }

    def _take(self, line: dict[str, Any]) -> None:
        self._shards.append({**line, "start": len(self.ids)})
        self.ids += [row["id"] for row in line["rows"]]
        self.labels += [row["labels"] for row in line["rows"]]

    def _place(self, index: int) -> tuple[int, int]:
        for number, shard in enumerate(self._shards):
            if index < shard["start"] + len(shard["rows"]):
                return number, index - shard["start"]
        raise IndexError(index)

    def _opened(self, shard: int) -> "_OpenShard":
        return _OpenShard(self.folder / self._shards[shard]["file"], len(self._shards[shard]["rows"]), self.d)

    def _manifest_lines(self) -> list[bytes]:
        path = self.folder / "manifest.jsonl"
        # Bytes: a kill may cut a line within a letter, and only b"\n" ends one (a name may hold U+2028).
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [line for line in lines if line.endswith(b"\n")]

    def _append_line(self, line: str) -> None:
        path = self.folder / "manifest.jsonl"
        whole = sum(len(kept) for kept in self._manifest_lines())
        try:
            with path.open("ab") as handle:
                handle.truncate(whole)  # what a kill left of an unfinished line
                handle.write(line.encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            if path.exists():
                os.truncate(path, whole)
            raise W2WError(f"cannot write {path}: {error.strerror}. Nothing was added.") from error


class _OpenShard:
    """A shard's `weights`, sliced lazily; its errors name the file."""

    def __init__(self, path: Path, rows: int, d: int) -> None:
        self.path, self.shape = path, [rows, d]

    def __enter__(self) -> Any:
        try:
            self._file = safe_open(self.path, framework="pt")
            tensor = self._file.get_slice("weights")
        except (OSError, SafetensorError) as error:
            raise W2WError(f"{self.path} does not read ({error}). Was it cut short? Run `w2w dataset info --verify`.") from error
        if tensor.get_shape() != self.shape:
            raise W2WError(f"{self.path} holds weights {tensor.get_shape()}; the manifest expects {self.shape}.")
        return tensor

    def __exit__(self, *_: object) -> None:
        del self._file


def _row_sums(weights: Tensor) -> list[int]:
    """A checksum a row of weights [n, d], over the bytes on disk."""
    return [zlib.crc32(row.numpy().tobytes()) for row in weights.contiguous().view(torch.uint8)]


def _stretches(pairs: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int]]:
    """Runs of (place, row) in which both go up by one: their first pair and length. One read each."""
    first, length = 0, 0
    for i, (place, row) in enumerate(pairs):
        if length and (place, row) != (pairs[first][0] + length, pairs[first][1] + length):
            yield pairs[first], length
            first, length = i, 0
        length += 1
    if length:
        yield pairs[first], length


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
