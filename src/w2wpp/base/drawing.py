"""Draw the pictures of many adapters: rows that share image seeds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.progress import track
from w2wpp.common.seeds import generator
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import Image


def picture_rows(
    base: BaseModel,
    layout: Layout,
    weights: Tensor,
    prompt: str,
    seeds: Sequence[int],
    *,
    guidance: float = 2.0,
    negative: str = "",
    steps: int = 20,
) -> list[list[Image]]:
    """Draw each adapter of weights [k, d] at each image seed -> k rows of pictures [h, w, 3] uint8.

    negative: the caption that guidance leads away from.
    All rows share the image seeds, so two rows differ by their adapters only.
    """
    k, n = len(weights), len(seeds)
    each = weights.repeat_interleave(n, 0)
    pictures = base.generate(prompt, list(seeds) * k, layout=layout, weights=each, guidance=guidance, negative=negative, steps=steps)
    return [pictures[i * n : (i + 1) * n] for i in range(k)]


def edited_rows(
    base: BaseModel,
    layout: Layout,
    original: Tensor,
    edited: Tensor,
    prompt: str,
    seeds: Sequence[int],
    *,
    inject_at: float = 1.0,
    guidance: float = 2.0,
    negative: str = "",
    steps: int = 20,
) -> list[list[Image]]:
    """Draw each edited adapter [k, d] at each image seed -> k rows of pictures, to lie under `picture_rows` of the original ones.

    inject_at: `delayed` of `BaseModel.generate`; timesteps above this share of the schedule see the original adapter.
    """
    k, n = len(edited), len(seeds)
    before, after = (weights.repeat_interleave(n, 0) for weights in (original, edited))
    pictures = base.generate(
        prompt,
        list(seeds) * k,
        layout=layout,
        weights=after,
        guidance=guidance,
        negative=negative,
        steps=steps,
        delayed=(before, inject_at),
    )
    return [pictures[i * n : (i + 1) * n] for i in range(k)]


def generate_for(
    base: BaseModel,
    layout: Layout,
    weights: Tensor | None,
    keys: Sequence[str],
    prompt: str,
    n: int = 5,
    *,
    guidance: float = 2.0,
    negative: str = "",
    steps: int = 20,
    seed: int = 0,
    group: int = 32,
) -> list[list[Image]]:
    """Draw n pictures for each key: a list of pictures [h, w, 3] uint8 a key.

    weights: an adapter a key, [k, d]; None draws from the base alone. Picture i of a key starts from the noise of
    (seed, key, i), whatever the weights, so that two methods differ by their adapters alone.
    """
    rows: list[list[Image]] = []
    for s in track(list(batches(len(keys), group)), f"draw {n} pictures each", f"groups of {group} models"):
        seeds = [int(torch.randint(2**31, (1,), generator=generator(seed, "picture", key, i))) for key in keys[s] for i in range(n)]
        adapters = None if weights is None else weights[s].repeat_interleave(n, 0)
        drawn = base.generate(prompt, seeds, layout=layout, weights=adapters, guidance=guidance, negative=negative, steps=steps)
        rows += [drawn[i : i + n] for i in range(0, len(drawn), n)]
    return rows
