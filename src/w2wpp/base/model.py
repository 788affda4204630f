"""The frozen text-to-image pipeline that all adapters of a dataset share: load, encode, denoise, generate."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from w2wpp.base.cpu import suit_cpu
from w2wpp.base.identity import identity
from w2wpp.base.loading import load_part, not_loaded, pipeline_folder, without_advice
from w2wpp.base.room import picture_bytes, pictures_at_a_time
from w2wpp.common.device import pick_device
from w2wpp.common.errors import W2WError
from w2wpp.common.memory import in_groups
from w2wpp.common.precision import fast_products
from w2wpp.common.progress import quiet_loading
from w2wpp.lora.batched import adapted, checkpointed
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import Image, to_images, to_tensor

GREY_SPREAD = 6  # levels of 255 between the channels of a picture that counts as grey


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
    folder: Path | None = None  # where its files lie

    @classmethod
    def load(
        cls, source: str | Path = "tiny-faces", device: str = "auto", dtype: torch.dtype | None = None, low_memory: bool = False
    ) -> "BaseModel":
        """Load `tiny-faces` (embedded), a pipeline folder, or a hub id such as `stable-diffusion-v1-5/...`.

        dtype: of the frozen networks; float32 on the CPU and float16 on a GPU unless given. low_memory: what a training step
        needs of the UNet is computed again in its backward pass (Chen et al. 2016), and not kept; results are the same.
        Raises W2WError if the source is no pipeline.
        """
        picked = pick_device(device)
        dtype = dtype or (torch.float16 if picked.type == "cuda" else torch.float32)
        try:
            folder = pipeline_folder(source)
            described = StableDiffusionPipeline.load_config(str(folder))
            if described.get("transformer") or described.get("text_encoder_2"):
                kind = described.get("_class_name")
                raise ValueError(f"it is a {kind}; only `w2w import` and `w2w export` work on it, the rest needs Stable Diffusion 1 or 2.")
            with quiet_loading(), without_advice():
                parts = {part: load_part(folder, described, part, dtype) for part in ("unet", "vae", "text_encoder")}
                pipeline = StableDiffusionPipeline.from_pretrained(
                    str(folder), **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
                )
        except Exception as error:  # diffusers raises OSError, ValueError, EnvironmentError and its hub's own
            raise not_loaded(source, error) from error
        pipeline.set_progress_bar_config(disable=True)
        if picked.type == "cpu":
            suit_cpu(pipeline.unet)
        if low_memory:
            pipeline.unet.enable_gradient_checkpointing(checkpointed)
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.to(picked).requires_grad_(False).eval()
        return cls(pipeline, str(source), picked, dtype, folder)

    @cached_property
    def id(self) -> str:
        """Which base this is (`w2wpp.base.identity`): quick once its files have been read a first time."""
        return identity(self.pipeline.unet, self.folder)

    @cached_property
    def picture_bytes(self) -> int:
        """What drawing one picture takes, as tried once (`w2wpp.base.room`)."""
        return picture_bytes(self)

    @cached_property
    def noise_scheduler(self) -> DDPMScheduler:
        """The forward process: betas, timesteps and what the UNet predicts, from the pipeline's own scheduler."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    @cached_property
    def draws_grey(self) -> bool:
        """Whether its pictures are grey: a colour photo is brought to grey for such a base."""
        hues = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        hues[..., 0], hues[..., 2] = 200, 60  # a strong colour, which a grey decoder cannot give back
        decoded = self.decode_latents(self.encode_images(to_tensor(list(hues))))[0].astype(int)
        return bool(np.ptp(decoded, axis=-1).mean() < GREY_SPREAD)

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
    def encode_text(self, prompts: Sequence[str], layout: Layout | None = None, weights: Tensor | None = None) -> Tensor:
        """Prompts -> context [n, tokens, width]. Raises W2WError for a word that the vocabulary lacks, or a prompt that is too long.

        weights: adapters [k, d], whose text encoder's part, where the layout has one, is added; n is a multiple of k.
        """
        tokenizer = self.pipeline.tokenizer
        for prompt in dict.fromkeys(prompts):
            found = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if found > tokenizer.model_max_length:  # what is cut may be the person
                limit = f"{self.source} takes {tokenizer.model_max_length}, start and end included"
                raise W2WError(f"prompt {prompt[:80]!r} has {found} tokens; {limit}. Write a shorter one.")
        tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        unknown = tokenizer.unk_token_id
        # SD 1.5 spells any word in pieces, and its unknown token doubles as the end token.
        if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            for prompt, ids in zip(prompts, tokens.input_ids, strict=True):
                if (ids == unknown).any():
                    raise W2WError(f"prompt {prompt!r} has a word that {self.source} does not know. {self._vocabulary_hint()}")
        ids, encoder = tokens.input_ids.to(self.device), self.pipeline.text_encoder
        with nullcontext() if layout is None or weights is None else adapted(encoder, layout, weights, "text_encoder"):
            return encoder(ids)[0]

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
        size, vae = pictures_at_a_time(self, len(pixels)), self.pipeline.vae
        encoded = in_groups(len(pixels), size, lambda s: scaled_latents(vae, pixels[s].to(self.device, self.dtype)), "photos")
        return torch.cat(list(encoded))

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image]:
        """Scaled latents [n, c, h', w'] -> pictures [h, w, 3] uint8."""

        def decoded(s: slice) -> list[Image]:
            part = latents[s]
            pixels = self._decoded(part)
            if not (torch.isfinite(part).all() and torch.isfinite(pixels).all()):  # it would be black
                raise W2WError(
                    f"a picture of {self.source} holds NaN or infinity: an adapter or the guidance is too large. Take a smaller one."
                )
            return to_images(pixels)

        return [image for part in in_groups(len(latents), pictures_at_a_time(self, len(latents)), decoded, "pictures") for image in part]

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """What the UNet predicts (noise, or v) for noisy latents [n, c, h, w] at timesteps [n]; float32."""
        with fast_products(self.device, self.dtype):
            return self.pipeline.unet(noisy.to(self.dtype), timesteps, context.to(self.dtype)).sample.float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, noise and timesteps -> noisy latents and the target the UNet should predict for them."""
        scheduler = self.noise_scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        if scheduler.config.prediction_type == "v_prediction":
            return noisy, scheduler.get_velocity(latents, noise, timesteps)
        return noisy, noise

    def noise_for(self, seeds: Sequence[int]) -> Tensor:
        """Starting noise [n, c, h, w], one generator per seed: a picture's noise does not depend on its batch."""
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
        negative: str = "",
        steps: int = 20,
        batch: int | None = None,
        delayed: tuple[Tensor, float] | None = None,
    ) -> list[Image]:
        """Draw a picture for each seed, [h, w, 3] uint8.

        prompts: one for all, or one per seed. weights: None for the base alone; [d] for one adapter; [n, d] for an
        adapter a seed. guidance: Ho and Salimans 2022, against `negative`, the empty caption unless given. Solver: DPM-Solver++ 2M.
        batch: pictures at a time, as many as fit unless given; no picture depends on it but in its last bit.
        delayed: (original, at): timesteps from `at` up, as a share of the schedule whose 1 is pure noise, are solved
        with the adapters `original` and only later ones with `weights`, which keeps the original's layout (Dravid et
        al. 2024, section 4.2). At 1 it is `weights` all the way, at 0 `original`. Raises W2WError outside 0 to 1, for more
        steps than timesteps, and for NaN or infinity in what is given or drawn.
        """
        last = self.noise_scheduler.config.num_train_timesteps
        if not 1 <= steps <= last:
            raise W2WError(f"{steps} solver steps were asked for; {self.source} has {last} timesteps. Take from 1 to {last}.")
        if not math.isfinite(guidance):
            raise W2WError(f"guidance is {guidance}; a finite number was expected. The usual is 2, and 1 is none.")
        captions = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
        if len(captions) != len(seeds):
            raise W2WError(f"{len(captions)} prompts for {len(seeds)} seeds. Give one prompt, or as many as seeds.")
        distinct = list(dict.fromkeys([negative, *captions]))
        plain = dict(zip(distinct, self.encode_text(distinct), strict=True))

        def a_seed(adapters: Tensor | None) -> Tensor | None:
            if adapters is None:
                return None
            adapters = adapters.to(self.device, torch.float32)
            if not torch.isfinite(adapters).all():
                raise W2WError("an adapter holds weights that are not numbers. Leave it out or train it again.")
            return adapters.expand(len(seeds), -1) if adapters.dim() == 1 or len(adapters) == 1 else adapters

        original, at = delayed or (None, 1.0)
        if not 0 <= at <= 1:
            raise W2WError(f"an edit cannot set in at {at:g} of the schedule; a share from 0 (the end) to 1 (pure noise) was expected.")
        before, after = a_seed(original), a_seed(weights)

        def drawn(s: slice) -> list[Image]:
            part = [None if adapters is None else adapters[s] for adapters in (before, after)]
            contexts = [self._contexts(captions[s], negative, plain, layout, adapters) for adapters in part]
            return self.decode_latents(self._solve(self.noise_for(seeds[s]), contexts, layout, part, at, guidance, steps))

        groups = in_groups(len(seeds), batch or pictures_at_a_time(self, len(seeds)), drawn, "pictures")
        return [image for group in groups for image in group]

    def draw(self, noise: Tensor, contexts: tuple[Tensor, Tensor], layout: Layout, weights: Tensor, guidance: float, steps: int) -> Tensor:
        """Noise [n, c, h, w] -> pictures [n, 3, h, w] float32, about in [-1, 1], as `generate`; with gradients to weights [k, d].

        contexts: of the captions and of what guidance leads away from, [n, tokens, width] each. Each adapter draws n / k pictures. What
        is not a number is not refused.
        """
        latents = self._solve(noise, [contexts] * 2, layout, [weights] * 2, 1.0, guidance, steps)
        return self._decoded(latents).float()

    def _decoded(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        pixels: Tensor = vae.decode(latents.to(self.device, self.dtype) / vae.config.scaling_factor).sample
        return pixels

    def _contexts(
        self, captions: Sequence[str], negative: str, plain: dict[str, Tensor], layout: Layout | None, adapters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Contexts of the captions and of the negative one, [n, tokens, width] each: `plain`, or as each adapter reads them."""
        if layout is not None and adapters is not None and "text_encoder" in layout.parts:
            return self.encode_text(captions, layout, adapters), self.encode_text([negative] * len(captions), layout, adapters)
        context = torch.stack([plain[caption] for caption in captions])
        return context, plain[negative].expand_as(context)

    def _solve(
        self,
        noise: Tensor,
        contexts: Sequence[tuple[Tensor, Tensor]],
        layout: Layout | None,
        adapters: Sequence[Tensor | None],
        at: float,
        guidance: float,
        steps: int,
    ) -> Tensor:
        """From noise to latents. contexts, adapters: those for timesteps from the share `at` of the schedule up, and those below."""
        scheduler = DPMSolverMultistepScheduler.from_config(
            self.pipeline.scheduler.config, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )
        scheduler.set_timesteps(steps)
        x = noise.to(self.device) * scheduler.init_noise_sigma

        def denoise(x: Tensor, t: Any, context: Tensor, null: Tensor) -> Tensor:
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
        for weights, told, part in zip(adapters, contexts, (times[:switch], times[switch:]), strict=True):
            with nullcontext() if weights is None or layout is None else adapted(self.pipeline.unet, layout, weights):
                for t in part:
                    x = scheduler.step(denoise(x, t, *told), t, x).prev_sample
        return x
