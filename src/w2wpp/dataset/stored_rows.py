"""The rows of a weight dataset as they lie on disk: which there are, and reading some of them without loading the others."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.base.identity import same_base
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.storage import Address, at_once, size_of
from w2wpp.dataset.shards import OpenShard, runs, sha256
from w2wpp.lora.layout import Layout
from w2wpp.lora.prompting import Prompting

Labels = dict[str, Any]


@dataclass
class StoredRows:
    """Adapters of one layout on one base, on disk or in storage, to be read."""

    folder: Path | Address
    layout: Layout
    base_id: str
    meta: dict[str, Any] = field(default_factory=dict)  # how the adapters were made
    ids: list[str] = field(default_factory=list, repr=False)
    labels: list[Labels] = field(default_factory=list, repr=False)
    _shards: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _positions: dict[str, int] = field(default_factory=dict, repr=False)  # of each id
    _known: dict[int, OpenShard] = field(default_factory=dict, repr=False, compare=False)  # in storage, with headers read before

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Numbers per adapter."""
        return self.layout.d

    @property
    def prompting(self) -> Prompting:
        """The words and guidance with which these adapters are drawn."""
        return Prompting.of(self.meta)

    @property
    def dtypes(self) -> set[str]:
        """The precisions that rows are kept in: float32, float16, bfloat16, int8."""
        return {shard["dtype"] for shard in self._shards}

    @property
    def files(self) -> list[str]:
        """The names of the dataset's files in its folder."""
        return ["dataset.json", "manifest.jsonl", *(shard["file"] for shard in self._shards)]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify these rows, from ids and checksums. A copy of the dataset has the same."""
        digest = hashlib.sha256(json.dumps([self.base_id, self.ids]).encode())
        for shard in self._shards:
            digest.update(shard["sha256"].encode())
        return digest.hexdigest()[:16]

    @property
    def _widths(self) -> list[int]:
        """How many numbers each matrix of a row has, in order."""
        return [math.prod(matrix.shape) for matrix in self.layout.matrices]

    def check(self, layout: Layout, base_id: str, who: str) -> None:
        """Raise W2WError unless adapters of `who` could stand in this dataset."""
        self.layout.check_same(layout, str(self.folder), who)
        if not same_base(base_id, self.base_id):
            raise W2WError(f"{self.folder} holds adapters of base {self.base_id}; {who} belongs to base {base_id}.")

    def where(self, **labels: Any) -> list[int]:
        """Positions of the rows that carry all these labels, for example `where(split="train", half="")`."""
        return [i for i, found in enumerate(self.labels) if all(found.get(key) == value for key, value in labels.items())]

    def index_of(self, name: str) -> int:
        """The position of a row by its id. Raises W2WError if it is not there."""
        if name not in self._positions:
            raise W2WError(f"{self.folder} has no row {name!r}; it has {len(self)} such as {', '.join(self.ids[:3])}.")
        return self._positions[name]

    def rows(self, indices: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows by position, [k, d] in `dtype`; all of them unless given. Reads no others from disk.

        Raises W2WError for a position that is not there, or a shard that is missing or cut short.
        """
        wanted = self._checked(range(len(self)) if indices is None else indices)
        out = torch.empty(len(wanted), self.d, dtype=dtype)

        def read(opened: OpenShard, row: int, place: int, length: int) -> None:
            opened.read(row, out[place : place + length])

        self._each(wanted, read)
        return out

    def columns(self, start: int, stop: int, indices: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers `start` to `stop` of rows by position, [k, stop - start] in `dtype`; of all rows unless given.

        Reads no others from disk. Raises W2WError for what is not there, or a shard that is missing or cut short.
        """
        if not 0 <= start <= stop <= self.d:
            raise W2WError(f"{self.folder} has {self.d} numbers a row; columns {start} to {stop} are not there.")
        wanted = self._checked(range(len(self)) if indices is None else indices)
        out = torch.empty(len(wanted), stop - start, dtype=dtype)

        def read(opened: OpenShard, row: int, place: int, length: int) -> None:
            opened.read_columns(row, start, out[place : place + length])

        self._each(wanted, read)
        return out

    def blocks(self, rows: int = 512) -> Iterator[Tensor]:
        """All rows in order, [at most `rows`, d] float32 at a time."""
        for s in batches(len(self), rows):
            yield self.rows(range(s.start, s.stop))

    def verify(self) -> None:
        """Read every shard again, piece by piece. Raises W2WError naming the rows of one whose checksum differs.

        Also where shards lie there that the manifest does not name: one is what a killed writer leaves, more are not.
        """
        for number, shard in enumerate(self._shards):
            path, rows = self.folder / shard["file"], [row["id"] for row in shard["rows"]]
            if size_of(path) is not None and sha256(path) == shard["sha256"]:
                continue
            damaged = self._damaged_rows(number)
            if damaged:
                raise W2WError(f"{path} is damaged: row {', '.join(damaged)} cannot be trusted, the others can. Train it again.")
            raise W2WError(f"{path} is damaged: rows {rows[0]} to {rows[-1]} ({len(rows)}) cannot be trusted. Train them again.")
        if len(unlisted := self.unlisted()) > 1:
            manifest = self.folder / "manifest.jsonl"
            raise W2WError(f"{manifest} names {len(self._shards)} shards, and {', '.join(unlisted)} lie there too. Was it cut?")

    def unlisted(self) -> list[str]:
        """Shards that no line of the manifest names, sorted: what a kill left, or of a manifest that was cut short."""
        named = {Path(shard["file"]).name for shard in self._shards}
        return sorted(self._lying().keys() - named)

    def _lying(self) -> dict[str, int]:
        """The shards that lie there, named or not: bytes of each."""
        folder = self.folder / "shards"
        found = folder.files() if isinstance(folder, Address) else {path.name: size_of(path) or 0 for path in folder.glob("*")}
        return {name: size for name, size in found.items() if name.endswith(".safetensors")}

    def _damaged_rows(self, shard: int) -> list[str]:
        """The ids of the rows of a damaged shard whose numbers changed; none where more than numbers is damaged."""
        rows = self._shards[shard]["rows"]
        if any("crc32" not in row for row in rows):
            return []
        try:
            with self._opened(shard) as opened:
                return [row["id"] for i, row in enumerate(rows) if row["crc32"] != opened.row_sum(i)]
        except W2WError:
            return []

    def info(self) -> dict[str, Any]:
        """What the dataset holds, as plain values."""
        people = {label.get("person", name) for name, label in zip(self.ids, self.labels, strict=True)}
        lying = self._lying()
        return {
            "folder": str(self.folder),
            "n": len(self),
            "d": self.d,
            "people": len(people),
            "second_adapters": sum(label.get("half") == "b" for label in self.labels),
            "splits": dict(Counter(label["split"] for label in self.labels if label.get("split"))),
            "rank": self.layout.rank,
            "alpha": self.layout.alpha,
            "targets": list(self.layout.targets),
            "matrices": len(self.layout.matrices),
            "base_id": self.base_id,
            "shards": len(self._shards),
            "unlisted_shards": len(self.unlisted()),
            "bytes": sum(lying.get(Path(shard["file"]).name, 0) for shard in self._shards),
            "meta": self.meta,
        }

    def _checked(self, indices: Sequence[int]) -> Sequence[int]:
        """These positions. Raises W2WError for one that is not there."""
        if len(indices):
            for index in (min(indices), max(indices)):
                if not 0 <= index < len(self):
                    raise W2WError(f"{self.folder} has {len(self)} rows; row {index} is not there.")
        return indices

    def _each(self, indices: Sequence[int], read: Callable[[OpenShard, int, int, int], None]) -> None:
        """Read from every shard that holds some of these positions: in order from disk, many at once from storage."""

        def one(shard: int, reads: Iterable[tuple[int, int, int, int]]) -> None:
            with self._opened(shard) as opened:
                for _, row, place, length in reads:
                    read(opened, row, place, length)

        if isinstance(self.folder, Address):
            at_once(lambda work: one(*work), [(shard, list(reads)) for shard, reads in self._reads(indices)])
            return
        for shard, reads in self._reads(indices):
            one(shard, reads)

    def _reads(self, indices: Sequence[int]) -> Iterator[tuple[int, Iterator[tuple[int, int, int, int]]]]:
        """What to read for these positions, shard by shard (see `shards.runs`)."""
        return groupby(runs(indices, [shard["start"] for shard in self._shards]), lambda read: read[0])

    def _opened(self, shard: int) -> OpenShard:
        if shard in self._known:
            return self._known[shard]
        about = self._shards[shard]
        opened = OpenShard(self.folder / about["file"], len(about["rows"]), self.d, about["dtype"], self._widths)
        if isinstance(self.folder, Address):
            self._known[shard] = opened
        return opened
