"""Train DreamBooth-LoRA adapters, many people in each forward pass of the shared, frozen base.

Ruiz et al. 2023 with the LoRA of Hu et al. 2021, as in Dravid et al. 2024, section 3.1. One person's result does not
depend on who shares the batch: every person's photos are drawn by a generator of their own, timesteps and noise are the same
for everybody, and Adam works number by number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.replay import replayed
from w2wpp.common.seeds import generator
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import to_tensor


@dataclass(frozen=True)
class AdapterOptions:
    """How to train an adapter. The defaults are those of the paper for Stable Diffusion 1.5."""

    rank: int = 1
    alpha: float = 27.0
    targets: tuple[str, ...] = ("to_q", "to_v")  # linear layers whose names end so
    prompt: str = "sks person"
    prior_prompt: str = "person"
    prior_weight: float = 1.0  # of the loss on the base's own pictures of the class (eq. 3 of the paper)
    prior_pictures: int = 200  # how many of them to draw, once for everyone
    steps: int = 800
    batch: int = 1  # photos per person and step
    prior_batch: int = 1  # pictures of the class per person and step
    lr: float = 1e-4  # Adam's rate
    final_lr: float = 1.0  # the rate falls along a half cosine to this fraction of itself
    blend: float = 1.0  # the adapter is start + blend (end - start), between where training began and where it ended
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.alpha > 0 and self.prior_weight >= 0 and 0 < self.blend <= 1):
            found = f"lr {self.lr:g}, alpha {self.alpha:g}, prior weight {self.prior_weight:g}, blend {self.blend:g}"
            wanted = "lr and alpha must be above 0, the prior weight at least 0, the blend above 0 and at most 1"
            raise W2WError(f"adapters cannot be trained with {found}: {wanted}.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "AdapterOptions":
        """The options from a mapping, as JSON keeps them. Raises KeyError without targets, TypeError for a field unknown here."""
        return cls(**{**given, "targets": tuple(given["targets"])})

    def layout_of(self, base: BaseModel) -> Layout:
        """Where these adapters sit in a base."""
        return Layout.of(base.pipeline.unet, rank=self.rank, alpha=self.alpha, targets=self.targets)


WORTH_A_CORE = 4  # people; the time of a step of fewer is mostly Python's, which threads do not share

PRESETS = {
    # Chosen on val people (docs/research/tiny-faces.md); d = 17,920.
    "tiny-faces": AdapterOptions(
        alpha=9.0,
        targets=("to_q", "to_k", "to_v", "to_out.0"),
        prompt="photo of sks person",
        prior_prompt="photo of a person",
        prior_weight=0.1,
        prior_pictures=64,
        steps=300,
        batch=3,
        lr=4e-3,
        final_lr=0.0,
    ),
}


def options_for(source: str) -> AdapterOptions:
    """The options for a base model by its name: tuned ones for `tiny-faces`, the paper's otherwise."""
    return PRESETS.get(source, AdapterOptions())


def from_start(options: AdapterOptions) -> AdapterOptions:
    """The options for training that begins where an encoder puts the photos: a tenth of the rate, and the midpoint of start and end.

    So begins HyperDreamBooth (Ruiz et al. 2024), whose network predicts an adapter of smaller rank. The midpoint is that of
    Wortsman et al. 2022, eq. 1, between a network that knows much and itself trained on little; here A and B are blended, not
    their product. Both were chosen on val people of the first edition of `tiny-faces` (docs/research/adapters.md).
    """
    return replace(options, lr=options.lr / 10, blend=0.5)


@dataclass(frozen=True)
class Trained:
    """Adapters of k people and how they came about."""

    weights: Tensor  # [k, d] float32
    losses: Tensor  # [steps, k] float32, on the person's photos alone, on the way to the end
    unet_evals: int  # pictures a person that went through the UNet


