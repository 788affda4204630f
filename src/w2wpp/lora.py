"""Run a frozen UNet with the adapters of many people at once.

The base's layers are shared; each adapted layer adds its person's low-rank product as a batched matrix product on
the shared activations. Training, inversion, sampling and evaluation all go through `adapted`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.layout import Layout


def initial_weights(layout: Layout, seed: int = 0) -> Tensor:
    """The adapter every person starts from: A Kaiming-uniform as in peft, drawn from `seed`; B zero. [d] float32.

    One seed for a whole population ties the gauge (A and B are free up to an invertible r x r matrix), which makes
    the vectors comparable.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for m in layout.matrices:
        if ".lora_A." in m.name:
            bound = (1 / m.shape[1]) ** 0.5  # kaiming_uniform_(a=sqrt(5)) on [r, fan_in]
            matrices[m.name] = (torch.rand(m.shape, generator=generator) * 2 - 1) * bound
        else:
            matrices[m.name] = torch.zeros(m.shape)
    return layout.flatten(matrices)


@contextmanager
def adapted(unet: nn.Module, layout: Layout, weights: Tensor) -> Iterator[None]:
    """While open, `unet` runs with the adapters `weights` [k, d]; gradients flow to them.

    It holds for the thread that opened it, so that several threads can share one UNet, each with its own adapters.
    The UNet's batch must be a multiple of k, adapter-major: with n pictures each, rows i n to (i+1) n - 1 belong to
    adapter i. Hu et al. 2021: W x + (alpha / r) B A x.
    """
    matrices = layout.unflatten(weights)
    handles = []
    try:
        for name in layout.modules:
            down = matrices[f"{name}.lora_A.weight"].transpose(-1, -2)  # [k, in, r]
            up = matrices[f"{name}.lora_B.weight"].transpose(-1, -2) * layout.scale  # [k, r, out]
            handles.append(unet.get_submodule(name).register_forward_hook(_add_product(down, up)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_product(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    k, thread = down.shape[0], get_ident()

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if get_ident() != thread:
            return output
        x = inputs[0]
        grouped = x.reshape(k, -1, x.shape[-1])
        product = torch.bmm(torch.bmm(grouped, down.to(x.dtype)), up.to(x.dtype))
        return output + product.reshape(output.shape).to(output.dtype)

    return hook
