"""Train a sharper decoder for an autoencoder whose encoder stays: no latent, UNet or adapter changes with it.

Squares and absolute differences alone make pictures blurred, for they are least at the mean of all that a latent allows. So the
energy of fine detail in each neighbourhood also has to be that of the photo: edges that the latent tells become as sharp as they were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from w2wpp.common.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.common.clock import Clock
from w2wpp.common.precision import fast_products
from w2wpp.common.progress import track
from w2wpp.common.schedules import held_then_falling
from w2wpp.common.seeds import generator, named_seed

LOG_EVERY, SAVE_EVERY = 100, 500  # steps
BANDS, WINDOW = 2, 8  # octaves of detail from the finest on; side of a neighbourhood, in pixels of its octave


@dataclass(frozen=True)
class DecoderOptions:
    """How to train the decoder."""

    width: int = 32  # channels
    blocks: tuple[int, ...] = (2, 2, 1, 1)  # of each resolution, the smallest first
    steps: int = 2500
    minutes: float = 0.0  # end after so long though fewer steps were made; 0 is no limit
    batch: int = 16  # photos a step
    lr: float = 1e-3  # AdamW's peak rate; it is held, then falls to 0
    energy: float = 6.0  # weight of the energy of detail, beside absolute differences
    latent_noise: float = 0.05  # standard deviation, for a UNet's latents are not exact
    ema: float = 0.998
    seed: int = 0


def new_decoder(vae: AutoencoderTiny, options: DecoderOptions) -> AutoencoderTiny:
    """An autoencoder with the encoder of `vae` and a decoder of the options' size: its own where that is of this size, else a new one."""
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_") and key != "block_out_channels"}
    widths = (options.width,) * len(options.blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(options.seed, "decoder"))
        new = AutoencoderTiny(**{**config, "decoder_block_out_channels": widths, "num_decoder_blocks": options.blocks})
    new.encoder.load_state_dict(vae.encoder.state_dict())
    shapes = [[parameter.shape for parameter in module.decoder.parameters()] for module in (vae, new)]
    if shapes[0] == shapes[1]:
        new.decoder.load_state_dict(vae.decoder.state_dict())
    return new


def train_decoder(
    vae: AutoencoderTiny, pixels: Tensor, options: DecoderOptions, checkpoint: Path, log: Callable[[dict[str, float]], None]
) -> AutoencoderTiny:
    """Train a decoder on photos [n, 3, h, w] uint8; returns the encoder of `vae` with it. Resumes from `checkpoint`."""
    device = vae.device
    new = new_decoder(vae, options).to(device).requires_grad_(False)
    decoder = new.decoder.train().requires_grad_(True)
    averaged = new_decoder(vae, options).to(device).decoder.requires_grad_(False)
    average = get_ema_multi_avg_fn(options.ema)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    clock = Clock()
    parts: dict[str, Stateful] = {"decoder": decoder, "averaged": averaged, "optimiser": optimiser, "clock": clock}
    first, pixels = load_checkpoint(checkpoint, parts), pixels.to(device)
    limit = 60 * options.minutes
    for step in track(range(first, options.steps), "train the decoder", "steps"):
        progress = max(step / options.steps, clock.seconds() / limit if limit else 0.0)
        if progress >= 1:
            break
        optimiser.param_groups[0]["lr"] = options.lr * held_then_falling(progress)
        photos, decoded = _decoded(new, decoder, pixels, options, generator(options.seed, "decoder", step, device=device))
        off = energy_off(decoded, photos)
        loss = F.l1_loss(decoded, photos) + F.mse_loss(decoded, photos) + options.energy * off
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        average(list(averaged.parameters()), list(decoder.parameters()), 0)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == options.steps:
            log(
                {
                    "step": step + 1,
                    "seconds": round(clock.seconds(), 1),
                    "mse": F.mse_loss(decoded, photos).item(),
                    "energy_off": off.item(),
                }
            )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            save_checkpoint(checkpoint, parts, step + 1)
    decoder.load_state_dict(averaged.state_dict())
    return new.eval().requires_grad_(False)


def energy_off(pictures: Tensor, photos: Tensor) -> Tensor:
    """How far the energy of detail in each neighbourhood of pictures [n, 3, h, w] is from that of photos, octave by octave."""
    off = torch.zeros((), device=photos.device)
    for _ in range(BANDS):
        smaller = [F.avg_pool2d(x, 2) for x in (pictures, photos)]
        details = [x - F.interpolate(y, x.shape[-2:], mode="bilinear") for x, y in zip((pictures, photos), smaller, strict=True)]
        strengths = [(F.avg_pool2d(detail.square(), WINDOW, WINDOW // 2) + 1e-6).sqrt() for detail in details]
        off = off + F.l1_loss(strengths[0], strengths[1])
        pictures, photos = smaller
    return off


def _decoded(
    vae: AutoencoderTiny, decoder: nn.Module, pixels: Tensor, options: DecoderOptions, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch of photos in [-1, 1], mirrored at random, and what the decoder makes of their latents: [b, 3, h, w] each."""
    rows = torch.randint(len(pixels), (options.batch,), generator=draw, device=pixels.device)
    mirrored = torch.rand(options.batch, generator=draw, device=pixels.device) < 0.5
    x = pixels[rows].float() / 127.5 - 1
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    with torch.no_grad():
        latents = vae.encoder(x)
        latents = latents + options.latent_noise * torch.randn(latents.shape, generator=draw, device=latents.device)
    with fast_products(pixels.device):
        decoded: Tensor = decoder(latents)
    return x, decoded.float()
