"""The diffusion loss of adapters: how well the base, with each of them, predicts the noise in pictures."""

from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.lora.batched import adapted
from w2wpp.lora.layout import Layout


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
    Ho et al. 2020, eq. 14; for a point of a space it is eq. 5 of Weights2Weights++. Raises W2WError for a layout with a text encoder.
    """
    layout.check_denoiser_alone()
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
