"""From other people's LoRA files to weight datasets: one rank, one scale, one gauge, and one dataset for each layout.

One bad file never stops the others, unless `strict` is asked for: it is left out, and the result says why.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from w2wpp.common.errors import W2WError
from w2wpp.common.files import apart
from w2wpp.common.mapping import Mapper
from w2wpp.common.progress import track
from w2wpp.dataset.shards import rows_within
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.lora_places import list_loras, pickles
from w2wpp.exchange.import_bases import Bases
from w2wpp.exchange.import_plans import Imported, ImportOptions, Planned, groups_of, labels_of, plans_of
from w2wpp.exchange.import_rows import EXACT, Read, by_threads, plain
from w2wpp.lora.layout import Layout, layout_of

TOGETHER = 8  # files that a thread reads and decomposes at a time
SHARD = 2**27  # bytes of rows that are written at a time, where that is more than the threads need


def import_loras(
    base: Denoiser | None,
    source: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    drop_text_encoder: bool = False,
    strict: bool = False,
    labels: str | Path | None = None,
    memory: float = 2.0,
    dtype: torch.dtype = torch.float32,
    prompting: Mapping[str, Any] | None = None,
    threads: int | None = None,
    mapper: Mapper | None = None,
) -> dict[str, Any]:
    """Import every LoRA under `source` as rows of the dataset `out`, or of one dataset in `out` for each layout.

    base: the files' own; None finds one for each file. rank, alpha: of the rows, see `ImportOptions`. strict: stop at the
    first file that is no whole LoRA of the base, and make one dataset. labels: a csv whose column `file` holds paths below
    `source`. memory: GiB that rows may take. prompting: the `prompt` and `guidance` of these
    LoRAs, which datasets remember. threads: that read files and decompose products, one for each core unless given; rows
    stay in the order of the files. mapper: workers of an `ImportRecipe`, who do that in place of threads. Files that are in
    already are left alone. Returns the datasets' info, and
    under `files` what became of each file.
    Raises W2WError for a label of none of the files, and if nothing at all could be imported.
    """
    options = ImportOptions(rank, alpha, drop_text_encoder, strict, memory, dtype, prompting, threads or os.cpu_count() or 1)
    source, out = Path(source).absolute() if mapper else Path(source), Path(out)
    apart(out, source, labels)
    bases = Bases(base)
    files = list_loras(source)
    names = {file: _shown(Path(file.name) if file == source else file.relative_to(source)) for file in files}
    known = labels_of(labels, list(names.values()), source) if labels else {}
    done = Imported()
    plans = plans_of(bases, files, names, source, options, done)
    groups = groups_of(plans, out, options, done)
    datasets = [info for group in groups if (info := _import_group(*group, options, known, done, mapper)) is not None]
    if all(state == "skipped" for state in done.state.values()):
        raise _nothing(files, names, source, done)
    return _told(datasets, done, [_shown(file.relative_to(source)) for file in pickles(source)])


def _import_group(
    place: Path,
    group: list[Planned],
    base: Denoiser,
    options: ImportOptions,
    known: Mapping[str, Mapping[str, str]],
    done: Imported,
    mapper: Mapper | None,
) -> dict[str, Any] | None:
    """Append files of one layout to a dataset, as many at a time as memory allows; returns its info.

    The dataset is made with the first row; None if there is no row.
    """
    layers = set().union(*(one.plan.layers for one in group))
    largest = max(one.plan.rank for one in group)
    rank = options.rank or largest
    layout = _of_rows(place, options) or layout_of(base.layers, layers, rank, options.alpha or float(rank))
    meta = {"base": base.source, "imported": {"rank": layout.rank, "gauge": "svd"}}
    meta |= {"prompting": dict(options.prompting)} if options.prompting else {}
    make = partial(WeightDataset.load_or_create, place, layout, base.id, meta)
    dataset = make() if (place / "dataset.json").exists() else None
    there = set() if dataset is None else set(dataset.ids)
    todo = [one for one in group if one.id not in there]
    done.state |= {one.name: "already there" for one in group if one.id in there}
    before, rows = len(there), _rows_a_shard(layout.d, options)
    parts = [todo[i : i + rows] for i in range(0, len(todo), rows)]
    pieces = [[part[i : i + TOGETHER] for i in range(0, len(part), TOGETHER)] for part in parts]
    bases = {plain(one.plan, one.base).base: one.base for one in todo}
    mapper = mapper or by_threads(bases.__getitem__, options.threads, -(-rows // TOGETHER))  # read while those before are written
    tasks = [[plain(one.plan, one.base) for one in piece] for part in pieces for piece in part]
    results = iter(mapper(tasks, (layout, options.strict)))
    for part in track(pieces, "import", f"groups of {rows} adapters"):
        read = [(piece, next(results)) for piece in part]
        for piece, found in read:
            for i, why in found.refused.items():
                done.skip(piece[i].name, W2WError(why), piece[i].file)
        if any(found.errors for _, found in read):
            dataset = make() if dataset is None else dataset
            _append(dataset, read, options, known, done)
    return None if dataset is None else {**dataset.info(), "imported": len(dataset) - before}


def _shown(path: Path) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _nothing(files: list[Path], names: Mapping[Path, str], source: Path, done: Imported) -> W2WError:
    """Why nothing could be imported."""
    if len(files) == 1:
        return W2WError(f"{files[0]}: {done.note[names[files[0]]]}")
    why = "; ".join(f"{name}: {note.rstrip('.')}" for name, note in list(done.note.items())[:3])
    return W2WError(f"none of the {len(files)} files below {source} could be imported. {why}.")


def _rows_a_shard(d: int, options: ImportOptions) -> int:
    """How many rows to write at a time: enough for every thread, and two groups of them within the memory."""
    enough = max(TOGETHER * options.threads, SHARD // (4 * d))
    return max(1, min(256, enough, rows_within(options.memory, d) // 2))


def _append(
    dataset: WeightDataset,
    parts: list[tuple[list[Planned], Read]],
    options: ImportOptions,
    known: Mapping[str, Mapping[str, str]],
    done: Imported,
) -> None:
    """Append what was read as one shard, and say so of each file."""
    read = [(piece[i], error, note) for piece, part in parts for (i, error), note in zip(part.errors.items(), part.notes, strict=True)]
    told = [{**known.get(one.name, {}), "rank_error": error} for one, error, _ in read]
    dataset.append(torch.cat([part.weights for _, part in parts]), [one.id for one, *_ in read], told, options.dtype)
    for one, error, note in read:
        done.errors[one.id] = error
        done.state[one.name] = "re-factored" if error > EXACT or one.plan.kinds != {"LoRA"} else "imported"
        done.note[one.name] = note


def _of_rows(place: Path, options: ImportOptions) -> Layout | None:
    """The layout of the rows that a dataset holds already, or None. Raises W2WError if another rank or alpha was asked for."""
    rows = WeightDataset.load(place) if (place / "dataset.json").exists() else None
    if rows is None or not rows.ids:
        return None
    layout, rank, alpha = rows.layout, options.rank or rows.layout.rank, options.alpha or rows.layout.alpha
    if (rank, alpha) != (layout.rank, layout.alpha):
        raise W2WError(
            f"{place} holds rows of rank {layout.rank}, alpha {layout.alpha:g}, not rank {rank}, alpha {alpha:g}. "
            "Leave them out, or choose another --out."
        )
    return layout


def _told(datasets: list[dict[str, Any]], done: Imported, left: list[str]) -> dict[str, Any]:
    """The result: the dataset's info, or those of several; counts; and the table."""
    worst = max(done.errors, key=lambda name: done.errors[name]) if done.errors else None
    states = list(done.state.values())
    about = datasets[0] if len(datasets) == 1 else {"datasets": datasets}
    return {
        **about,
        "imported": sum(info["imported"] for info in datasets),
        "refactored": states.count("re-factored"),
        "already_there": states.count("already there"),
        "skipped": states.count("skipped"),
        "pickles_left_out": left,
        "worst_rank_error": {"id": worst, "error": done.errors[worst]} if worst else None,
        "files": done.table(),
    }
