"""How many people share a pass of training: as many as fit into a given memory, which results do not depend on."""

import torch

from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.memory import GIB, free_bytes, ran_out
from w2wpp.common.progress import note
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout

# Bytes that a pass may keep for its backward on a CPU. The backward itself takes two thirds of that again: together some
# 300 MiB, half of what the interpreter and its libraries take.
ROOM = 180 * 2**20
BACKWARD = 5 / 3  # of what is kept
MOST = 64  # people; more in a pass gain no speed


def people_at_a_time(base: BaseModel, layout: Layout, options: AdapterOptions) -> int:
    """How many people to train in a pass, from 1 to `MOST`: as many as keep at most `ROOM`, and a third of what is free.

    Tried with one person first, and with two only where that leaves room. Raises W2WError if not even one fits.
    """
    free = free_bytes(base.device)
    room = free // 3 if base.device.type == "cuda" else min(ROOM, free // 3)
    try:
        one = kept_bytes(base, layout, options, 1)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise W2WError(f"a training step of one person does not fit into {free / GIB:.1f} GiB. Give --low-memory.") from error
    if one > room:
        if one * BACKWARD > free:
            note(f"a step of one person takes {one * BACKWARD / GIB:.1f} GiB, and {free / GIB:.1f} are free; --low-memory takes less.")
        return 1
    one_more = kept_bytes(base, layout, options, 2) - one
    return max(1, min(MOST, room // max(1, one_more)))


def kept_bytes(base: BaseModel, layout: Layout, options: AdapterOptions, people: int) -> int:
    """What a training step of so many people keeps from its forward for its backward, in the precision that the device is fast in."""
    pictures = options.batch + (options.prior_batch if options.prior_weight > 0 else 0)
    weights = initial_weights(layout).expand(people, -1).to(base.device).clone().requires_grad_(True)
    latents = torch.zeros(people, pictures, *base.latent_shape, device=base.device)
    context = base.encode_text([options.prompt])[0].float()
    timesteps = torch.zeros(people, pictures, dtype=torch.long, device=base.device)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = denoising_loss(base, layout, weights, latents, context, timesteps, latents)
    found = sum(kept.values())
    del loss  # only now may its tensors' places be used again
    return found
