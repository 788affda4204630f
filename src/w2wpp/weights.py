"""The weight dataset: thousands of adapters as rows of one table `weights [n, d]`, read without loading all of it.

A folder: `dataset.json` (layout, base, how the adapters were made), `shards/NNNNNN.safetensors` (tensor `weights`),
and `manifest.jsonl`, a line a shard with its rows' ids, labels and checksums and its own checksum; a line may also set
labels anew. A shard is written aside, synced and renamed before its line is appended, so a killed writer leaves the
dataset as it was. Writers take turns by a lock on the folder, and each sees what the others added before it adds.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.base_model import ASSETS
from w2wpp.errors import W2WError
from w2wpp.files import read_json, write_json, write_tensors
from w2wpp.images import batches
from w2wpp.layout import Layout
from w2wpp.manifest import Manifest, sealed, unsealed
from w2wpp.shards import PRECISIONS, OpenShard, row_sums, runs, sha256

FORMAT = "w2wpp-weights-1"
SHARD = re.compile(r"shards/\d{6,}\.safetensors")
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
    _positions: dict[str, int] = field(default_factory=dict, repr=False)  # of each id

    def __post_init__(self) -> None:
        self._manifest = Manifest(self.folder / "manifest.jsonl")

    @classmethod
    def create(cls, folder: str | Path, layout: Layout, base_id: str, meta: Mapping[str, Any] | None = None) -> "WeightDataset":
        """Start an empty dataset. Raises W2WError if the folder holds one already."""
        folder = Path(folder)
        if (folder / "dataset.json").exists():
            raise W2WError(f"{folder} holds a weight dataset already. Choose another folder.")
        described = {"format": FORMAT, "base_id": base_id, "layout": json.loads(layout.to_json()), "meta": dict(meta or {})}
        write_json(folder / "dataset.json", sealed(described))
        return cls(folder, layout, base_id, dict(meta or {}))

    @classmethod
    def open(cls, folder: str | Path) -> "WeightDataset":
        """Open a dataset folder, or `tiny-faces`, the embedded one. Raises W2WError if it is none, or was altered.

        A last manifest line that a kill cut short is left out; so are shards that no line names.
        """
        folder = ASSETS / "tiny_faces" / "weights" if str(folder) == "tiny-faces" else Path(folder)
        if not (folder / "dataset.json").is_file():
            raise W2WError(f"{folder} is not a weight dataset: it has no dataset.json. Make one with `w2w adapters train`.")
        described = read_json(folder / "dataset.json")
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise W2WError(f"{folder}/dataset.json is not of format {FORMAT}.")
        try:
            described = unsealed(described)
            layout = Layout.from_json(json.dumps(described["layout"]))
            dataset = cls(folder, layout, described["base_id"], described["meta"])
        except KeyError as error:
            raise W2WError(f"{folder}/dataset.json lacks {error}. Was it written by w2w?") from error
        except ValueError as error:
            raise W2WError(f"{folder}/dataset.json was altered ({error}). Take it from a copy.") from error
        dataset.refresh()
        return dataset

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
            saved, asked = _flat(dataset.meta), _flat(wanted)
            differing = [key for key in {**asked, **saved} if saved.get(key, "unsaid") != asked.get(key, "unsaid")]
            key = min(differing, key=lambda key: ("." in key, key))  # what was made otherwise says more than one of its options
            found, given = (of.get(key, "unsaid") for of in (saved, asked))
            raise W2WError(f"{folder} was made with {key} {found}, these with {given}. Use another folder, or the same options.")
        return dataset

    def refresh(self) -> None:
        """Take in what other writers added since this dataset was opened. Raises W2WError if the manifest is damaged."""
        try:
            for line in self._manifest.new_lines():
                self._take(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise W2WError(f"{self._manifest.path} is damaged at shard {len(self._shards)} ({error!r}). Take it from a copy.") from error

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Numbers an adapter."""
        return self.layout.d

    @property
    def dtypes(self) -> set[str]:
        """The precisions that rows are kept in: float32, float16, bfloat16."""
        return {shard["dtype"] for shard in self._shards}

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

        Raises W2WError for another d, NaN or infinite weights, an id that is already there or no text, or labels that
        JSON cannot hold.
        """
        labels = list(labels or [{} for _ in ids])
        if not len(weights) == len(ids) == len(labels):
            raise W2WError(f"{len(weights)} rows of weights for {len(ids)} ids and {len(labels)} labels; they must be as many.")
        self.layout.check_width(weights.shape[-1], f"row {ids[0]}" if ids else "nothing")
        for name, label in zip(ids, labels, strict=True):
            _check_writable(name, label)
        kept = weights.detach().to("cpu", dtype)
        bad = (~torch.isfinite(kept)).any(1)
        if bad.any():
            raise W2WError(f"row {ids[int(bad.nonzero()[0])]} has weights that are not numbers in {dtype}. Leave it out or train it again.")
        sums = row_sums(kept)
        rows = [{"id": name, "labels": label, "crc32": crc} for name, label, crc in zip(ids, labels, sums, strict=True)]
        with self._manifest.turn():
            self.refresh()
            repeated = [name for name in ids if name in self._positions] or [name for name, count in Counter(ids).items() if count > 1]
            if repeated:
                raise W2WError(f"id {repeated[0]} would stand twice in {self.folder}. Give every row an id of its own.")
            for aside in (self.folder / "shards").glob(".*"):  # of writers that were killed: nobody else writes now
                aside.unlink()
            file = f"shards/{len(self._shards):06d}.safetensors"
            write_tensors(self.folder / file, {"weights": kept})
            line = {"file": file, "dtype": str(dtype).removeprefix("torch."), "sha256": sha256(self.folder / file), "rows": rows}
            try:
                self._manifest.append(line)
            except W2WError:
                with suppress(OSError):
                    (self.folder / file).unlink()
                raise
            self._take(line)

    def set_labels(self, labels: Mapping[str, Labels]) -> None:
        """Give the rows with these ids other labels, all of them anew. Either all rows change, or none.

        Raises W2WError naming an id that is not there, or labels that JSON cannot hold.
        """
        for name, label in labels.items():
            _check_writable(name, label)
        with self._manifest.turn():
            self.refresh()
            for name in labels:
                self.index_of(name)
            line = {"labels": dict(labels)}
            self._manifest.append(line)
            self._take(line)

    def rows(self, indices: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows by position, [k, d] in `dtype`; all of them unless told. Reads no others from disk.

        Raises W2WError for a position that is not there, or a shard that is missing or cut short.
        """
        wanted = self._checked(range(len(self)) if indices is None else indices)
        out = torch.empty(len(wanted), self.d, dtype=dtype)
        for shard, reads in self._reads(wanted):
            with self._opened(shard) as opened:
                for _, row, place, length in reads:
                    opened.read(row, out[place : place + length])
        return out

    def columns(self, start: int, stop: int, indices: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers `start` to `stop` of rows by position, [k, stop - start] in `dtype`; of all rows unless told.

        Reads no others from disk. Raises W2WError for what is not there, or a shard that is missing or cut short.
        """
        if not 0 <= start <= stop <= self.d:
            raise W2WError(f"{self.folder} has {self.d} numbers a row; columns {start} to {stop} are not there.")
        wanted = self._checked(range(len(self)) if indices is None else indices)
        out = torch.empty(len(wanted), stop - start, dtype=dtype)
        for shard, reads in self._reads(wanted):
            with self._opened(shard) as opened:
                for _, row, place, length in reads:
                    opened.read_columns(row, start, out[place : place + length])
        return out

    def blocks(self, rows: int = 512) -> Iterator[Tensor]:
        """All rows in order, [at most `rows`, d] float32 at a time."""
        for s in batches(len(self), rows):
            yield self.rows(range(s.start, s.stop))

    def where(self, **labels: Any) -> list[int]:
        """Positions of the rows that carry all these labels, for example `where(split="train", half="")`."""
        return [i for i, found in enumerate(self.labels) if all(found.get(key) == value for key, value in labels.items())]

    def index_of(self, name: str) -> int:
        """The position of a row by its id. Raises W2WError if it is not there."""
        if name not in self._positions:
            raise W2WError(f"{self.folder} has no row {name!r}; it has {len(self)} such as {', '.join(self.ids[:3])}.")
        return self._positions[name]

    def verify(self) -> None:
        """Read every shard again, piece by piece. Raises W2WError naming the rows of one whose checksum differs.

        Also where shards lie there that the manifest does not name: one is what a killed writer leaves, more are not.
        """
        for number, shard in enumerate(self._shards):
            path, rows = self.folder / shard["file"], [row["id"] for row in shard["rows"]]
            if path.is_file() and sha256(path) == shard["sha256"]:
                continue
            damaged = self._damaged_rows(number)
            if damaged:
                raise W2WError(f"{path} is damaged: row {', '.join(damaged)} cannot be trusted, the others can. Train it again.")
            raise W2WError(f"{path} is damaged: rows {rows[0]} to {rows[-1]} ({len(rows)}) cannot be trusted. Train them again.")
        unlisted = self.unlisted()
        if len(unlisted) > 1:
            raise W2WError(f"{self._manifest.path} names {len(self._shards)} shards, and {', '.join(unlisted)} lie there too. Was it cut?")

    def unlisted(self) -> list[str]:
        """Shards that no line of the manifest names, sorted: what a kill left, or of a manifest that was cut short."""
        named = {Path(shard["file"]).name for shard in self._shards}
        return sorted({path.name for path in (self.folder / "shards").glob("*.safetensors")} - named)

    def _damaged_rows(self, shard: int) -> list[str]:
        """The ids of the rows of a damaged shard whose numbers changed; none where more than numbers is damaged."""
        rows = self._shards[shard]["rows"]
        if any("crc32" not in row for row in rows):
            return []
        try:
            damaged, kept = [], torch.empty(1, self.d, dtype=getattr(torch, self._shards[shard]["dtype"]))
            with self._opened(shard) as opened:
                for i, row in enumerate(rows):
                    opened.read(i, kept)
                    if row["crc32"] != row_sums(kept)[0]:
                        damaged.append(row["id"])
            return damaged
        except W2WError:
            return []

    def info(self) -> dict[str, Any]:
        """What the dataset holds, as plain values."""
        people = {label.get("person", name) for name, label in zip(self.ids, self.labels, strict=True)}
        files = [self.folder / shard["file"] for shard in self._shards]
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
            "unlisted_shards": len(self.unlisted()),
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "meta": self.meta,
        }

    def _take(self, line: dict[str, Any]) -> None:
        """Take in one line of the manifest: a shard, or labels. Raises ValueError, KeyError or TypeError if it is neither."""
        if "labels" in line:
            for name, label in line["labels"].items():
                self.labels[self._positions[name]] = dict(label)
            return
        # A path from elsewhere, such as ../x, must not be read as a shard.
        if not SHARD.fullmatch(line["file"]) or line["dtype"] not in PRECISIONS:
            raise ValueError(f"file {line['file']}, dtype {line['dtype']}")
        names, told = [str(row["id"]) for row in line["rows"]], [dict(row["labels"]) for row in line["rows"]]
        positions = {name: len(self.ids) + i for i, name in enumerate(names)}
        if len(positions) < len(names) or not self._positions.keys().isdisjoint(positions):
            raise ValueError("an id stands twice")
        self._shards.append({**line, "start": len(self.ids)})
        self._positions |= positions
        self.ids += names
        self.labels += told

    def _checked(self, indices: Sequence[int]) -> Sequence[int]:
        """These positions. Raises W2WError for one that is not there."""
        if len(indices):
            for index in (min(indices), max(indices)):
                if not 0 <= index < len(self):
                    raise W2WError(f"{self.folder} has {len(self)} rows; row {index} is not there.")
        return indices

    def _reads(self, indices: Sequence[int]) -> Iterator[tuple[int, Iterator[tuple[int, int, int, int]]]]:
        """What to read for these positions, shard by shard (see `shards.runs`)."""
        return groupby(runs(indices, [shard["start"] for shard in self._shards]), lambda read: read[0])

    def _opened(self, shard: int) -> OpenShard:
        about = self._shards[shard]
        return OpenShard(self.folder / about["file"], len(about["rows"]), self.d, about["dtype"])


def _check_writable(name: str, labels: Labels) -> None:
    """Raise W2WError unless an id and its labels can stand in a JSON line."""
    if not isinstance(name, str) or not name:
        raise W2WError(f"a row has the id {name!r}; a text was expected.")
    try:
        json.dumps([name, labels], ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError
        raise W2WError(f"row {name!r} has an id or labels that cannot be written ({error}). Give text and numbers.") from error


def _flat(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings in `meta` opened: {"adapters": {"lr": 1}} is {"adapters.lr": 1}."""
    opened: dict[str, Any] = {}
    for key, value in meta.items():
        opened |= {f"{key}.{name}": part for name, part in value.items()} if value and isinstance(value, Mapping) else {key: value}
    return opened
