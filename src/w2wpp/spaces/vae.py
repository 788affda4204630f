"""VAE-w2w: a variational autoencoder over adapters (Weights2Weights++, section 5.1), exactly as published.

Weights x 10 go through linear layers with LeakyReLU to m latents and back, then tanh. Published without centring and
without a scale for each coordinate; `collapse` shows what comes of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from w2wpp.common.batches import batches
from w2wpp.common.device import pick_device
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Adapters, Space
from w2wpp.spaces.networks import layers
from w2wpp.spaces.seed_networks import SecondEncoder, second_decoder, vanilla_decoder
from w2wpp.spaces.vae_options import VaeOptions
from w2wpp.spaces.vae_training import train_vae


class VaeSpace(Space):
    """A non-linear space; z of an adapter is its posterior's mean, and the prior is N(0, I) (Kingma and Welling 2014)."""

    kind = "vae"

    def __init__(self, layout: Layout, base_id: str, options: VaeOptions) -> None:
        super().__init__(layout, base_id)
        self.options, self.m = options, options.m
        residual = options.variant == "residual-adversarial"
        sizes = (layout.d, *options.widths)
        self.encoder: nn.Module  # mean and log variance of each latent
        self.decoder: nn.Module
        if options.variant == "second":
            self.encoder = SecondEncoder(layout.d, options.widths[0], options.blocks, options.m)
            self.decoder = second_decoder(options.m, options.widths[0], options.blocks, layout.d)
            return
        self.encoder = layers((*sizes, 2 * options.m), residual)
        back = (options.m, *reversed(sizes))
        self.decoder = vanilla_decoder(back) if options.variant == "vanilla" else layers(back, residual)

    @classmethod
    def fit(
        cls,
        data: WeightDataset | Tensor,
        options: VaeOptions | None = None,
        *,
        layout: Layout | None = None,
        base_id: str = "",
        device: str = "auto",
        checkpoint: str | Path | None = None,
        low_memory: bool | None = None,
    ) -> Self:
        """Train on a dataset, or on weights [n, d] given with their layout and base. What training saw is `history` of the space.

        history: {"recon": {"train", "val"}, "kl": {"train", "val"}, "kl_weight", "test"}, one number per epoch; recon is
        the squared error averaged over d in x10 units, kl is in nats, averaged over latents.
        checkpoint: a file that holds the training's state after each epoch; a run that finds the file resumes from it.
        low_memory: half of Adam's memory by `LeanAdam`; where Adam would not fit, unless given.
        Raises W2WError for fewer than m + 1 adapters or three people, NaN, a loss that is not a number, or a foreign checkpoint.
        """
        adapters, options = Adapters.of(data, layout, base_id), options or VaeOptions()
        adapters.check_m(options.m)
        if options.variant == "second" and (options.shift, options.scale) == (0.0, VaeOptions.scale):
            options = _to_unit_range(options, adapters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            space = cls(adapters.layout, adapters.base_id, options)
        space.prompting = adapters.prompting
        space.history = train_vae(space.to(pick_device(device)), adapters, checkpoint, low_memory)
        return space.frozen()

    def encode(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> points z [n, m] float32, their posteriors' means. Raises W2WError for another d or NaN."""
        return self.posterior(self.scaled(weights))[0]

    def decode(self, z: Tensor) -> Tensor:
        """Points z [n, m] -> adapters weights [n, d] float32 in their own units; differentiable."""
        return self.decode_scaled(z.to(self.device)) / self.options.scale + self.options.shift

    def scaled(self, weights: Tensor) -> Tensor:
        """Adapters weights [n, d] -> x [n, d], in the units of the loss. Raises W2WError for another d or NaN."""
        return (self.given(weights) - self.options.shift) * self.options.scale

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled adapters x [n, d] -> mean and log variance of their latents, [n, m] each."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance

    def decode_scaled(self, z: Tensor) -> Tensor:
        """Latents z [n, m] -> scaled adapters [n, d]; each number within -1 and 1, but for the second model."""
        decoded: Tensor = self.decoder(z)
        return decoded if self.options.variant == "second" else decoded.tanh()

    def config(self) -> dict[str, Any]:
        """The options it was trained with."""
        return {"options": asdict(self.options)}

    @classmethod
    def blank(cls, layout: Layout, base_id: str, config: Mapping[str, Any]) -> Self:
        """A space with untrained networks."""
        options = config["options"]
        return cls(layout, base_id, VaeOptions(**{**options, "widths": tuple(options["widths"])}))


def _to_unit_range(options: VaeOptions, adapters: Adapters) -> VaeOptions:
    """The options with the shift and scale that bring all of these adapters' numbers into 0..1, as the second model has them."""
    low, high = float("inf"), float("-inf")
    for s in batches(len(adapters), 512):
        rows = adapters.rows(range(len(adapters))[s])
        low, high = min(low, float(rows.min())), max(high, float(rows.max()))
    if not high > low:
        raise W2WError(f"all numbers of these adapters are {low:g}; nothing can be learned from them.")
    return replace(options, shift=low, scale=1 / (high - low))
