"""What an import is to do: which row each file becomes, and to which dataset the files of one layout go."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from w2wpp.base.identity import same_base
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.storage import here
from w2wpp.common.tables import rows_by
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.diffusers import DIFFUSERS_NAME
from w2wpp.exchange.formats.lora_file import load_lora
from w2wpp.exchange.formats.lora_plan import LoraPlan, plan_lora
from w2wpp.exchange.import_bases import Bases
from w2wpp.lora.layout import part_of


@dataclass(frozen=True)
class ImportOptions:
    """How files become rows.

    rank: of the rows; that of the rows that are there, or the largest among the files of a layout, unless given. alpha:
    likewise; the rank (scale 1) for new ones; it is also the alpha of files that lack it. strict: the first file that is no
    whole LoRA stops all, before anything is written, and all files become one dataset. memory: GiB that rows may take.
    """

    rank: int | None = None
    alpha: float | None = None
    drop_text_encoder: bool = False
    strict: bool = False
    memory: float = 2.0
    dtype: torch.dtype = torch.float32
    prompting: Mapping[str, Any] | None = None
    threads: int = 1


@dataclass
class Imported:
    """What became of each file."""

    state: dict[str, str] = field(default_factory=dict)  # by the file's name: imported, re-factored, already there, skipped
    note: dict[str, str] = field(default_factory=dict)  # why, or the error
    errors: dict[str, float] = field(default_factory=dict)  # by id

    def skip(self, name: str, why: W2WError, file: Path) -> None:
        """Leave a file out."""
        self.state[name], self.note[name] = "skipped", str(why).removeprefix(f"{file}: ").removeprefix(f"{file} ")

    def table(self) -> list[dict[str, str]]:
        """A row for each file, those that need a look first."""
        order = {"skipped": 0, "re-factored": 1, "imported": 2, "already there": 3}
        names = sorted(self.state, key=lambda name: (order[self.state[name]], not self.note.get(name), name))
        return [{"file": name, "became": self.state[name], "note": self.note.get(name, "")} for name in names]


@dataclass(frozen=True)
class Planned:
    """One file on its way in."""

    file: Path
    name: str  # below the source
    id: str
    plan: LoraPlan
    base: Denoiser


def plans_of(
    bases: Bases, files: list[Path], names: Mapping[Path, str], source: Path, options: ImportOptions, done: Imported
) -> list[Planned]:
    """Every file that can be read, planned from its header alone; the others are skipped, or raise if strict."""
    taken: dict[str, Path] = {}
    plans = []
    for file in track(files, "check", "files"):
        try:
            key = _id(file, source)
            if key in taken:
                raise W2WError(f"{names[taken[key]]} and {names[file]} would both be called {key}. Rename one.")
            denoiser = bases.for_file(file)
            plan = plan_lora(file, denoiser, alpha=options.alpha, drop_text_encoder=options.drop_text_encoder)
            if options.strict:
                load_lora(plan, denoiser, options.rank or 0)
        except W2WError as error:
            if options.strict:
                raise
            done.skip(names[file], error, file)
            continue
        taken[key] = file
        plans.append(Planned(file, names[file], key, plan, denoiser))
    return plans


def groups_of(plans: list[Planned], out: Path, options: ImportOptions, done: Imported) -> Iterator[tuple[Path, list[Planned], Denoiser]]:
    """The files by layout, most first, with the dataset that they go to: `out` itself, or a folder in it where there are several."""
    if (out / "dataset.json").exists() and WeightDataset.load(out).ids:
        rows, fitting = WeightDataset.load(out), []
        for one in plans:
            strangers = sorted(one.plan.layers - set(rows.layout.modules))
            if not strangers and same_base(one.base.id, rows.base_id):
                fitting.append(one)
                continue
            why = f"{strangers[0]} is adapted here, and not in {out}" if strangers else f"{out} holds adapters of base {rows.base_id}"
            error = W2WError(f"{why}. Import it into a new folder.")
            if options.strict:
                raise error
            done.skip(one.name, error, one.file)
        if fitting:
            yield out, fitting, fitting[0].base
        return
    alike: dict[tuple[str, frozenset[str]], list[Planned]] = defaultdict(list)
    for one in plans:
        alike[one.base.id, frozenset() if options.strict else one.plan.layers].append(one)
    if len(alike) == 1:
        yield out, plans, plans[0].base
        return
    there = {(rows.base_id, frozenset(rows.layout.modules)): here(rows.folder) for rows in _datasets_in(out)}
    for (base_id, layers), group in sorted(alike.items(), key=lambda item: (-len(item[1]), item[1][0].name)):
        place = there.get((base_id, layers)) or _free(out / _title(group), set(there.values()))
        there[base_id, layers] = place
        yield place, group, group[0].base


def _datasets_in(folder: Path) -> list[WeightDataset]:
    return [WeightDataset.load(path.parent) for path in sorted(folder.glob("*/dataset.json"))]


def _title(group: list[Planned]) -> str:
    """A folder's name for files of one layout: the base and how many layers of which parts."""
    layers = group[0].plan.layers
    counts = {part or group[0].base.part: sum(part_of(layer) == part for layer in layers) for part in sorted(map(part_of, layers))}
    named = Path(group[0].base.source).name
    return "-".join([named, *(f"{part}-{count}" for part, count in counts.items())])


def _free(place: Path, taken: set[Path]) -> Path:
    number, free = 2, place
    while free in taken or free.exists():
        free, number = place.with_name(f"{place.name}-{number}"), number + 1
    return free


def labels_of(path: str | Path, names: Sequence[str], source: Path) -> dict[str, dict[str, str]]:
    """The labels of a csv, by the file that each line names. Raises W2WError naming a line of no LoRA."""
    known = rows_by(path, "file")
    for name, row in known.items():
        if name not in names:
            raise W2WError(f"line {row.line} of {path} names {name}, which is no LoRA below {source}; {names[0]} is one.")
    return {name: {key: value for key, value in row.cells.items() if key != "identity"} for name, row in known.items()}


def _id(file: Path, source: Path) -> str:
    """What a LoRA's row is called: its path below the source; the folder's where the file has diffusers' own name.

    Raises W2WError for a path in bytes that are no UTF-8, which no dataset can hold.
    """
    named = file.parent if file.name == DIFFUSERS_NAME else file.with_suffix("") if file.is_file() else file
    key = named.name if named == source or file == source else named.relative_to(source).as_posix()
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise W2WError(f"{file} has a name that is no UTF-8 text and cannot be an id. Rename it.") from error
    return key
