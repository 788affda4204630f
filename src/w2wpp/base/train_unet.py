"""Train a pipeline's UNet and text encoder on photos with captions (Rombach et al. 2022, eq. 3).

What makes names matter: most people have one photo, too few to learn a name from. So a name's token starts as a
linear map, learned with everything else, of a descriptor of that person's face; nearby names mean similar faces, and
cross-attention learns to carry identity. In the finished pipeline names are plain tokens.

A step has no loop over photos and asks the GPU for no number, so that there it is recorded once and replayed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from w2wpp.base.captions import CaptionTable, Shares, token_rows
from w2wpp.base.name_embedding import NameEmbedding
from w2wpp.common.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.common.clock import Clock
from w2wpp.common.precision import fast_products
from w2wpp.common.progress import track
from w2wpp.common.replay import replayed
from w2wpp.common.schedules import held_then_falling
from w2wpp.common.seeds import generator, named_seed

LOG_EVERY, SAVE_EVERY = 250, 2000  # steps
HELD_OUT = 256  # photos of the validation loss
SPOILT_SHARE = 0.7  # of the photos with the empty caption, where there are spoilt views


@dataclass(frozen=True)
class DenoiserOptions:
    """How to train the denoiser."""

    steps: int = 5200
    minutes: float = 0.0  # end after so long though fewer steps were made; 0 is no limit
    batch: int = 64  # photos a step
    lr: float = 1e-3  # AdamW's peak rate; it is held, then falls to 0
    hold: float = 0.5  # share of the training after which the rate falls
    weight_decay: float = 1e-2
    ema: float = 0.999  # decay of the averaged weights, which are the ones kept
    snr_cap: float = 5.0  # min-SNR weighting (Hang et al. 2023)
    weight_power: float = 1.0  # of that weighting; below 1 the noisiest steps, which place the face, count for more
    name_jitter: float = 0.2  # noise on a person's descriptor, in standard deviations over people
    name_loudness: float = 1.0  # in the finished base, how far names are from their mean, in place of 1: above it, names count for more
    shift: int = 0  # photos are also shown moved by up to so many pixels
    spoilt: int = 0  # views of each photo that are bent and mixed with others, shown with the empty caption
    compiled: bool = False  # compile the networks first (a minute on a GPU, then some three times the speed)
    snapshots: tuple[float, ...] = ()  # shares of the training after which the averaged weights are kept too
    shares: Shares = field(default_factory=Shares)
    seed: int = 0


@dataclass(frozen=True)
class Captioned:
    """Photos as the denoiser sees them: latents of several views of each photo, and what is known of it.

    The last views, `spoilt`, are bent and mixed. The empty caption is shown with these: guidance leads away from what it draws.
    """

    latents: Tensor  # [n, views + spoilt, c, h, w]
    people: list[str]
    labels: list[dict[str, str]]
    spoilt: int = 0

    def weights(self) -> Tensor:
        """How often to draw each photo: someone with k photos is drawn sqrt(k) times as often as someone with one."""
        counts: dict[str, int] = {}
        for person in self.people:
            counts[person] = counts.get(person, 0) + 1
        return torch.tensor([counts[person] ** -0.5 for person in self.people])


@dataclass(frozen=True)
class HeldOut:
    """Photos of people who are not trained on, one view each: latents [n, c, h, w] and descriptors [n, e] of their people."""

    latents: Tensor
    descriptors: Tensor


class Batch(NamedTuple):
    """What a step is made of, all of it drawn beforehand."""

    latents: Tensor  # [b, c, h, w]
    ids: Tensor  # [b, tokens]
    t: Tensor  # [b]
    noise: Tensor  # [b, c, h, w]
    name_noise: Tensor  # [b, tokens, e]


def train_denoiser(
    pipeline: StableDiffusionPipeline,
    photos: Captioned,
    held_out: HeldOut,
    descriptors: Tensor,
    options: DenoiserOptions,
    checkpoint: Any,
    log: Callable[[dict[str, float]], None],
    keep: Callable[[StableDiffusionPipeline, float], None] | None = None,
    trained: bool = False,
) -> StableDiffusionPipeline:
    """Train the UNet and text encoder of `pipeline`; returns a pipeline with their averaged weights.

    Resumes from the file `checkpoint` where that exists. held_out: for the validation losses. descriptors: [names, e], one
    for each name of the tokenizer, in its order. keep: is given the averaged weights at each of `options.snapshots`.
    trained: whether the pipeline's weights and names are those of a base to train further.
    """
    training = _Training(pipeline, photos, held_out, descriptors, options, trained)
    first = load_checkpoint(checkpoint, training.parts)
    training.loaded()
    torch.backends.cudnn.benchmark = True  # the shapes never change
    advance: Callable[[Batch], Tensor] | None = None
    running, due = None, [share for share in sorted(options.snapshots) if share > training.progress(first)]
    with torch.random.fork_rng(devices=[training.device] if training.device.type == "cuda" else []):
        for step in track(range(first, options.steps), "train the denoiser", "steps"):
            progress = training.progress(step)
            if progress >= 1:
                break
            torch.manual_seed(named_seed(options.seed, "dropout", step))
            batch = training.draw(step)
            advance = advance or replayed(training.step, batch, training.optimiser)
            training.set_rate(options.lr * held_then_falling(progress, hold=options.hold))
            loss = advance(batch)
            if (step + 1) % LOG_EVERY == 0 or step + 1 == options.steps:
                running = loss.item() if running is None else running + 0.2 * (loss.item() - running)
                log({"step": step + 1, "seconds": round(training.clock.seconds(), 1), "loss": running, **training.held_out_losses()})
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
                save_checkpoint(checkpoint, training.parts, step + 1)
            while keep and due and training.progress(step + 1) >= due[0]:
                keep(training.finished(), due.pop(0))
    return training.finished()


class _Training:
    """The moving parts of a training: networks, their average, the optimiser, and what they are fed."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        photos: Captioned,
        held_out: HeldOut,
        descriptors: Tensor,
        options: DenoiserOptions,
        trained: bool = False,
    ) -> None:
        unet, text = pipeline.unet, pipeline.text_encoder
        self.pipeline, self.options, self.device = pipeline, options, unet.device
        if self.device.type == "cpu":
            unet.set_attn_processor(AttnProcessor())  # the fused attention's backward is slow on CPUs: 40% of a step
        first_draw = generator(options.seed, "name embedding")
        self.names = NameEmbedding(
            text.get_input_embeddings(), descriptors, held_out.descriptors[:HELD_OUT], options.name_jitter, first_draw
        )
        if trained:
            self.names.take(text.get_input_embeddings().weight.detach().float().cpu())
        text.set_input_embeddings(self.names.to(self.device))
        self.both = nn.ModuleDict({"unet": unet, "text": text}).train().requires_grad_(True)
        self.averaged = copy.deepcopy(self.both).eval().requires_grad_(False)
        self.average = get_ema_multi_avg_fn(options.ema)
        cuda = self.device.type == "cuda"
        self.rate = torch.tensor(0.0, device=self.device)
        self.optimiser = torch.optim.AdamW(
            self.both.parameters(), lr=self.rate, betas=(0.9, 0.99), weight_decay=options.weight_decay, fused=True, capturable=cuda
        )
        self.clock = Clock()
        self.parts: dict[str, Stateful] = {
            "both": self.both, "averaged": self.averaged, "optimiser": self.optimiser, "clock": self.clock,
        }  # fmt: skip
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        signal = scheduler.alphas_cumprod.to(self.device)
        self.signal, self.spread = signal.sqrt(), (1 - signal).sqrt()
        snr = signal / (1 - signal)
        self.weight = snr.clamp(max=options.snr_cap) / (snr + 1)
        self.training_weight = self.weight**options.weight_power
        self.photos, self.spoilt = photos.latents.to(self.device), photos.spoilt
        self.ends = (photos.weights() / photos.weights().sum()).double().cumsum(0).float().to(self.device)
        self.captions = CaptionTable.of(pipeline.tokenizer, photos.people, photos.labels, options.shares).to(self.device)
        self._prepare_held_out(held_out)
        self._loss_of_step: Callable[[Batch], Tensor] = torch.compile(self.training_loss) if options.compiled else self.training_loss

    def _prepare_held_out(self, held_out: HeldOut) -> None:
        """Fixed batches for the losses of people trained on, of strangers, and of strangers whose name tells who they are."""
        draw = generator(self.options.seed, "held-out bank")
        x = held_out.latents[:HELD_OUT].float().to(self.device)
        seen = self.photos[torch.linspace(0, len(self.photos) - 1, len(x)).long().to(self.device), 0].float()
        t = _stratified(len(x), draw).to(self.device)
        noise = torch.randn(x.shape, generator=draw).to(self.device)
        anyone, named = (
            token_rows(self.pipeline.tokenizer, ["photo of a person", "photo of sks"]).to(self.device).repeat_interleave(len(x), 0).chunk(2)
        )
        sks = self.pipeline.tokenizer.convert_tokens_to_ids("sks")
        stranger = self.names.first + self.names.names + torch.arange(len(x), device=self.device)[:, None]
        named = torch.where(named == sks, stranger, named)
        nothing = torch.zeros(0, device=self.device)
        self.fixed = {
            "seen_loss": Batch(seen, anyone, t, noise, nothing),
            "val_loss": Batch(x, anyone, t, noise, nothing),
            "val_named_loss": Batch(x, named, t, noise, nothing),
        }

    def progress(self, step: int) -> float:
        """The share of the training that is over: of its steps, or of its time if that is more."""
        limit = 60 * self.options.minutes
        return max(step / self.options.steps, self.clock.seconds() / limit if limit else 0.0)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        self.rate.fill_(rate)

    def loaded(self) -> None:
        """Take the optimiser's rate back after a checkpoint replaced it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate

    def draw(self, step: int) -> Batch:
        """Everything random in one step, by generators that the step's number names."""
        draw, n = generator(self.options.seed, "denoiser", step, device=self.device), self.options.batch
        chance = torch.rand(5, n, generator=draw, device=self.device)
        rows = torch.searchsorted(self.ends, chance[0], right=True).clamp_max(len(self.ends) - 1)
        kinds = self.captions.kinds(chance[2])
        ids = self.captions.of_kinds(rows, kinds)
        plain = self.photos.shape[1] - self.spoilt
        views = (chance[1] * plain).long().clamp_max(plain - 1)
        if self.spoilt:
            worse = plain + (chance[1] * self.spoilt).long().clamp_max(self.spoilt - 1)
            views = torch.where((kinds == len(self.captions.ends) - 1) & (chance[4] < SPOILT_SHARE), worse, views)
        latents = self.photos[rows, views].float()
        noise = torch.randn(latents.shape, generator=draw, device=self.device)
        # Timesteps that cover the schedule evenly: less variance than independent draws. Photos come in random order.
        t = ((torch.arange(n, device=self.device) + chance[3]) * (1000 / n)).long().clamp_max(999)
        name_noise = torch.randn(*ids.shape, self.names.descriptors.shape[1], generator=draw, device=self.device)
        return Batch(latents, ids, t, noise, name_noise)

    def step(self, batch: Batch) -> Tensor:
        """One step of the optimiser; returns the loss, which stays on the device."""
        self.names.noise = batch.name_noise
        loss = self._loss_of_step(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.both.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.average(list(self.averaged.parameters()), list(self.both.parameters()), 0)
        return loss.detach()

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss that is minimised."""
        return (self.training_weight[batch.t] * self._errors(self.both, batch)).mean()

    def _errors(self, modules: nn.Module, batch: Batch) -> Tensor:
        signal, spread = (table[batch.t][:, None, None, None] for table in (self.signal, self.spread))
        x, noise = batch.latents, batch.noise
        with fast_products(self.device):
            context = modules.get_submodule("text")(batch.ids)[0]
            predicted = modules.get_submodule("unet")(signal * x + spread * noise, batch.t, context).sample.float()
        return (predicted - (signal * noise - spread * x)).square().mean((1, 2, 3))

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """The averaged weights' losses on fixed photos, timesteps and noise."""
        errors = {name: self._errors(self.averaged, batch) for name, batch in self.fixed.items()}
        return {name: (self.weight[self.fixed[name].t] * error).mean().item() for name, error in errors.items()}

    def finished(self) -> StableDiffusionPipeline:
        """A pipeline of the averaged weights, whose names are plain tokens."""
        unet: Any = copy.deepcopy(self.averaged["unet"])
        text: Any = copy.deepcopy(self.averaged["text"])
        names = text.get_input_embeddings()
        text.set_input_embeddings(nn.Embedding.from_pretrained(names.table(self.options.name_loudness)))
        parts = {**self.pipeline.components, "unet": unet, "text_encoder": text}
        return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _stratified(n: int, draw: torch.Generator) -> Tensor:
    """Timesteps [n] that cover 0..999 evenly, in random order."""
    spread = (torch.arange(n) + torch.rand(n, generator=draw)) / n * 1000
    return spread.long()[torch.randperm(n, generator=draw)]
