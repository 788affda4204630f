"""The frozen text-to-image pipeline that all adapters of a dataset share: load, encode, denoise, generate."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from w2wpp.cpu import suit_cpu
from w2wpp.errors import W2WError
from w2wpp.images import Image, batches, to_images
from w2wpp.layout import Layout
from w2wpp.lora import adapted

ASSETS = Path(__file__).parent / "assets"
TINY_FACES = ASSETS / "tiny_faces" / "pipeline"
# What changes a UNet's function and not its parameters' shapes. A fixed list, for later versions of diffusers add keys.
IDENTITY = ("act_fn", "attention_head_dim", "num_attention_heads", "norm_num_groups", "sample_size", "time_embedding_type")


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. Raises W2WError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise W2WError(f"device {device} is not available here. Use --device auto or cpu.") from error
    return picked


def scaled_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in [-1, 1] -> latents as the UNet sees them; of a variational autoencoder, the mean."""
    encoded = vae.encode(pixels)
    latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return latents * vae.config.scaling_factor


@dataclass
class BaseModel:
    """A frozen latent diffusion pipeline (Rombach et al. 2022) in diffusers' folder format."""

    pipeline: StableDiffusionPipeline
    source: str
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, source: str | Path = "tiny-faces", device: str = "auto", dtype: torch.dtype | None = None) -> "BaseModel":
        """Load `tiny-faces` (embedded), a pipeline folder, or a hub id such as `stable-diffusion-v1-5/...`.

        dtype: of the frozen networks; float32 on the CPU and float16 on a GPU unless given.
        Raises W2WError if the source is no pipeline.
        """
        picked = pick_device(device)
        dtype = dtype or (torch.float16 if picked.type == "cuda" else torch.float32)
        path = TINY_FACES if str(source) == "tiny-faces" else source
        try:
            described = StableDiffusionPipeline.load_config(str(path))
            if described.get("transformer") or described.get("text_encoder_2"):
                kind = described.get("_class_name")
                raise ValueError(f"it is a {kind}; only `w2w import` and `w2w export` work on it, the rest needs Stable Diffusion 1 or 2.")
            pipeline = StableDiffusionPipeline.from_pretrained(
                str(path), dtype=dtype, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        except Exception as error:  # diffusers raises OSError, ValueError, EnvironmentError and its hub's own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise W2WError(f"base model {source} does not load: {reason} Give a pipeline folder or a hub id.") from error
        pipeline.set_progress_bar_config(disable=True)
        if picked.type == "cpu":
            suit_cpu(pipeline.unet)
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.to(picked).requires_grad_(False).eval()
        return cls(pipeline, str(source), picked, dtype)

    @cached_property
    def id(self) -> str:
        """Which base this is."""
        return identity(self.pipeline.unet)

    @cached_property
    def noise_scheduler(self) -> DDPMScheduler:
        """The forward process: betas, timesteps and what the UNet predicts, from the pipeline's own scheduler."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    @property
    def image_size(self) -> int:
        """The side of a picture in pixels."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""
        config = self.pipeline.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> context [n, tokens, width]. Raises W2WError for a word that the vocabulary lacks."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        unknown = tokenizer.unk_token_id
        # SD 1.5 spells any word in pieces, and its unknown token doubles as the end token.
        if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            for prompt, ids in zip(prompts, tokens.input_ids, strict=True):
                if (ids == unknown).any():
                    raise W2WError(f"prompt {prompt!r} has a word that {self.source} does not know. {self._vocabulary_hint()}")
        return self.pipeline.text_encoder(tokens.input_ids.to(self.device))[0]

    def _vocabulary_hint(self) -> str:
        words = [t for t in self.pipeline.tokenizer.get_vocab() if " " not in t and not t.startswith("<")]
        return f"It knows {', '.join(sorted(words)[:30])}, and the names it was trained on (`w2w base show`)."

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pictures [n, 3, h, w] in [-1, 1] -> scaled latents [n, c, h', w'] (the posterior's mean). Raises at another size."""
        if tuple(pixels.shape[-2:]) != (self.image_size, self.image_size):
            found = f"{pixels.shape[-1]}x{pixels.shape[-2]}"
            raise W2WError(
                f"pictures are {found}; {self.source} expects {self.image_size}x{self.image_size}. Use `w2w faces align --size`."
            )
        return torch.cat([scaled_latents(self.pipeline.vae, pixels[s].to(self.device, self.dtype)) for s in batches(len(pixels), 64)])

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image]:
        """Scaled latents [n, c, h', w'] -> pictures [h, w, 3] uint8."""
        vae = self.pipeline.vae
        images: list[Image] = []
        for s in batches(len(latents), 64):
            images += to_images(vae.decode(latents[s].to(self.device, self.dtype) / vae.config.scaling_factor).sample)
        return images

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """What the UNet predicts (noise, or v) for noisy latents [n, c, h, w] at timesteps [n]; float32."""
        with self.autocast():
            return self.pipeline.unet(noisy.to(self.dtype), timesteps, context.to(self.dtype)).sample.float()

    def autocast(self) -> torch.autocast:
        """bf16 products for float32 networks where the processor has them; off otherwise."""
        fast = self.dtype == torch.float32 and (self.device.type == "cuda" or _cpu_has_bf16())
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, noise and timesteps -> noisy latents and the target the UNet should predict for them."""
        scheduler = self.noise_scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        if scheduler.config.prediction_type == "v_prediction":
            return noisy, scheduler.get_velocity(latents, noise, timesteps)
        return noisy, noise

    def noise_for(self, seeds: Sequence[int]) -> Tensor:
        """Starting noise [n, c, h, w], one generator a seed: a picture's noise does not depend on its batch."""
        return torch.stack([torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int],
        *,
        layout: Layout | None = None,
        weights: Tensor | None = None,
        guidance: float = 2.0,
        steps: int = 20,
        batch: int = 64,
        delayed: tuple[Tensor, float] | None = None,
    ) -> list[Image]:
        """Draw a picture for each seed, [h, w, 3] uint8.

        prompts: one for all, or one a seed. weights: None for the base alone; [d] for one adapter; [n, d] for an
        adapter a seed. guidance: Ho and Salimans 2022 against the empty caption. Solver: DPM-Solver++ 2M.
        delayed: (original, at): timesteps from `at` up, as a share of the schedule whose 1 is pure noise, are solved
        with the adapters `original` and only later ones with `weights`, which keeps the original's layout (Dravid et
        al. 2024, section 4.2). At 1 it is `weights` all the way, at 0 `original`. Raises W2WError outside 0 to 1.
        """
        captions = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
        if len(captions) != len(seeds):
            raise W2WError(f"{len(captions)} prompts for {len(seeds)} seeds. Give one prompt, or as many as seeds.")
        distinct = list(dict.fromkeys(["", *captions]))
        contexts = dict(zip(distinct, self.encode_text(distinct), strict=True))

        def a_seed(adapters: Tensor | None) -> Tensor | None:
            if adapters is None:
                return None
            adapters = adapters.to(self.device, torch.float32)
            return adapters.expand(len(seeds), -1) if adapters.dim() == 1 or len(adapters) == 1 else adapters

        original, at = delayed or (None, 1.0)
        if not 0 <= at <= 1:
            raise W2WError(f"an edit cannot set in at {at:g} of the schedule; a share from 0 (the end) to 1 (pure noise) was expected.")
        before, after = a_seed(original), a_seed(weights)
        images: list[Image] = []
        for s in batches(len(seeds), batch):
            context = torch.stack([contexts[caption] for caption in captions[s]])
            null = contexts[""].expand_as(context)
            part = [None if adapters is None else adapters[s] for adapters in (before, after)]
            latents = self._solve(self.noise_for(seeds[s]), context, null, layout, part, at, guidance, steps)
            images += self.decode_latents(latents)
        return images

    def _solve(
        self,
        noise: Tensor,
        context: Tensor,
        null: Tensor,
        layout: Layout | None,
        adapters: Sequence[Tensor | None],
        at: float,
        guidance: float,
        steps: int,
    ) -> Tensor:
        """From noise to latents. adapters: those for timesteps from the share `at` of the schedule up, and for those below."""
        scheduler = DPMSolverMultistepScheduler.from_config(
            self.pipeline.scheduler.config, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )
        scheduler.set_timesteps(steps)
        x = noise.to(self.device) * scheduler.init_noise_sigma

        def denoise(x: Tensor, t: Any) -> Tensor:
            timesteps = torch.full((len(x),), int(t), device=self.device)
            if guidance == 1:
                return self.predict(x, timesteps, context)
            # Captioned and empty caption side by side, adapter-major: rows 2i and 2i + 1 share adapter i.
            both = torch.stack([context, null], 1).flatten(0, 1)
            out = self.predict(x.repeat_interleave(2, 0), timesteps.repeat_interleave(2), both)
            captioned, empty = out[0::2], out[1::2]
            return empty + guidance * (captioned - empty)

        times = scheduler.timesteps  # falling
        switch = sum(int(t) >= at * scheduler.config.num_train_timesteps for t in times)
        for weights, part in zip(adapters, (times[:switch], times[switch:]), strict=True):
            with nullcontext() if weights is None or layout is None else adapted(self.pipeline.unet, layout, weights):
                for t in part:
                    x = scheduler.step(denoise(x, t), t, x).prev_sample
        return x


def identity(denoiser: Any) -> str:
    """Which weights a denoiser has: 16 hex digits over a fixed sample of every parameter, and `IDENTITY` of its configuration.

    Values are rounded to float16 first, so that the same weights saved in half precision keep their identity.
    """
    shape = {key: denoiser.config.get(key) for key in IDENTITY}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, parameter in sorted(denoiser.named_parameters()):
        sample = parameter.detach().flatten()
        sample = sample[:: max(1, sample.numel() // 64)].to("cpu", torch.float16)
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def denoising_loss(
    base: BaseModel,
    layout: Layout,
    weights: Tensor,
    latents: Tensor,
    context: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The diffusion loss of k adapters on n pictures each, per picture: [k, n] float32.

    weights: [k, d]. latents, noise: [k, n, c, h, w]. context: [tokens, width] for all, or [k, n, tokens, width].
    timesteps: [k, n]. mask: [k, n, 1, h, w] in 0..1, weighs the squared error of each place (its mean stays 1).
    Ho et al. 2020, eq. 14; for a point of a space it is eq. 5 of Weights2Weights++.
    """
    k, n = latents.shape[:2]
    flat = latents.flatten(0, 1)
    noisy, target = base.add_noise(flat, noise.flatten(0, 1), timesteps.flatten())
    contexts = context.expand(k * n, -1, -1) if context.dim() == 2 else context.flatten(0, 1)
    with adapted(base.pipeline.unet, layout, weights):
        predicted = base.predict(noisy, timesteps.flatten(), contexts)
    error = (predicted - target.float()).square().unflatten(0, (k, n))
    if mask is not None:
        error = error * mask / mask.mean((-3, -2, -1), keepdim=True).clamp_min(1e-6)
    return error.mean((-3, -2, -1))


def _cpu_has_bf16() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
