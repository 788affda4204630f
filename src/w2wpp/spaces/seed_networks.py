"""The networks of Weights2Weights++'s code: its vanilla VAE's decoder, and its second model of LayerNorm residual blocks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def vanilla_decoder(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], LeakyReLU between them but none after the first: the latents go in linearly."""
    chain: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
    for here, there in pairwise(sizes[1:-1]):
        chain += [nn.Linear(here, there), nn.LeakyReLU()]
    return nn.Sequential(*chain, nn.Linear(sizes[-2], sizes[-1]))


class NormedBlock(nn.Module):
    """x + LayerNorm(W2 LayerNorm(ReLU(W1 x))), half as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.block = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.LayerNorm(inner), nn.Linear(inner, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [n, width]."""
        return x + self.block(x)


class SecondEncoder(nn.Module):
    """Weights [n, d] -> mean and log variance side by side, [n, 2m]."""

    def __init__(self, d: int, width: int, blocks: int, m: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_head(d, width), *(NormedBlock(width) for _ in range(blocks)))
        self.mean, self.log_variance = _tail(width, max(1, width // 2), m), _tail(width, max(1, width // 2), m)

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, 2m]."""
        found = self.body(x)
        return torch.cat([self.mean(found), self.log_variance(found)], 1)


def second_decoder(m: int, width: int, blocks: int, d: int) -> nn.Sequential:
    """Latents [n, m] -> weights [n, d] without a last activation."""
    return nn.Sequential(nn.Linear(m, width), *(NormedBlock(width) for _ in range(blocks)), _tail(width, 2 * width, d))


def second_critic(d: int, width: int, blocks: int) -> nn.Sequential:
    """Weights [n, d] -> [n, 1], the logit of being real."""
    return nn.Sequential(*_head(d, width), *(NormedBlock(width) for _ in range(blocks)), _tail(width, 2 * width, 1))


def _head(d: int, width: int) -> list[nn.Module]:
    return [nn.Linear(d, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)]


def _tail(width: int, inner: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, out))
