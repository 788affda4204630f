"""One piece of work for each of many things, in a process a core."""

import os
import signal

import numpy as np
import pytest
import torch

from w2wpp.common import processes
from w2wpp.common.errors import W2WError
from w2wpp.common.processes import WORTH_A_PROCESS, in_processes
from w2wpp.photos.descriptors import describe_faces

MANY = list(range(3 * WORTH_A_PROCESS))


def where(thing: int) -> tuple[int, int]:
    return thing, os.getpid()


def refused(thing: int) -> int:
    if thing == 40:
        raise W2WError("thing 40 is no good.")
    return thing


def killed(thing: int) -> int:
    if thing == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return thing


def test_many_things_are_done_elsewhere_and_in_order() -> None:
    found = list(in_processes(where, MANY, "things", 2))
    assert [thing for thing, _ in found] == MANY
    assert os.getpid() not in {process for _, process in found}


def test_few_things_are_done_here() -> None:
    assert {process for _, process in in_processes(where, MANY[: WORTH_A_PROCESS - 1], "things", 2)} == {os.getpid()}


def test_what_goes_wrong_elsewhere_is_said_here() -> None:
    with pytest.raises(W2WError, match="thing 40"):
        list(in_processes(refused, MANY, "things", 2))
    with pytest.raises(W2WError, match="worked on things was killed"):
        list(in_processes(killed, MANY, "things", 2))


def test_a_description_is_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dlib")
    images = list(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8))
    torch.randn(600, 600) @ torch.randn(600, 600)  # threads have run here, which a forked process does not have
    here = describe_faces(images)
    monkeypatch.setattr(processes, "WORTH_A_PROCESS", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert np.array_equal(describe_faces(images), here) and len(np.unique(here, axis=0)) == 8
