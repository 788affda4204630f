"""Record a training step on a GPU once, and replay it: thousands of small kernels without Python between them."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # steps before the recording, in which libraries choose their algorithms and optimisers make their state

Inputs = TypeVar("Inputs", bound=tuple[Any, ...])


def replayed(step: Callable[[Inputs], Tensor], inputs: Inputs, optimiser: torch.optim.Optimizer) -> Callable[[Inputs], Tensor]:
    """`step` as a CUDA graph that is fed tensors of the shapes of `inputs`; where these lie on a CPU, `step` itself.

    step: reads its tensors, changes parameters in place by `optimiser` and returns a tensor, and never waits for the GPU. It
    runs a few times on `inputs` before the recording, so a rate of 0 must stand until the first replay. The optimiser's state
    is afterwards what it was.
    """
    device = inputs[0].device
    if device.type != "cuda":
        return step
    before = {parameter: {key: value.clone() for key, value in state.items()} for parameter, state in optimiser.state.items()}
    kept = type(inputs)(*(tensor.clone() for tensor in inputs))  # the graph reads from these
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step(kept)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = step(kept)
    except RuntimeError as error:  # some version of a library waits for the GPU after all: slower, and the same numbers
        print(f"the training step is not recorded: {str(error).splitlines()[0]}", file=sys.stderr)
        return step
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            value.copy_(before[parameter][key]) if parameter in before else value.zero_()

    def replay(given: Inputs) -> Tensor:
        for tensor, new in zip(kept, given, strict=True):
            tensor.copy_(new, non_blocking=True)
        graph.replay()
        return result

    return replay
