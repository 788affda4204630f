"""Train a pipeline's UNet and text encoder on photos with captions (Rombach et al. 2022, eq. 3).

What makes names matter: most people have one photo, too few to learn a name from. So a name's token starts as a
linear map, learned with everything else, of a descriptor of that person's face; nearby names mean similar faces, and
cross-attention learns to carry identity. In the finished pipeline names are plain tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from pytorch_optimizer import SOAP
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from w2wpp.captions import Shares, caption
from w2wpp.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.progress import track
from w2wpp.schedules import one_cycle
from w2wpp.seeds import generator

LOG_EVERY, SAVE_EVERY = 250, 500  # steps


@dataclass(frozen=True)
class DenoiserOptions:
    """How to train the denoiser."""

    steps: int = 5200
    batch: int = 64  # photos a step
    lr: float = 2e-3  # SOAP's peak rate; one-cycle schedule
    ema: float = 0.999  # decay of the averaged weights, which are the ones kept
    snr_cap: float = 5.0  # min-SNR weighting (Hang et al. 2023)
    name_jitter: float = 0.2  # noise on a person's descriptor, in standard deviations over people
    shares: Shares = field(default_factory=Shares)
    seed: int = 0


class NameEmbedding(nn.Module):
    """Token embeddings in which a name is a linear map of its person's descriptor, plus an offset of its own."""

    descriptors: Tensor

    def __init__(self, embedding: nn.Embedding, descriptors: Tensor, jitter: float, draw: torch.Generator) -> None:
        super().__init__()
        names, width = len(descriptors), embedding.embedding_dim
        self.first = embedding.num_embeddings - names  # names are the last tokens of the vocabulary
        self.jitter = jitter
        self.draw = draw  # set anew for each step
        self.words = nn.Parameter(embedding.weight.detach()[: self.first].clone())
        self.project = nn.Linear(descriptors.shape[1], width, bias=False)
        self.offsets = nn.Parameter(torch.zeros(names, width))
        self.register_buffer("descriptors", (descriptors - descriptors.mean(0)) / descriptors.std(0).clamp_min(1e-6))
        nn.init.normal_(self.project.weight, std=0.05 / descriptors.shape[1] ** 0.5, generator=draw)

    def forward(self, ids: Tensor) -> Tensor:
        rows = (ids - self.first).clamp_min(0)
        described = self.descriptors[rows]
        if self.training:
            described = described + self.jitter * torch.randn(described.shape, generator=self.draw).to(described.device)
        names = self.project(described) + self.offsets[rows]
        words = F.embedding(ids.clamp_max(self.first - 1), self.words)
        return torch.where((ids >= self.first)[..., None], names, words)

    def table(self) -> Tensor:
        """Plain embeddings of every token: [vocabulary, width]."""
        return torch.cat([self.words, self.project(self.descriptors) + self.offsets]).detach()


@dataclass(frozen=True)
class Captioned:
    """Photos as the denoiser sees them: latents of each photo and of its mirror image, and what is known of it."""

    latents: Tensor  # [n, 2, c, h, w]
    people: list[str]
    labels: list[dict[str, str]]

    def weights(self) -> Tensor:
        """How often to draw each photo: someone with k photos is drawn sqrt(k) times as often as someone with one."""
        counts = {person: self.people.count(person) for person in set(self.people)}
        return torch.tensor([counts[person] ** -0.5 for person in self.people])


def train_denoiser(
    pipeline: StableDiffusionPipeline,
    photos: Captioned,
    held_out: Tensor,
    descriptors: Tensor,
    options: DenoiserOptions,
    checkpoint: Path,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train `pipeline.unet` and `pipeline.text_encoder` in place; goes on from `checkpoint` where that exists.

    held_out: latents [n, c, h, w] of people not trained on, for the validation loss. descriptors: [names, e], one for
    each name of the tokenizer, in its order.
    """
    unet, text, tokenizer = pipeline.unet, pipeline.text_encoder, pipeline.tokenizer
    device = unet.device
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused attention's backward is slow on CPUs: 40% of a step
    first_draw = generator(options.seed, "name embedding")
    names = NameEmbedding(text.get_input_embeddings(), descriptors, options.name_jitter, first_draw).to(device)
    text.set_input_embeddings(names)
    both = nn.ModuleDict({"unet": unet, "text": text}).train().requires_grad_(True)
    averaged = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
    # Two minutes of SOAP (Vyas et al. 2024) end at a lower validation loss than two of AdamW, though a step costs 1.4 times.
    optimiser = SOAP(
        both.parameters(), lr=options.lr, betas=(0.95, 0.95), weight_decay=1e-2, precondition_frequency=20, max_precondition_dim=600
    )
    schedule = one_cycle(optimiser, options.lr, options.steps, 0.04)
    parts: dict[str, Stateful] = {"both": both, "averaged": averaged, "optimiser": optimiser, "schedule": schedule}
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    loss_weight = (snr.clamp(max=options.snr_cap) / (snr + 1)).to(device)

    @cache  # thousands of names make the tokenizer slow, and captions come again
    def ids_of_one(words: str) -> Tensor:
        return tokenizer(words, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids[0]

    def ids_of(captions: list[str]) -> Tensor:
        return torch.stack([ids_of_one(words) for words in captions]).to(device)

    def loss_of(modules: nn.Module, x: Tensor, ids: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        x, t, noise = x.to(device), t.to(device), noise.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            context = modules.get_submodule("text")(ids)[0]
            predicted = modules.get_submodule("unet")(scheduler.add_noise(x, noise, t), t, context).sample.float()
        error = (predicted - scheduler.get_velocity(x, noise, t)).square().mean((1, 2, 3))
        return (loss_weight[t] * error).mean()

    bank = generator(options.seed, "held-out bank")
    held_out = held_out[:256]
    bank_t = _stratified(len(held_out), bank)
    bank_noise = torch.randn(held_out.shape, generator=bank)
    sampling = photos.weights()
    running = 0.0
    first = load_checkpoint(checkpoint, parts)
    for step in track(range(first, options.steps), "denoiser"):
        draw = generator(options.seed, "denoiser", step)
        rows = torch.multinomial(sampling, options.batch, replacement=True, generator=draw)
        mirrored = torch.randint(2, (options.batch,), generator=draw)
        captions = [caption(photos.people[i], photos.labels[i], options.shares, draw) for i in rows.tolist()]
        x = photos.latents[rows, mirrored].float()
        noise = torch.randn(x.shape, generator=draw)
        names.draw = draw
        loss = loss_of(both, x, ids_of(captions), _stratified(options.batch, draw), noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        averaged.update_parameters(both)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == options.steps:
            averaged.eval()
            with torch.no_grad():
                ids = ids_of(["photo of a person"] * len(held_out))
                held = loss_of(averaged.module, held_out.float(), ids, bank_t, bank_noise).item()
            log({"step": step + 1, "loss": running, "val_loss": held})
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            save_checkpoint(checkpoint, parts, step + 1)
    unet.load_state_dict(averaged.module.get_submodule("unet").state_dict())
    text.load_state_dict(averaged.module.get_submodule("text").state_dict())
    text.set_input_embeddings(nn.Embedding.from_pretrained(names.table()))
    both.eval().requires_grad_(False)


def _stratified(n: int, draw: torch.Generator) -> Tensor:
    """Timesteps [n] that cover 0..999 evenly, in random order: less variance than independent draws."""
    spread = (torch.arange(n) + torch.rand(n, generator=draw)) / n * 1000
    return spread.long()[torch.randperm(n, generator=draw)]