def prior_latents(base: BaseModel, options: AdapterOptions, guidance: float = 2.0) -> Tensor:
    """Latents of pictures that the base itself draws for the class, which adapters should leave alone: [n, c, h, w]."""
    seeds = [int(torch.randint(2**31, (1,), generator=generator(options.seed, "prior", i))) for i in range(options.prior_pictures)]
    pictures = base.generate(options.prior_prompt, seeds, guidance=guidance)
    return base.encode_images(to_tensor(pictures)).float()


def train_adapters(
    base: BaseModel,
    layout: Layout,
    latents: Sequence[Tensor],
    keys: Sequence[str],
    options: AdapterOptions,
    prior: Tensor | None = None,
    progress: str = "",
    start: Tensor | None = None,
) -> Trained:
    """Train one adapter for each person, all in one batch; on a CPU, one batch per core.

    latents: for each person, scaled latents [p, c, h, w] of their p photos. keys: for each person, the name of their
    random draws. prior: latents [n, c, h, w] of the class, or None to train without prior preservation.
    progress: what to call the work on stderr; silent by default. start: weights [k, d] to begin from; a random A that all
    share, and B = 0, unless given. What is returned lies between it and the end, as `options.blend` says.
    Raises W2WError if a person has no photo, `start` is of another shape, or the weights stop being numbers.
    """
    if start is not None and start.shape != (len(keys), layout.d):
        raise W2WError(f"training starts at weights {list(start.shape)}; {len(keys)} people of {layout.d} numbers were expected.")
    if len(latents) != len(keys) or any(len(own) == 0 for own in latents):
        raise W2WError(f"{len(latents)} people with photos for {len(keys)} keys. Every person needs at least one photo.")
    cores = torch.get_num_threads() if base.device.type == "cpu" else 1
    n = max(1, min(cores, len(keys) // WORTH_A_CORE))
    shares = list(batches(len(keys), max(1, -(-len(keys) // n))))
    begin = initial_weights(layout, options.seed).expand(len(keys), -1) if start is None else start
    stop = Event()

    def work(share: slice) -> Trained:
        if n > 1:
            torch.set_num_threads(1)
        shown = progress if share.start == 0 else ""
        return _train(base, layout, latents[share], keys[share], options, prior, begin[share], shown, stop)

    if n == 1:
        return work(slice(0, len(keys)))
    # Two cores at a share each beat two at every one of a step's 2,000 small operations, after which they wait for each other.
    try:
        with ThreadPoolExecutor(n) as pool:
            try:
                parts = list(pool.map(work, shares))
            finally:
                stop.set()  # or an interrupt would wait for the other shares' last step
    finally:
        torch.set_num_threads(cores)
    return Trained(torch.cat([p.weights for p in parts]), torch.cat([p.losses for p in parts], 1), parts[0].unet_evals)


def _train(
    base: BaseModel,
    layout: Layout,
    latents: Sequence[Tensor],
    keys: Sequence[str],
    options: AdapterOptions,
    prior: Tensor | None,
    start: Tensor,
    progress: str,
    stop: Event,
) -> Trained:
    """`train_adapters` of a share of the people; gives up once `stop` is set."""
    device, k = base.device, len(keys)
    shared = _Shared.of(base, options, prior)
    flat, places = _photos_of_all(latents, keys, options)
    flat = flat.to(device)
    weights = start.to(device, torch.float32, copy=True).contiguous().requires_grad_(True)
    rate = torch.tensor(0.0, device=device)
    optimiser = torch.optim.Adam([weights], lr=rate, fused=True, capturable=device.type == "cuda")

    def advance(draws: _Draws) -> Tensor:
        x, t, noise = shared.pictures(flat, draws)
        loss = denoising_loss(base, layout, weights, x, shared.context.expand(k, -1, -1, -1), t, noise)
        own = loss[:, : options.batch].mean(1)
        total = own.sum()
        if shared.extra:
            total = total + options.prior_weight * loss[:, options.batch :].mean(1).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        return own.detach()

    losses = torch.zeros(options.steps, k, device=device)
    recorded: Callable[[_Draws], Tensor] | None = None
    steps = range(options.steps)
    for step in takewhile(lambda _: not stop.is_set(), track(steps, progress, "steps") if progress else steps):
        draws = shared.draw(step, places[step])
        recorded = recorded or replayed(advance, draws, optimiser)
        falling = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        rate.fill_(options.lr * (options.final_lr + (1 - options.final_lr) * falling))
        losses[step] = recorded(draws)
    if not torch.isfinite(weights).all():
        raise W2WError(f"training diverged at learning rate {options.lr:g}: weights are not numbers. Lower --lr.")
    ended = start.to(weights).lerp(weights.detach(), options.blend)
    return Trained(ended.cpu(), losses.cpu(), options.steps * (options.batch + shared.extra))


class _Draws(NamedTuple):
    """The random part of a step. Which photos is each person's own; timesteps and noise are everybody's.

    So the adapters of two people differ by their photos, and not by the noise that they happened to be trained on.
    """

    photos: Tensor  # [k, n]: rows of everybody's photos
    prior: Tensor  # [extra]: rows of the class's pictures
    t: Tensor  # [n + extra]
    noise: Tensor  # [n + extra, c, h, w]


@dataclass(frozen=True)
class _Shared:
    """What all people of a training share: captions, pictures of the class, timesteps and noise."""

    options: AdapterOptions
    context: Tensor  # [n + extra, tokens, width]
    prior: Tensor | None  # [m, c, h, w]
    extra: int  # pictures of the class a person and step
    shape: tuple[int, int, int]  # of a picture's latents

    @classmethod
    def of(cls, base: BaseModel, options: AdapterOptions, prior: Tensor | None) -> "_Shared":
        contexts = base.encode_text([options.prompt, options.prior_prompt]).float()
        extra = options.prior_batch if prior is not None and options.prior_weight > 0 else 0
        context = torch.cat([contexts[0:1].expand(options.batch, -1, -1), contexts[1:2].expand(extra, -1, -1)])
        return cls(options, context, prior.to(base.device) if prior is not None and extra else None, extra, base.latent_shape)

    def draw(self, step: int, photos: Tensor) -> _Draws:
        """The draws of a step, whose photos are drawn already. Timesteps cover the schedule evenly."""
        draw, n, device = generator(self.options.seed, "adapters", step), self.options.batch, self.context.device
        t = torch.cat([(torch.arange(part) + torch.rand(part, generator=draw)) / part for part in (n, self.extra) if part])
        of_prior = torch.randint(len(self.prior) if self.prior is not None else 1, (self.extra,), generator=draw)
        noise = torch.randn(n + self.extra, *self.shape, generator=draw)
        return _Draws(photos.to(device), of_prior.to(device), (t * 1000).long().clamp_max(999).to(device), noise.to(device))

    def pictures(self, flat: Tensor, draws: _Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [k, n + extra, c, h, w], timesteps [k, n + extra] and noise of the latents' shape."""
        x = flat[draws.photos]
        if self.prior is not None:
            x = torch.cat([x, self.prior[draws.prior].to(x).expand(len(x), -1, -1, -1, -1)], 1)
        return x, draws.t.expand(len(x), -1), draws.noise.to(x).expand(len(x), -1, -1, -1, -1)


def _photos_of_all(latents: Sequence[Tensor], keys: Sequence[str], options: AdapterOptions) -> tuple[Tensor, Tensor]:
    """Everybody's photos in one tensor, and which rows of it each step takes: [steps, k, n], drawn by a generator of each person."""
    first, places = 0, []
    for photos, key in zip(latents, keys, strict=True):
        draw = generator(options.seed, "adapter", key)
        places.append(first + torch.randint(len(photos), (options.steps, options.batch), generator=draw))
        first += len(photos)
    return torch.cat(list(latents)), torch.stack(places, 1)
