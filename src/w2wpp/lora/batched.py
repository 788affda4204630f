"""Run a frozen UNet with the adapters of many people at once.

The base's layers are shared; each adapted layer adds its person's low-rank product as a batched matrix product on
the shared activations. Training, inversion, sampling and evaluation all go through `adapted`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import get_ident, local
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from w2wpp.lora.layout import Layout


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
def adapted(network: nn.Module, layout: Layout, weights: Tensor, part: str = "") -> Iterator[None]:
    """While open, `network` runs with the adapters `weights` [k, d]; gradients flow to them.

    part: which of the layout's parts `network` is: "" the denoiser, or `text_encoder` and its like; the layers of other
    parts are left alone. It holds for the thread that opened it, so that several threads can share one network, each with
    its own adapters. The batch must be a multiple of k, adapter-major: with n pictures each, rows i n to (i+1) n - 1
    belong to adapter i. Hu et al. 2021: W x + (alpha / r) B A x, where a convolution's A is a convolution and B one of 1x1.
    """
    matrices = layout.unflatten(weights)
    added: _Added = []
    for name in layout.modules_of(part):
        down = matrices[f"{name}.lora_A.weight"]  # [k, r, in]
        up = matrices[f"{name}.lora_B.weight"] * layout.scale  # [k, out, r]
        added.append((submodule(network, name, part), down, up))
    with _hooked(added):
        yield


_Added = list[tuple[nn.Module, Tensor, Tensor]]  # a layer, and the A and B of each adapter
_OPEN = local()  # .added: what this thread's open `adapted` add


def _opened() -> list[_Added]:
    if not hasattr(_OPEN, "added"):
        _OPEN.added = []
    return cast("list[_Added]", _OPEN.added)


@contextmanager
def _hooked(added: _Added) -> Iterator[None]:
    """Add these products while open, in this thread."""
    handles = []
    _opened().append(added)
    try:
        for module, down, up in added:
            add = _add_convolved if isinstance(module, nn.Conv2d) else _add_product
            handles.append(module.register_forward_hook(add(down, up)))
        yield
    finally:
        _OPEN.added = [one for one in _opened() if one is not added]
        for handle in handles:
            handle.remove()


def checkpointed(module: Callable[..., Any], *inputs: Any) -> Any:
    """Run a part of an adapted network and keep its inputs alone; the backward pass runs it again, with the same adapters.

    What diffusers' `enable_gradient_checkpointing` is given: the backward pass comes after `adapted` is closed, and on a GPU
    in another thread, where the adapters would else be missing.
    """
    again = _Again(list(_opened()))
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), again))


class _Again:
    """Opens what was open once, as often as asked; what is open in this thread still is left as it is."""

    def __init__(self, seen: list[_Added]) -> None:
        self.seen, self.stack = seen, ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for added in self.seen:
                if not any(added is one for one in _opened()):
                    stack.enter_context(_hooked(added))
            self.stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self.stack.close()


def submodule(network: nn.Module, layer: str, part: str = "") -> nn.Module:
    """The layer of a network that a layout calls `layer`.

    Layouts name CLIP's layers as files do, `text_encoder.text_model.encoder...`; transformers 5 has no `text_model` there.
    """
    name = layer.removeprefix(f"{part}.") if part else layer
    if part and not hasattr(network, "text_model"):
        name = name.removeprefix("text_model.")
    return network.get_submodule(name)


Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]


def _add_product(down: Tensor, up: Tensor) -> Hook:
    k, thread = down.shape[0], get_ident()
    down, up = down.transpose(-1, -2), up.transpose(-1, -2)

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if get_ident() != thread:
            return output
        x = inputs[0]
        grouped = x.reshape(k, -1, x.shape[-1])
        product = torch.bmm(torch.bmm(grouped, down.to(x.dtype)), up.to(x.dtype))
        return output + product.reshape(output.shape).to(output.dtype)

    return hook


def _add_convolved(down: Tensor, up: Tensor) -> Hook:
    """The same for a convolution: the k adapters are groups of one convolution, so that none is run by itself."""
    k, thread = down.shape[0], get_ident()

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if get_ident() != thread or not isinstance(module, nn.Conv2d):
            return output
        x = inputs[0]
        n, channels, height, width = x.shape
        kernels = down.reshape(-1, channels, *module.kernel_size).to(x.dtype)  # [k r, c, kh, kw]
        side_by_side = x.reshape(k, n // k, channels, height, width).transpose(0, 1).flatten(1, 2)
        inner = nn.functional.conv2d(side_by_side, kernels, None, module.stride, module.padding, module.dilation, groups=k)
        product = nn.functional.conv2d(inner, up.flatten(0, 1)[:, :, None, None].to(x.dtype), groups=k)
        return output + product.unflatten(1, (k, -1)).transpose(0, 1).reshape(output.shape).to(output.dtype)

    return hook
