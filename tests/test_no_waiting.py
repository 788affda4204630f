"""The loops that a GPU runs never wait for it: no step reads a number back, or copies one to the CPU, whatever the number of steps."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from w2wpp.adapters.train import AdapterOptions, train_adapters
from w2wpp.base.model import BaseModel
from w2wpp.inversion.gradient import InversionOptions, invert
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace

# What makes a program wait until the GPU has a number: `.item()`, `if tensor`, `.tolist()`, `tensor[mask]`, `nonzero`.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero", "aten::unique_dim"}


class Counting(TorchDispatchMode):
    """Counts the operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in WAITS or (name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def latents(base: BaseModel, n: int) -> torch.Tensor:
    return torch.randn(n, *base.latent_shape, generator=torch.Generator().manual_seed(0))


def train(base: BaseModel, layout: Layout, steps: int) -> None:
    options = AdapterOptions(steps=steps, prior_weight=0.1)
    train_adapters(base, layout, [latents(base, 2), latents(base, 1)], ["a", "b"], options, latents(base, 3))


def turn(base: BaseModel, layout: Layout, steps: int) -> None:
    space = PcaSpace(layout, base.id, 3)
    space.components = torch.randn(3, layout.d, generator=torch.Generator().manual_seed(0))
    invert(base, space, [latents(base, 1)], ["a"], replace(InversionOptions(), steps=steps))


@pytest.mark.parametrize(("loop", "own"), [(train, 0), (turn, 1)])  # Adam reads its own number of steps, which lies on the CPU
def test_no_step_waits(loop: Any, own: int, base: BaseModel, layout: Layout) -> None:
    loop(base, layout, 1)  # what is made once and kept
    found = []
    for steps in (2, 7):
        with Counting() as counting:
            loop(base, layout, steps)
        found.append(counting.seen)
    assert found[1].total() - found[0].total() == 5 * own


def test_what_waits_is_seen() -> None:
    with Counting() as counting:
        x = torch.ones(3)
        x.sum().item()
        x[x > 0]
    assert set(counting.seen) == {"aten::_local_scalar_dense", "aten::index"}
