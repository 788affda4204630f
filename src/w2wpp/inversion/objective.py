"""What inversion minimises, the same for every method and space: denoising losses on a fixed set of (timestep, noise) pairs.

Weights2Weights++, eq. 5. The published recipe draws timestep and noise afresh in every step, so that its gradients
are mostly noise. Here one fixed set of pairs is drawn for each photo. All candidates for that photo use the same pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator
from w2wpp.lora.layout import Layout

GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class PairOptions:
    """How the (timestep, noise) pairs are drawn."""

    draws: int = 40  # of timestep and noise, per person; a method that wants more goes through them again
    stratified: bool = True  # any run of draws covers the schedule evenly; else each timestep is drawn alone
    antithetic: bool = True  # every second draw is the one before with its noise negated

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise W2WError(f"a set of {self.draws} noise pairs is not usable. It must be above 0.")


@dataclass(frozen=True)
class NoisePairs:
    """n draws for each of k people: what `loss` averages over."""

    latents: Tensor  # [k, n, c, h, w], the photo of each draw
    timesteps: Tensor  # [k, n] int64
    noise: Tensor  # [k, n, c, h, w]
    context: Tensor  # [tokens, width], of the prompt
    mask: Tensor | None = None  # [k, 1, 1, h, w] in 0..1

    @classmethod
    def draw(
        cls,
        base: BaseModel,
        latents: Sequence[Tensor],
        keys: Sequence[str],
        prompt: str,
        options: PairOptions,
        seed: int = 0,
        mask: Tensor | None = None,
    ) -> "NoisePairs":
        """Draw the pairs of each person.

        latents: for each person, those of one photo or more, scaled, [p, c, h, w], taken in turn. keys: for each person, the
        name of their draws; a person's pairs do not depend on who else is there. mask: [k or 1, 1, h, w], what the
        loss looks at. Raises W2WError for another shape.
        """
        shape = tuple(base.latent_shape)
        if len(latents) != len(keys) or any(p.dim() != 4 or tuple(p.shape[1:]) != shape or not len(p) for p in latents):
            found = [list(p.shape) for p in latents[:3]]
            raise W2WError(f"latents have shapes {found}, expected [photos, {', '.join(map(str, shape))}] for each of {len(keys)} keys.")
        last = base.noise_scheduler.config.num_train_timesteps
        drawn = [_draws(options, last, shape, generator(seed, "bank", key)) for key in keys]
        timesteps = torch.stack([t for t, _ in drawn]).to(base.device)
        place = torch.arange(options.draws)
        masks = None if mask is None else mask.to(base.device).expand(len(keys), -1, -1, -1)[:, None]
        return cls(
            torch.stack([p[place // 2 % len(p)] for p in latents]).to(base.device, torch.float32),
            timesteps,
            torch.stack([noise for _, noise in drawn]).to(base.device),
            base.encode_text([prompt])[0].float(),
            masks,
        )

    @property
    def size(self) -> int:
        """Pairs per person."""
        return self.timesteps.shape[1]

    def of(self, people: slice) -> "NoisePairs":
        """The pairs of some people."""
        mask = None if self.mask is None else self.mask[people]
        return NoisePairs(self.latents[people], self.timesteps[people], self.noise[people], self.context, mask)

    def repeated(self, n: int) -> "NoisePairs":
        """The pairs of one person for n candidates: the same for each."""

        def spread(part: Tensor) -> Tensor:
            return part.expand(n, *part.shape[1:])

        mask = None if self.mask is None else spread(self.mask)
        return NoisePairs(spread(self.latents), spread(self.timesteps), spread(self.noise), self.context, mask)

    def loss(self, base: BaseModel, layout: Layout, weights: Tensor, draws: Sequence[int]) -> Tensor:
        """The loss of adapters weights [k, d] on some of the draws, each person's own: [k, len(draws)] float32."""
        at = torch.as_tensor(draws, device=self.timesteps.device)
        return denoising_loss(base, layout, weights, self.latents[:, at], self.context, self.timesteps[:, at], self.noise[:, at], self.mask)


def _draws(options: PairOptions, last: int, shape: tuple[int, ...], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """One person's timesteps [n] and noise [n, c, h, w]."""
    n = options.draws
    pairs = (n + 1) // 2 if options.antithetic else n
    # Steps of the golden ratio, modulo 1: every stretch of the sequence is spread evenly.
    even = (torch.rand(1, generator=draw) + GOLDEN * torch.arange(pairs)) % 1
    share = even if options.stratified else torch.rand(pairs, generator=draw)
    timesteps, noise = (share * last).long().clamp_max(last - 1), torch.randn(pairs, *shape, generator=draw)
    if options.antithetic:
        timesteps, noise = timesteps.repeat_interleave(2)[:n], torch.stack([noise, -noise], 1).flatten(0, 1)[:n]
    return timesteps, noise
