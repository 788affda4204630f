"""The weight dataset: thousands of adapters as rows of one table `weights [n, d]`, read without loading all of it.

A folder: `dataset.json` (layout, base, how the adapters were made), `shards/NNNNNN.safetensors` (tensor `weights`),
and `manifest.jsonl`, one line per shard with its rows' ids, labels and checksums and its own checksum; a line may also set
labels anew. A shard is written aside, synced and renamed before its line is appended, so a killed writer leaves the
dataset as it was. Writers take turns by a lock on the folder, and each sees what the others added before it adds.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.common.assets import located
from w2wpp.common.errors import W2WError
from w2wpp.common.files import ASIDE, read_json, write_json, write_tensors
from w2wpp.common.hub import Token, fetched, pushed
from w2wpp.common.locks import sweep
from w2wpp.common.storage import Address, here
from w2wpp.dataset.manifest import Manifest, sealed, unsealed
from w2wpp.dataset.pretrained import PATTERNS, published_files, write_folder
from w2wpp.dataset.quantised import quantised
from w2wpp.dataset.shards import PRECISIONS, row_sums, sha256
from w2wpp.dataset.stored_rows import Labels, StoredRows
from w2wpp.lora.layout import Layout

FORMAT = "w2wpp-weights-1"
AWAY = "Make the dataset here, and copy it there with `w2w dataset merge`."
SHARD = re.compile(r"shards/\d{6,}\.safetensors")


@dataclass
class WeightDataset(StoredRows):
    """Adapters of one layout on one base, on disk."""

    def __post_init__(self) -> None:
        self._described = _bytes(self.folder / "dataset.json")
        self._manifest = Manifest(self.folder / "manifest.jsonl")
        self._swept = False  # whether what killed writers left aside was looked for

    @classmethod
    def create(cls, folder: str | Path, layout: Layout, base_id: str, meta: Mapping[str, Any] | None = None) -> "WeightDataset":
        """Start an empty dataset. Raises W2WError if the folder holds one already."""
        folder = here(folder, AWAY)
        if (folder / "dataset.json").exists():
            raise W2WError(f"{folder} holds a weight dataset already. Choose another folder.")
        return cls._start(folder, layout, base_id, meta)

    @classmethod
    def _start(cls, folder: Path, layout: Layout, base_id: str, meta: Mapping[str, Any] | None) -> "WeightDataset":
        described = {"format": FORMAT, "base_id": base_id, "layout": json.loads(layout.to_json()), "meta": dict(meta or {})}
        write_json(folder / "dataset.json", sealed(described))
        return cls(folder, layout, base_id, dict(meta or {}))

    @classmethod
    def load(cls, folder: str | Path) -> "WeightDataset":
        """Open a dataset folder, also at an address of a storage, or `tiny-faces`, the embedded one.

        Raises W2WError if it is none, or was altered.

        A last manifest line that a kill cut short is left out; so are shards that no line names.
        """
        return cls._opened_in(located(folder, "weights"))

    @classmethod
    def _opened_in(cls, folder: Path | Address) -> "WeightDataset":
        if not (folder / "dataset.json").is_file():
            inside = [] if isinstance(folder, Address) else [str(found.parent) for found in sorted(folder.glob("*/dataset.json"))]
            listed = f"Name one of the datasets in it: {', '.join(inside)}"
            todo = listed if inside else "Make one with `w2w adapters train` or `w2w import`"
            raise W2WError(f"{folder} is not a weight dataset: it has no dataset.json. {todo}.")
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
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, token: Token = None, local_files_only: bool = False
    ) -> "WeightDataset":
        """Load a dataset from disk, as `load`, or from the Hugging Face hub by its id; what is on disk comes first.

        revision: a branch, tag or commit. token: of the hub; True for the saved one. local_files_only: only what was
        fetched before. Raises W2WError as `load`, or if the hub does not have it.
        """
        return cls.load(fetched(source, PATTERNS, revision=revision, token=token, local_files_only=local_files_only))

    def save_pretrained(self, folder: str | Path, *, licence: str = "unknown") -> None:
        """Copy the dataset into a new folder, also at an address, with a card. Raises W2WError if the folder holds something."""
        write_folder(folder, published_files(self, licence, Path(folder).name), {"rows": self.fingerprint})

    def push_to_hub(
        self,
        repo: str,
        *,
        licence: str = "unknown",
        revision: str | None = None,
        token: Token = None,
        private: bool | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to a repository of the hub, made if need be; returns the commit's URL.

        revision: the branch. Raises W2WError if the hub refuses.
        """
        files = published_files(self, licence, repo)
        return pushed(repo, files, message=f"{len(self)} adapters", revision=revision, token=token, private=private)

    @classmethod
    def load_or_create(cls, folder: str | Path, layout: Layout, base_id: str, meta: Mapping[str, Any]) -> "WeightDataset":
        """Open a dataset to append to, or start it. Raises W2WError if it is of another layout, base or making."""
        folder = here(folder, AWAY)
        if not (folder / "dataset.json").exists():
            return cls.create(folder, layout, base_id, meta)
        dataset = cls.load(folder)
        if not dataset.ids:  # started, but nothing was added: what was meant first does not bind
            with dataset._manifest.turn():
                dataset.refresh()
                if not dataset.ids:
                    return cls._start(folder, layout, base_id, meta)
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

    def append(
        self, weights: Tensor, ids: Sequence[str], labels: Sequence[Labels] | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Add rows [n, d] as one shard, kept in `dtype`, which may be int8. The dataset has all of them afterwards, or none.

        Raises W2WError for another d, NaN or infinite weights, an id that is already there or no text, or labels that
        JSON cannot hold.
        """
        labels = list(labels or [{} for _ in ids])
        if not len(weights) == len(ids) == len(labels):
            raise W2WError(f"{len(weights)} rows of weights for {len(ids)} ids and {len(labels)} labels; they must be as many.")
        self.layout.check_width(weights.shape[-1], f"row {ids[0]}" if ids else "nothing")
        for name, label in zip(ids, labels, strict=True):
            _check_writable(name, label)
        kept = weights.detach().to("cpu", torch.float32 if dtype == torch.int8 else dtype)
        if not torch.isfinite(kept.sum(1, dtype=torch.float32)).all() and (bad := (~torch.isfinite(kept)).any(1)).any():
            raise W2WError(f"row {ids[int(bad.nonzero()[0])]} has weights that are not numbers in {dtype}. Leave it out or train it again.")
        parts = {"weights": kept}
        if dtype == torch.int8:
            parts["weights"], parts["scales"] = quantised(kept, self._widths)
        sums = row_sums(parts["weights"], parts.get("scales"))
        rows = [{"id": name, "labels": label, "crc32": crc} for name, label, crc in zip(ids, labels, sums, strict=True)]
        folder = here(self.folder, AWAY)
        with self._manifest.turn():
            if _bytes(self.folder / "dataset.json") != self._described:
                raise W2WError(f"{self.folder} was started anew by another run. Choose another folder, and add these rows there.")
            self.refresh()
            repeated = [name for name in ids if name in self._positions] or [name for name, count in Counter(ids).items() if count > 1]
            if repeated:
                raise W2WError(f"id {repeated[0]} would stand twice in {self.folder}. Give every row an id of its own.")
            if not self._swept:  # once: a look at all shards before each would make a million adapters slow
                sweep(folder / "shards", ASIDE)  # of writers that were killed: nobody else writes now
                self._swept = True
            file = f"shards/{len(self._shards):06d}.safetensors"
            write_tensors(folder / file, parts)
            line = {"file": file, "dtype": str(dtype).removeprefix("torch."), "sha256": sha256(folder / file), "rows": rows}
            try:
                self._manifest.append(line)
            except W2WError:
                with suppress(OSError):
                    (folder / file).unlink()
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


def _bytes(path: Path | Address) -> bytes:
    return path.read_bytes() if path.is_file() else b""


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
