"""Names while a base is trained: each is a linear map of its person's descriptor, plus an offset of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 1e-3  # of the variance of a descriptor's number


class NameEmbedding(nn.Module):
    """Token embeddings in which a name is a linear map of its person's descriptor, plus an offset of its own.

    Tokens after the vocabulary stand for `strangers`: people who have a descriptor and no offset.
    """

    descriptors: Tensor
    noise: Tensor | None = None  # [b, tokens, e]: set for each training step, added to descriptors times `jitter`

    def __init__(self, embedding: nn.Embedding, descriptors: Tensor, strangers: Tensor, jitter: float, draw: torch.Generator) -> None:
        super().__init__()
        self.names, width = len(descriptors), embedding.embedding_dim
        self.first = embedding.num_embeddings - self.names  # names are the last tokens of the vocabulary
        self.jitter = jitter
        self.words = nn.Parameter(embedding.weight.detach()[: self.first].clone())
        self.project = nn.Linear(descriptors.shape[1], width, bias=False)
        self.offsets = nn.Parameter(torch.zeros(self.names, width))
        mean, spread = descriptors.mean(0), descriptors.std(0).clamp_min(1e-6)
        self.register_buffer("descriptors", (torch.cat([descriptors, strangers]) - mean) / spread)
        nn.init.normal_(self.project.weight, std=0.05 / descriptors.shape[1] ** 0.5, generator=draw)

    @torch.no_grad()
    def take(self, table: Tensor) -> None:
        """Stand for the plain embeddings [vocabulary, width] of a trained base: names become a linear map and what it leaves over."""
        names, described = table[self.first :], self.descriptors[: self.names]
        # Ridge regression: where descriptions hardly vary, an exact fit has huge weights that cancel each other; in bfloat16
        # they no longer do.
        x = described.double()
        covariance = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1]).to(x)
        self.project.weight.copy_(torch.linalg.solve(covariance, x.T @ names.double() / len(x)).T)
        self.words.copy_(table[: self.first])
        self.offsets.copy_(names - self.project(described))

    def forward(self, ids: Tensor) -> Tensor:
        rows = (ids - self.first).clamp_min(0)
        described = self.descriptors[rows]
        if self.training and self.noise is not None:
            described = described + self.jitter * self.noise
        offsets = F.embedding(rows.clamp_max(self.names - 1), self.offsets) * (rows < self.names)[..., None]
        words = F.embedding(ids.clamp_max(self.first - 1), self.words)
        return torch.where((ids >= self.first)[..., None], self.project(described) + offsets, words)

    def table(self, loudness: float = 1.0) -> Tensor:
        """Plain embeddings of every token: [vocabulary, width]. loudness: of names, times their difference from their mean."""
        names = self.project(self.descriptors[: self.names]) + self.offsets
        return torch.cat([self.words, names.mean(0).lerp(names, loudness)]).detach()
