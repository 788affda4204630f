"""Two parts of diffusers' UNet, computed in the shapes that a CPU is fast at: the same sums over the same parameters."""

from types import MethodType

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 32  # latents' side up to which a whole table of attention is small
FEW_KEYS = 32  # rows of a softmax that fill no vector register


def suit_cpu(unet: UNet2DConditionModel) -> None:
    """Make a training step of `unet` an eighth faster on a CPU; hooks and peft's layers go on working.

    A UNet of large latents stays as it is: its self-attention needs the fused kind's memory more than its speed.
    """
    if unet.config.sample_size > LARGEST:
        return
    # The fused attention's backward is slow on CPUs: it was 40% of a training step.
    unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if isinstance(module, Attention):
            module.get_attention_scores = MethodType(_scores, module)
        elif isinstance(module, GEGLU):
            module.forward = MethodType(_gated, module)


def _scores(attn: Attention, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries [b, q, c] to keys [b, k, c]: [b, q, k]. Few keys (a caption's) are summed over down columns."""
    if key.shape[1] >= FEW_KEYS or mask is not None or attn.upcast_attention or attn.upcast_softmax:
        return Attention.get_attention_scores(attn, query, key, mask)
    return torch.bmm(key * attn.scale, query.transpose(1, 2)).softmax(1).transpose(1, 2)


def _gated(unit: GEGLU, x: Tensor) -> Tensor:
    """Shazeer 2020, GEGLU, by two products rather than the halves of one, which are not contiguous."""
    proj = unit.proj
    if type(proj) is not nn.Linear or proj._forward_hooks or proj.bias is None:  # adapted: more is added to the product
        return GEGLU.forward(unit, x)
    (w, gate_w), (b, gate_b) = proj.weight.chunk(2), proj.bias.chunk(2)
    return F.linear(x, w, b) * F.gelu(F.linear(x, gate_w, gate_b))
