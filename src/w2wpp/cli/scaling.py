"""The options of work on a Ray cluster, and who works where they are given."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import Run, precision_of, those_given
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from w2wpp.adapters.group_training import Engine
    from w2wpp.common.mapping import Mapper, Recipe

Ray = Annotated[
    str | None,
    typer.Option("--ray", help="Work on a Ray cluster: its address, auto for the one of this machine, local to start one for this run."),
]
Cores = Annotated[int | None, typer.Option("--cores", min=1, help="With --ray: cores of each worker; as many as this process uses.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="With --ray: workers to ask for; as many as the cluster has room for unless given.")
]


def check_scaling(given: Mapping[str, Any]) -> None:
    """Raise W2WError for options of Ray without --ray. given: the verb's arguments."""
    lonely = those_given({"--cores": given["cores"], "--workers": given["workers"]})
    if lonely and not given["ray"]:
        raise W2WError(f"{lonely} was given without --ray. Give that too, or set OMP_NUM_THREADS for this process.")


@contextmanager
def handed_out(given: Mapping[str, Any], job: Run, recipe: "Callable[[], Recipe]", *, even: bool = True) -> "Iterator[Mapper | None]":
    """Who does the tasks of a verb: workers on a Ray cluster, or None, which is this process.

    given: the verb's arguments. job: its results are told what was tried again. recipe: made where there are workers.
    even: whether tasks take about as long as each other, so that one that takes far longer is stuck.
    """
    if not given["ray"]:
        yield None
        return
    from w2wpp.scale.schedule import Terms
    from w2wpp.scale.workers import Workers, ray_pool

    with ray_pool(given["ray"], recipe(), cores_of(given), given["workers"]) as pool:
        mapper = Workers[Any](pool, Terms() if even else Terms(slow=inf, stuck=inf))
        yield mapper
        if mapper.again:
            job.results["tried_again"] = dict(mapper.again)


def cores_of(given: Mapping[str, Any]) -> int:
    """How many cores each worker has."""
    from torch import get_num_threads

    return int(given["cores"] or get_num_threads())


@contextmanager
def training_engine(
    given: Mapping[str, Any], model: "w2w.BaseModel", faces: "w2w.AlignedFaces", options: "w2w.AdapterOptions"
) -> "Iterator[Engine | None]":
    """Who trains: workers on a Ray cluster, or None, which is this process. given: the verb's arguments."""
    if not given["ray"]:
        yield None
        return
    from w2wpp.scale.training import TrainingRecipe, ray_workers

    recipe = TrainingRecipe(
        model.source,
        model.id,
        Path(str(faces.folder)),  # which may say an address: the workers understand it
        options,
        start_space=given["start"],
        encoder=given["encoder"],
        device=given["device"],
        dtype=precision_of(given["precision"]),
        low_memory=given["low_memory"],
    )
    with ray_workers(given["ray"], recipe, cores_of(given), given["workers"]) as engine:
        yield engine
