"""Whoever watches an inversion sees every step of it, changes nothing of it, and may end it."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from w2wpp import InversionStep
from w2wpp.base.model import BaseModel
from w2wpp.common.progress import as_it_goes
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.evolution import EvolutionOptions
from w2wpp.inversion.gradient import InversionOptions
from w2wpp.inversion.invert_photos import Options, invert_photos
from w2wpp.inversion.published import PublishedOptions
from w2wpp.spaces.pca import PcaSpace

KINDS = [
    InversionOptions(steps=3, group=1),
    InversionOptions(steps=3),
    PublishedOptions(steps=3),
    EvolutionOptions("cma-es", generations=3, population=4),
    EvolutionOptions("cem", generations=3, population=4),
]


@pytest.fixture
def space(dataset: Path) -> PcaSpace:
    return PcaSpace.fit(WeightDataset.load(dataset), m=4)


def photos(base: BaseModel, n: int) -> list[Any]:
    side = base.image_size
    return list(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8))


@pytest.mark.parametrize("options", KINDS, ids=lambda kind: f"{type(kind).__name__}-{getattr(kind, 'method', getattr(kind, 'group', 0))}")
def test_every_step_is_told_with_its_loss_and_point_and_watching_changes_nothing(
    base: BaseModel, space: PcaSpace, options: Options
) -> None:
    if isinstance(options, EvolutionOptions):
        pytest.importorskip("cma" if options.method == "cma-es" else "evotorch")
    seen: list[InversionStep] = []

    def watch(step: InversionStep) -> None:
        base.generate("photo of sks person", [0], layout=space.layout, weights=space.decode(step.z)[0], steps=1)  # as a preview does
        seen.append(replace(step, z=step.z.clone()))
        step.z.zero_()  # whoever watches owns what it is told

    given: dict[str, Any] = {"base": base, "options": options, "align": False, "ids": ["a", "b"]}
    found = invert_photos(space, photos(base, 2), **given, watch=watch)
    assert torch.equal(found.z, invert_photos(space, photos(base, 2), **given).z)
    for i, name in enumerate(["a", "b"]):
        mine = [step for step in seen if name in step.ids]
        assert [(step.done, step.steps) for step in mine] == [(1, 3), (2, 3), (3, 3)]
        for k, step in enumerate(mine):
            at = step.ids.index(name)
            assert step.losses[at] == found.history.losses[k, i] and torch.equal(step.z[at], found.history.path[k + 1, i])


def test_what_a_watcher_raises_ends_the_inversion(base: BaseModel, space: PcaSpace) -> None:
    seen = []

    def watch(step: InversionStep) -> None:
        seen.append(step.done)
        if step.done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        invert_photos(space, photos(base, 1), base=base, options=InversionOptions(steps=9), align=False, watch=watch)
    assert seen == [1, 2]


def result_of(generator: Generator[int, None, str]) -> str:
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return str(end.value)


def test_a_call_is_told_as_it_goes() -> None:
    heard = Event()

    def call(tell: Callable[[int], None]) -> str:
        tell(1)
        assert heard.wait(60)  # what was told is out before the call goes on
        tell(2)
        return "done"

    steps = as_it_goes(call)
    assert next(steps) == 1
    heard.set()
    assert next(steps) == 2
    assert result_of(steps) == "done"


def test_a_call_that_nobody_hears_is_stopped_and_what_it_raises_is_raised() -> None:
    told, last = [], Event()

    def for_ever(tell: Callable[[int], None]) -> str:
        try:
            while True:
                told.append(len(told))
                tell(told[-1])
        finally:
            last.set()

    steps = as_it_goes(for_ever)
    assert next(steps) == 0
    steps.close()
    assert last.is_set()  # and not some time later: the model is free again

    def fails(tell: Callable[[int], None]) -> str:
        tell(1)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        result_of(as_it_goes(fails))
