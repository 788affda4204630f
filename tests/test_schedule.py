"""Who does what: every task once, in order, whatever happens to the workers, on a simulated clock."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Ended
from simulated import Luck, SimulatedPool
from w2wpp.adapters.group_training import Outcome
from w2wpp.adapters.portraits import Portrait
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.peft import write_peft
from w2wpp.exchange.import_rows import ImportRecipe
from w2wpp.lora.layout import Layout
from w2wpp.scale.in_order import in_order
from w2wpp.scale.schedule import GONE, LOST, SLOW, STUCK, Schedule, Terms
from w2wpp.scale.training import Trainers
from w2wpp.scale.workers import Workers

TERMS = Terms(tries=1000)


def steady(task: int, draw: random.Random) -> float:
    return 10.0


def varied(task: int, draw: random.Random) -> float:
    return draw.uniform(5, 15)


def run(n: int, pool: SimulatedPool, terms: Terms = TERMS) -> tuple[list[object], Schedule]:
    schedule = Schedule(n, terms)
    tasks = [f"task {i}" for i in range(n)]
    return list(in_order(tasks, pool, schedule, lambda: None, lambda task, why: f"{task} given up: {why}")), schedule


@given(
    n=st.integers(0, 60),
    room=st.integers(1, 20),
    ahead=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    rates=st.tuples(*[st.sampled_from([0.0, 0.05, 0.3])] * 3),
)
def test_every_result_comes_once_and_in_order_whatever_dies(
    n: int, room: int, ahead: int, seed: int, rates: tuple[float, float, float]
) -> None:
    dies, slow, loses = rates
    pool = SimulatedPool(room, varied, Luck(dies=dies, slow=slow, loses=loses), seed)
    found, schedule = run(n, pool, Terms(tries=1000, ahead=ahead))
    assert found == [f"task {i}" for i in range(n)]
    assert n <= pool.given <= n + schedule.again.total() and not schedule.done and not schedule.hopeless


@pytest.mark.parametrize("room", [1, 3])
def test_a_worker_that_hangs_is_replaced(room: int) -> None:
    class Hanging(SimulatedPool):
        def give(self, worker: str, task: str) -> None:
            self.luck = Luck(hangs=1.0 if self.given in (12, 25) else 0.0)
            super().give(worker, task)

    found, schedule = run(40, Hanging(room, steady), Terms(slow=1000.0))
    assert found == [f"task {i}" for i in range(40)] and dict(schedule.again) == {STUCK: 2}


def test_the_group_of_a_slow_worker_goes_to_an_idle_one_and_the_first_result_counts() -> None:
    def seconds(task: str, draw: random.Random) -> float:
        first = pool.given == 20  # only who is first given this one is slow
        return 190.0 if first else 10.0

    pool = SimulatedPool(4, seconds)
    found, schedule = run(20, pool)
    assert found == [f"task {i}" for i in range(20)] and dict(schedule.again) == {SLOW: 1}
    assert pool.now() < 120  # not the 240 of the slow one


def test_what_is_done_ahead_is_bounded() -> None:
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, len(schedule.done))

    def seconds(task: int, draw: random.Random) -> float:
        return 10_000.0 if task == 0 else 10.0

    pool = SimulatedPool(5, seconds)
    schedule = Schedule(200, Terms(ahead=3, slow=1e9, stuck=1e9))
    assert list(in_order(range(200), pool, schedule, look, lambda task, why: -1)) == list(range(200))
    assert 5 < most <= 15


def test_a_task_that_ends_its_workers_is_given_up_and_the_others_go_on() -> None:
    class Poisoned(SimulatedPool):
        def give(self, worker: str, task: str) -> None:
            self.luck = Luck(dies=1.0 if task == "task 3" else 0.0)
            super().give(worker, task)

    found, schedule = run(8, Poisoned(3, steady), Terms(tries=4))
    assert found[3] == "task 3 given up: its worker was lost 4 times, the last time because: it was killed"
    assert [result for i, result in enumerate(found) if i != 3] == [f"task {i}" for i in range(8) if i != 3]
    assert schedule.again[LOST] == 3


def test_a_result_lost_with_its_node_is_made_again() -> None:
    found, schedule = run(30, SimulatedPool(3, steady, Luck(loses=0.3), seed=1))
    assert found == [f"task {i}" for i in range(30)] and schedule.again[GONE] >= 1


def test_workers_that_never_start_end_the_run_in_one_line_and_some_that_do_not_do_not() -> None:
    with pytest.raises(W2WError, match=r"[34] workers did not start, the last because: it did not start"):
        run(8, SimulatedPool(2, steady, Luck(fails_to_start=1.0)))
    assert len(run(40, SimulatedPool(4, steady, Luck(fails_to_start=0.3), seed=5))[0]) == 40


def test_a_cluster_without_a_worker_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Away(SimulatedPool):
        def grow(self, most: int) -> None:
            if self.now() > 300:
                super().grow(most)

    found, _ = run(4, Away(2, steady))
    assert found == [f"task {i}" for i in range(4)]
    told = capsys.readouterr().err
    assert told.count("note: no worker has been ready for 12") == told.count("note: no worker has been ready for 24") == 1


def test_an_error_of_a_task_comes_in_its_turn() -> None:
    class Refused(SimulatedPool):
        def fetch(self, result: str) -> str:
            if result == "task 5":
                raise W2WError("training diverged")
            return result

    found = list[object]()
    with pytest.raises(W2WError, match="diverged"):
        for result in in_order([f"task {i}" for i in range(9)], Refused(4, varied), Schedule(9, TERMS), lambda: None, lambda task, why: ""):
            found.append(result)
    assert found == [f"task {i}" for i in range(5)]


def test_workers_that_say_how_many_people_fit_are_those_that_train() -> None:
    class Fitting(SimulatedPool):
        def fetch(self, members: list[Portrait] | None) -> object:
            ids = [member.id for member in members or []]
            return 4 if members is None else Outcome(torch.zeros(len(ids), 3), ids, [{} for _ in ids])

    people = [Portrait(f"person {i}", f"person {i}", (0,), "") for i in range(8)]
    pool = Fitting(2, steady)
    engine = Trainers(pool)
    size = engine.group_size()
    outcomes = engine.outcomes([people[:4], people[4:]], lambda ids: None)
    assert size == 4 and [name for outcome in outcomes for name in outcome.ids] == [person.id for person in people]
    assert pool.now() < 30  # one start, and two rounds of which the second has both


def test_workers_are_kept_from_one_list_of_tasks_to_the_next() -> None:
    pool = SimulatedPool(3, steady)
    _, schedule = run(5, pool)
    again = Schedule(5, TERMS)
    for worker in schedule.idle:
        again.join(worker)
    before = pool.now()
    assert len(list(in_order(range(5), pool, again, lambda: None, lambda task, why: -1))) == 5
    assert pool.now() - before == pytest.approx(20, abs=1.5)  # two rounds, no start


def test_a_slow_worker_that_nobody_waited_for_does_not_disturb_the_next_list_of_tasks() -> None:
    slow = ["slow"]

    def seconds(task: str, draw: random.Random) -> float:
        return 500.0 if task == "slow" and slow and slow.pop() else 10.0

    workers = Workers[str](SimulatedPool(4, seconds))
    for tasks in (["a", "b", "c", "d", "e", "slow", "f"], [f"task {i}" for i in range(300)]):
        results = iter(workers(tasks))
        assert [next(results) for _ in tasks] == tasks  # and not to the end of the iterator
        del results
    assert workers.again == {SLOW: 1}


def test_an_import_waits_for_files_that_take_far_longer_than_others(
    w2w: Callable[..., Ended], base: BaseModel, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(task: list[Any], draw: random.Random) -> float:
        return 1000.0 if "person-5" in str(task[0].plan.path) else 10.0

    class Reading(SimulatedPool):
        def share(self, what: Any) -> None:
            self.shared = what

        def fetch(self, result: Any) -> Any:
            return ImportRecipe().open(1)(result, self.shared)

    @contextmanager
    def simulated(*_: object) -> Iterator[SimulatedPool]:
        yield Reading(2, seconds)

    monkeypatch.setattr("w2wpp.scale.workers.ray_pool", simulated)
    monkeypatch.setattr("w2wpp.exchange.import_rows.begin_work", lambda cores, precision: None)  # it is this process
    monkeypatch.setattr("w2wpp.exchange.importing.TOGETHER", 1)
    layout = Layout.of(base.pipeline.unet)
    for i in range(6):
        write_peft(tmp_path / "loras" / f"person-{i}", layout, torch.randn(layout.d, generator=torch.Generator().manual_seed(i)), str(pico))
    words = ("import", tmp_path / "loras", "--base", pico, "--ray", "simulated", "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    told = w2w(*words, "--json").json()
    assert told["imported"] == 6 and "tried_again" not in told
