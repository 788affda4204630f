"""From aligned faces to a weight dataset: an adapter for every person, trained in groups, resumable."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from w2wpp.adapters.group_training import Engine, Group, GroupTrainer
from w2wpp.adapters.portraits import TRAINED_ON, Portrait, photos_sum, portraits
from w2wpp.adapters.shares import Share
from w2wpp.adapters.start import Start
from w2wpp.adapters.status import Status
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.locks import owned
from w2wpp.common.progress import note, track
from w2wpp.common.storage import here
from w2wpp.dataset.weights import WeightDataset
from w2wpp.photos.alignment import AlignedFaces


def train_population(
    base: BaseModel,
    faces: AlignedFaces,
    people: Sequence[str],
    out: str | Path,
    options: AdapterOptions,
    *,
    group: int | None = None,
    halves_from: int = 2,
    dtype: torch.dtype = torch.float16,
    start: Start | None = None,
    share: Share | None = None,
    retry_failed: bool = False,
    engine: Engine | None = None,
) -> WeightDataset:
    """Train the adapters of `people` and append them to the dataset `out`, one shard per group of `group` adapters.

    halves_from: people with at least this number of photos get two adapters. group: how many share a pass; by their memory
    (`people_at_a_time`) unless given. Results depend on it by rounding only.

    Adapters that the dataset already has are not trained again, so an interrupted run resumes where it stopped. Nor are those
    that failed, because their photos could not be read, unless `retry_failed`; `read_status` lists them.
    start: where each adapter begins. share: train only these people; needs `group`, which all shares must have alike.
    engine: who trains; this process unless given. Raises W2WError if `out` belongs to another base, layout or way of training,
    if another run writes there, if it holds adapters of photos that were replaced or removed since, or if everyone failed.
    """
    if share and not group:
        raise W2WError(f"shard {share.i}/{share.n} has no group size, which divides the people. Give --group, alike for all shards.")
    how: dict[str, Any] = {"adapters": asdict(options), "base": base.source} | ({"start": start.name} if start else {})
    how |= {"halves_from": halves_from} if halves_from != 2 else {}
    with owned(out):
        dataset = WeightDataset.load_or_create(out, options.layout_of(base), base.id, how)
        _check_photos(dataset, faces)
        engine = engine or GroupTrainer(base, faces, options, start)
        _train_population(dataset, portraits(faces, people, halves_from), engine, group, dtype, share, retry_failed)
        return dataset


def _train_population(
    dataset: WeightDataset,
    wanted: list[Portrait],
    engine: Engine,
    group: int | None,
    dtype: torch.dtype,
    share: Share | None,
    retry_failed: bool,
) -> None:
    before = Status.load(here(dataset.folder))
    failed = {} if retry_failed or not before else before.failed
    have = set(dataset.ids)
    if share is None and all(portrait.id in have or portrait.id in failed for portrait in wanted):
        group = group or 1  # nothing to do: no memory is measured
    group = group or engine.group_size()
    mine = share.of_list(_cut(wanted, group)) if share else _cut(wanted, group)
    ids = {portrait.id for members in mine for portrait in members}
    failed = {name: why for name, why in failed.items() if name in ids and name not in have}
    groups = _groups(mine, have | failed.keys(), group)
    if before and before.ended and not groups and len(ids & have) + len(failed) == before.total:
        return  # nothing to do, and the file says so
    persons = {portrait.person for members in mine for portrait in members}
    status = Status(total=len(ids), people=len(persons), done=len(ids & have), failed=failed, group=group)
    status.begin(share)
    _append_all(dataset, groups, engine, status, dtype)


def _append_all(dataset: WeightDataset, groups: list[Group], engine: Engine, status: Status, dtype: torch.dtype) -> None:
    """Append what comes of each group, in their order, and keep the status file."""
    out, well = here(dataset.folder), False

    def running(ids: list[str]) -> None:
        status.running, status.again = ids, engine.told()
        status.save(out)

    try:
        words = ("train adapters", f"groups of {status.group}")
        for outcome in track(engine.outcomes(groups, running), *words, total=len(groups)):
            if outcome.ids:
                dataset.append(outcome.weights, outcome.ids, outcome.labels, dtype)
            status.done += len(outcome.ids)
            status.trained += len(outcome.ids)
            status.failed |= outcome.failed
            status.again = engine.told()
            status.save(out)
        well = True
    finally:
        status.end(out, well)
    if status.failed and not len(dataset):
        name, why = next(iter(status.failed.items()))
        raise W2WError(f"none of {len(status.failed)} adapters could be trained; {name}: {why}")
    if status.failed:
        name, why = next(iter(status.failed.items()))
        note(f"{len(status.failed)} of {status.total} adapters failed, such as {name}: {why} `w2w adapters status {out}` lists them.")


def _cut(wanted: list[Portrait], group: int) -> list[Group]:
    return [wanted[i : i + group] for i in range(0, len(wanted), group)]


def _groups(mine: list[Group], done: set[str], group: int) -> list[Group]:
    """The groups that are left. Their bounds stay where those of a whole run are, so that a resumed run gives the same bytes.

    Where that would leave groups mostly empty, as after people of one split only, they are cut anew.
    """
    kept = [[portrait for portrait in members if portrait.id not in done] for members in mine]
    kept = [members for members in kept if members]
    left = [portrait for members in kept for portrait in members]
    return kept if len(kept) <= 2 * -(-len(left) // group) + 1 else _cut(left, group)


def _check_photos(dataset: WeightDataset, faces: AlignedFaces) -> None:
    """Raise W2WError if a row was trained on other photos than its person has now; rows of early versions do not say on which."""
    told = [(name, label) for name, label in zip(dataset.ids, dataset.labels, strict=True) if TRAINED_ON in label]
    now = {portrait.id: portrait for portrait in portraits(faces, sorted({label["person"] for _, label in told} & faces.people.keys()))}
    for name, label in told:
        if name not in now or label[TRAINED_ON] != photos_sum(faces, now[name]):
            what = "are gone" if label["person"] not in faces.people else "were replaced, or are more or fewer"
            raise W2WError(f"{dataset.folder} holds adapter {name}, whose photos {what} since it was trained. Choose another --out.")
