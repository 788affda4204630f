"""Train a pipeline's autoencoder on aligned photos (Rombach et al. 2022, section 3.1).

The latents get a little noise and a weak penalty on their squares while it trains. Together they stand in for the KL
of a variational autoencoder: the penalty fixes the scale, the noise makes nearby latents mean similar pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from pytorch_optimizer import SOAP
from torch import Tensor

from w2wpp.common.checkpoints import load_checkpoint, save_checkpoint
from w2wpp.common.precision import fast_products
from w2wpp.common.progress import track
from w2wpp.common.schedules import one_cycle
from w2wpp.common.seeds import generator


@dataclass(frozen=True)
class AutoencoderOptions:
    """How to train the autoencoder."""

    steps: int = 5000
    batch: int = 16  # photos a step
    lr: float = 3e-3  # SOAP's peak rate; one-cycle schedule
    latent_noise: float = 0.05  # standard deviation; the latents' own is near 1
    latent_penalty: float = 1e-4  # weight of half the mean square of latents, beside the error of pixels in [-1, 1]
    seed: int = 0


def train_autoencoder(
    vae: AutoencoderTiny,
    pixels: Tensor,
    options: AutoencoderOptions,
    checkpoint: Path,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train `vae` in place on photos [n, 3, h, w] uint8, mirrored at random, and set its scaling factor.

    Resumes from `checkpoint` where that exists. The scaling factor makes the latents' standard deviation 1.
    """
    device = vae.device
    vae.train().requires_grad_(True).to(memory_format=torch.channels_last)
    # Preconditioning in the eigenbasis of Shampoo (Vyas et al. 2024): 4 times AdamW's progress a minute here.
    optimiser = SOAP(vae.parameters(), lr=options.lr, betas=(0.95, 0.95), weight_decay=1e-4, precondition_frequency=25)
    schedule = one_cycle(optimiser, options.lr, options.steps, 0.05)
    parts = {"vae": vae, "optimiser": optimiser, "schedule": schedule}
    first = load_checkpoint(checkpoint, parts)
    for step in track(range(first, options.steps), "train the autoencoder", "steps"):
        draw = generator(options.seed, "autoencoder", step)
        rows = torch.randint(len(pixels), (options.batch,), generator=draw)
        mirrored = torch.rand(options.batch, generator=draw) < 0.5
        x = pixels[rows].float() / 127.5 - 1
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x).to(device)
        with fast_products(device):
            latents = vae.encoder(x)
            noise = torch.randn(latents.shape, generator=draw).to(device)
            decoded = vae.decoder(latents + options.latent_noise * noise).float()
        # Squares and absolute differences together keep edges, which carry identity.
        reconstruction = F.mse_loss(decoded, x) + 0.1 * F.l1_loss(decoded, x)
        penalty = 0.5 * latents.float().square().mean()
        optimiser.zero_grad(set_to_none=True)
        (reconstruction + options.latent_penalty * penalty).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            log({"step": step + 1, "mse": F.mse_loss(decoded, x).item(), "latent_square": 2 * penalty.item()})
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            save_checkpoint(checkpoint, parts, step + 1)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        sample = vae.encoder(pixels[:512].to(device).float() / 127.5 - 1)
    vae.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
