"""The first LoRA files of Stable Diffusion (cloneofsimo's `lora`): `unet:0:up`, where the number counts layers in a fixed order.

The order is that in which diffusers of 2022 had the UNet's layers: down, up, then mid; within a block of a transformer the
first attention, the feed-forward network, then the second attention. The scale is 1.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from w2wpp.exchange.formats.keys import FIRST_GENERATION
from w2wpp.exchange.formats.tensors import Header
from w2wpp.lora.layout import part_of, sides_of

SIDES = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
THEN = {"attn1": 0, "ff": 1, "attn2": 2}
NOW = {"attn1": 0, "attn2": 1, "ff": 2}
IN_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
IN_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
IN_TEXT_NOW = ("k_proj", "v_proj", "q_proj", "out_proj")


def first_generation(header: Header, layers: Mapping[str, nn.Module]) -> dict[str, tuple[tuple[str, ...], str]]:
    """The layer and the role of each key such as `unet:0:up`; none of a part whose shapes fit no known order."""
    shapes: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for key, entry in header.entries.items():
        if found := FIRST_GENERATION.fullmatch(key):
            shapes.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = entry.shape
    placed: dict[str, tuple[tuple[str, ...], str]] = {}
    for part, counted in shapes.items():
        orders = unet_orders(layers) if part == "unet" else text_orders(layers)
        fitting = next((order for order in orders if _fit(order, counted, layers)), None)
        for number, roles in counted.items() if fitting else ():
            placed |= {f"{part}:{number}:{role}": ((fitting[number],), role) for role in roles} if fitting else {}
    return placed


def unet_orders(layers: Iterable[str]) -> list[list[str]]:
    """The UNet's layers in the orders that they may be counted in."""
    found = [layer for layer in layers if not part_of(layer) and re.search(r"\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.0\.proj)$", layer)]
    return [sorted(found, key=_unet_key(order)) for order in (THEN, NOW)]


def text_orders(layers: Iterable[str]) -> list[list[str]]:
    """The text encoder's layers in the orders that they may be counted in."""
    found = [layer for layer in layers if part_of(layer) == "text_encoder" and layer.endswith(IN_TEXT)]

    def key(order: tuple[str, ...]) -> Callable[[str], tuple[int, int]]:
        return lambda layer: (_numbers(layer)[0], order.index(layer.rsplit(".", 1)[1]))

    return [sorted(found, key=key(order)) for order in (IN_TEXT_NOW, IN_TEXT)]


def _unet_key(order: Mapping[str, int]) -> Callable[[str], tuple[object, ...]]:
    def key(layer: str) -> tuple[object, ...]:
        side = layer.split(".", 1)[0]
        place, rest = re.split(r"\.(?=attn[12]\.|ff\.)", layer, maxsplit=1)
        kind, _, within = rest.partition(".")
        return SIDES.get(side, 3), _numbers(place), order[kind], IN_ATTENTION.index(within) if within in IN_ATTENTION else 0

    return key


def _numbers(layer: str) -> list[int]:
    return [int(word) for word in layer.split(".") if word.isdigit()]


def _fit(order: list[str], counted: Mapping[int, Mapping[str, tuple[int, ...]]], layers: Mapping[str, nn.Module]) -> bool:
    """Whether every layer has the shape that the file says for its number."""
    if len(order) != len(counted) or set(counted) != set(range(len(order))):
        return False
    for number, roles in counted.items():
        sides = sides_of(layers[order[number]])
        if sides is None or "up" not in roles or "down" not in roles or (roles["down"][-1], roles["up"][0]) != sides[:2]:
            return False
    return True
