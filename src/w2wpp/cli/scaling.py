"""The options of work on a Ray cluster, and who works where they are given."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

import w2wpp as w2w
from w2wpp.cli.common import precision_of, those_given
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    from w2wpp.adapters.group_training import Engine

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
def training_engine(
    given: Mapping[str, Any], model: "w2w.BaseModel", faces: "w2w.AlignedFaces", options: "w2w.AdapterOptions"
) -> "Iterator[Engine | None]":
    """Who trains: workers on a Ray cluster, or None, which is this process. given: the verb's arguments."""
    if not given["ray"]:
        yield None
        return
    import torch

    from w2wpp.scale.training import TrainingRecipe, ray_workers

    recipe = TrainingRecipe(
        model.source,
        model.id,
        faces.folder,
        options,
        start_space=given["start"],
        encoder=given["encoder"],
        device=given["device"],
        dtype=precision_of(given["precision"]),
        low_memory=given["low_memory"],
    )
    with ray_workers(given["ray"], recipe, given["cores"] or torch.get_num_threads(), given["workers"]) as engine:
        yield engine
