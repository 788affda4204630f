"""What inversion minimises, the same for every method and space: denoising losses on a bank of (timestep, noise) draws.

Weights2Weights++, eq. 5. The published recipe draws timestep and noise afresh in every step, so that its gradients
drown in the draws. Here a bank is drawn once for a photo; candidates that are compared meet the same draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2wpp.base_model import BaseModel, denoising_loss
from w2wpp.errors import W2WError
from w2wpp.layout import Layout
from w2wpp.seeds import generator

GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class BankOptions:
    """How a bank is drawn."""

    draws: int = 40  # of timestep and noise, a person; a method that wants more goes through them again
    stratified: bool = True  # any run of draws covers the schedule evenly; else each timestep is drawn alone
    antithetic: bool = True  # every second draw is the one before with its noise negated
    snr_cap: float | None = None  # min-SNR weights (Hang et al. 2023), capped here; None weighs all timesteps alike

    def __post_init__(self) -> None:
        if self.draws < 1 or (self.snr_cap is not None and self.snr_cap <= 0):
            raise W2WError(f"a bank of {self.draws} draws with SNR cap {self.snr_cap} is none. Both must be above 0.")


@dataclass(frozen=True)
class Bank:
    """n draws for each of k people: what `loss` averages over."""

    latents: Tensor  # [k, n, c, h, w], the photo of each draw
    timesteps: Tensor  # [k, n] int64
    noise: Tensor  # [k, n, c, h, w]
    importance: Tensor  # [k, n], what each draw's loss counts; 1 on average over the schedule
    context: Tensor  # [tokens, width], of the prompt
    mask: Tensor | None = None  # [k, 1, 1, h, w] in 0..1

    @classmethod
    def draw(
        cls,
        base: BaseModel,
        photos: Sequence[Tensor],
        keys: Sequence[str],
        prompt: str,
        options: BankOptions,
        seed: int = 0,
        mask: Tensor | None = None,
    ) -> "Bank":
        """Draw a bank for each person.

        photos: for each person, scaled latents [p, c, h, w] of one photo or more, taken in turn. keys: for each person, the
        name of their draws; a person's bank does not depend on who else is there. mask: [k or 1, 1, h, w], what the
        loss looks at. Raises W2WError for photos of another shape.
        """
        shape = tuple(base.latent_shape)
        if len(photos) != len(keys) or any(p.dim() != 4 or tuple(p.shape[1:]) != shape or not len(p) for p in photos):
            found = [list(p.shape) for p in photos[:3]]
            raise W2WError(f"latents have shapes {found}, expected [photos, {', '.join(map(str, shape))}] for each of {len(keys)} keys.")
        last = base.noise_scheduler.config.num_train_timesteps
        drawn = [_draws(options, last, shape, generator(seed, "bank", key)) for key in keys]
        timesteps = torch.stack([t for t, _ in drawn]).to(base.device)
        place = torch.arange(options.draws)
        masks = None if mask is None else mask.to(base.device).expand(len(keys), -1, -1, -1)[:, None]
        return cls(
            torch.stack([p[place // 2 % len(p)] for p in photos]).to(base.device, torch.float32),
            timesteps,
            torch.stack([noise for _, noise in drawn]).to(base.device),
            _importance(base, options.snr_cap)[timesteps],
            base.encode_text([prompt])[0].float(),
            masks,
        )

    @property
    def size(self) -> int:
        """Draws a person."""
        return self.timesteps.shape[1]

    def of(self, people: slice) -> "Bank":
        """The banks of some people."""
        mask = None if self.mask is None else self.mask[people]
        return Bank(self.latents[people], self.timesteps[people], self.noise[people], self.importance[people], self.context, mask)

    def repeated(self, n: int) -> "Bank":
        """The bank of one person for n candidates, the same draws for each."""

        def spread(part: Tensor) -> Tensor:
            return part.expand(n, *part.shape[1:])

        mask = None if self.mask is None else spread(self.mask)
        return Bank(spread(self.latents), spread(self.timesteps), spread(self.noise), spread(self.importance), self.context, mask)

    def loss(self, base: BaseModel, layout: Layout, weights: Tensor, draws: Sequence[int]) -> Tensor:
        """The loss of adapters weights [k, d] on some of the draws, each person's own: [k, len(draws)] float32."""
        at = torch.as_tensor(draws, device=self.timesteps.device)
        found = denoising_loss(
            base, layout, weights, self.latents[:, at], self.context, self.timesteps[:, at], self.noise[:, at], self.mask
        )
        return found * self.importance[:, at]


def _draws(options: BankOptions, last: int, shape: tuple[int, ...], draw: torch.Generator) -> tuple[Tensor, Tensor]:
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


def _importance(base: BaseModel, snr_cap: float | None) -> Tensor:
    """What a draw at each timestep counts, 1 on average: [timesteps] float32."""
    kept = base.noise_scheduler.alphas_cumprod.to(base.device)
    if snr_cap is None:
        return torch.ones_like(kept)
    ratio = kept / (1 - kept)
    velocity = base.noise_scheduler.config.prediction_type == "v_prediction"
    weights = ratio.clamp_max(snr_cap) / (ratio + 1 if velocity else ratio)
    return weights / weights.mean()
