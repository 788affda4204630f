"""Training in half of the memory that Adam takes: a parameter is stepped as soon as its gradient is there, which is then freed.

The gradients of a whole network never lie in memory together, nor do copies of a parameter's size: numbers are stepped in
pieces. Moments are kept in bfloat16 and rounded at random, up or down by how near either is, so that on average nothing
is lost (Gupta et al. 2015); the second moment moves by a thousandth a step, which rounding to the nearest would swallow.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.common.batches import batches
from w2wpp.common.seeds import generator

PIECE = 2**22  # numbers stepped at a time


class LeanAdam:
    """Adam (Kingma and Ba 2015) that takes its steps within `loss.backward()`; `step` and `zero_grad` are not called.

    parameters: float32. moments: their dtype; with float32 the steps are those of `torch.optim.Adam`. seed: of the roundings, which
    are named by step, so that a resumed training equals an unbroken one. Its state is that of `torch.optim.Adam`, so that either
    resumes what the other began.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        moments: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> None:
        self.parameters, self.lr, self.betas, self.eps, self.seed = list(parameters), lr, betas, eps, seed
        self.taken = [0] * len(self.parameters)
        self.moments = [[torch.zeros_like(p, dtype=moments) for _ in range(2)] for p in self.parameters]
        self.hooks = [p.register_post_accumulate_grad_hook(self._stepper(i)) for i, p in enumerate(self.parameters)]

    def close(self) -> None:
        """Take no more steps, and give the memory of the moments back."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.moments = [], []

    def _stepper(self, i: int) -> Any:
        def step(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._step(i, parameter, parameter.grad)
                parameter.grad = None

        return step

    @torch.no_grad()
    def _step(self, i: int, parameter: Tensor, gradient: Tensor) -> None:
        self.taken[i] += 1
        (low, high), taken = self.betas, self.taken[i]
        flat = [tensor.view(-1) for tensor in (parameter, gradient.contiguous(), *self.moments[i])]
        rounds = flat[2].dtype == torch.bfloat16
        noise = _noise(min(PIECE, parameter.numel()), generator(self.seed, "rounding", i, taken)) if rounds else None
        for s in batches(parameter.numel(), PIECE):
            p, g, first, second = (tensor[s] for tensor in flat)
            m = first.to(torch.float32, copy=True).lerp_(g, 1 - low)
            v = second.to(torch.float32, copy=True).mul_(high).addcmul_(g, g, value=1 - high)
            bits = None if noise is None else noise[: len(m)].to(m.device)  # each half of 32 bits rounds one of the two
            first.copy_(m if bits is None else _rounded(m, bits & 0xFFFF))
            second.copy_(v if bits is None else _rounded(v, bits >> 16 & 0xFFFF))
            spread = v.sqrt_().div_((1 - high**taken) ** 0.5).add_(self.eps)
            p.addcdiv_(m, spread, value=-self.lr / (1 - low**taken))

    def state_dict(self) -> dict[str, Any]:
        """As of `torch.optim.Adam`."""
        pairs = zip(self.taken, self.moments, strict=True)
        state = {i: {"step": torch.tensor(float(n)), "exp_avg": m, "exp_avg_sq": v} for i, (n, (m, v)) in enumerate(pairs) if n}
        group = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=self.lr, betas=self.betas, eps=self.eps).state_dict()["param_groups"][0]
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave, or that of `torch.optim.Adam`, whose moments are rounded to the nearest."""
        if len(state["param_groups"]) != 1 or len(state["param_groups"][0]["params"]) != len(self.parameters):
            raise ValueError("its optimiser has other parameters")
        for i, one in state["state"].items():
            self.taken[i] = int(one["step"])
            for mine, theirs in zip(self.moments[i], (one["exp_avg"], one["exp_avg_sq"]), strict=True):
                mine.copy_(theirs)


def _noise(n: int, draw: torch.Generator) -> Tensor:
    """32 random bits for each of n numbers: int32 on the CPU. The pieces of a parameter share them, which no number notices."""
    return torch.randint(-(2**31), 2**31, (n,), dtype=torch.int32, generator=draw)


def _rounded(x: Tensor, bits: Tensor) -> Tensor:
    """x in bfloat16, up or down at random: random bits are added below the last one that bfloat16 keeps, and what is there is cut."""
    return ((x.view(torch.int32) + bits) & -0x10000).view(torch.float32).to(torch.bfloat16)


def bytes_needed(parameters: Sequence[nn.Parameter]) -> tuple[int, int]:
    """What training float32 parameters takes beside themselves: of `torch.optim.Adam` (gradients and moments), and of `LeanAdam`."""
    sizes = [p.numel() for p in parameters]
    return 12 * sum(sizes), 4 * sum(sizes) + 4 * max(sizes)
