"""Train a pipeline's autoencoder on aligned photos (Kingma and Welling 2014; Rombach et al. 2022, section 3.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from w2wpp.checkpoints import load_checkpoint, save_checkpoint
from w2wpp.progress import track
from w2wpp.seeds import generator


@dataclass(frozen=True)
class AutoencoderOptions:
    """How to train the autoencoder."""

    steps: int = 2600
    batch: int = 32  # photos a step
    lr: float = 2e-3  # Adam's peak rate; one-cycle schedule
    kl_weight: float = 1e-4  # of the KL a latent number, beside the mean squared error of pixels in [-1, 1]
    seed: int = 0


def train_autoencoder(
    vae: AutoencoderKL,
    pixels: Tensor,
    options: AutoencoderOptions,
    checkpoint: Path,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train `vae` in place on photos [n, 3, h, w] uint8, mirrored at random, and set its scaling factor.

    Goes on from `checkpoint` where that exists. The scaling factor makes the latents' standard deviation 1.
    """
    device = vae.device
    vae.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.lr, options.steps, pct_start=0.1)
    parts = {"vae": vae, "optimiser": optimiser, "schedule": schedule}
    first = load_checkpoint(checkpoint, parts)
    for step in track(range(first, options.steps), "autoencoder"):
        draw = generator(options.seed, "autoencoder", step)
        rows = torch.randint(len(pixels), (options.batch,), generator=draw)
        mirrored = torch.rand(options.batch, generator=draw) < 0.5
        x = pixels[rows].float() / 127.5 - 1
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=draw).to(device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        # Squares and absolute differences together keep edges, which carry identity.
        reconstruction = F.mse_loss(decoded, x) + 0.1 * F.l1_loss(decoded, x)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        optimiser.zero_grad(set_to_none=True)
        (reconstruction + options.kl_weight * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            log({"step": step + 1, "mse": F.mse_loss(decoded, x).item(), "kl": kl.item()})
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            save_checkpoint(checkpoint, parts, step + 1)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        sample = vae.encode(pixels[:512].to(device).float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
