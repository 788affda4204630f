"""The layers that the VAE spaces and the encoder are made of, and the KL divergence of their posteriors."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + W2 LeakyReLU(W1 x), at one width (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [n, width]."""
        return x + self.inner(x)


def layers(sizes: Sequence[int], residual: bool = False) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], LeakyReLU between them, a residual block after each if asked."""
    chain: list[nn.Module] = []
    for here, there in pairwise(sizes[:-1]):
        chain += [nn.Linear(here, there), nn.LeakyReLU(), *([ResidualBlock(there)] if residual else [])]
    return nn.Sequential(*chain, nn.Linear(sizes[-2], sizes[-1]))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each latent, in nats: [n, m]."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2
