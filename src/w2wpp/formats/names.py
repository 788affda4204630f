"""How other tools spell the layers of a UNet: with underscores for dots, and Stable Diffusion XL in its original blocks.

kohya names SD 1 and 2 by diffusers' blocks (`lora_unet_down_blocks_0_attentions_0_...`) and XL by those of the original
code (`lora_unet_input_blocks_4_1_...`), which counts the blocks' layers through.
"""

import re
from collections.abc import Iterable

ATTENTION = re.compile(r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.attentions\.(?P<at>\d+)\.(?P<rest>.+)")
MIDDLE = "mid_block.attentions.0."


def original_name(layer: str, layers_per_block: int) -> str | None:
    """A layer of an attention block in the original code's names; None for any other layer.

    Each level down has `layers_per_block` layers and a downsampler, behind the first convolution; each level up one more.
    """
    if layer.startswith(MIDDLE):
        return "middle_block.1." + layer.removeprefix(MIDDLE)
    found = ATTENTION.fullmatch(layer)
    if not found:
        return None
    counted = int(found["block"]) * (layers_per_block + 1) + int(found["at"])
    place = f"input_blocks.{counted + 1}" if found["side"] == "down" else f"output_blocks.{counted}"
    return f"{place}.1.{found['rest']}"


def spellings(layers: Iterable[str], layers_per_block: int | None) -> dict[str, str]:
    """Every way in which kohya's files spell these layers, behind `lora_unet_`, and the layer that is meant."""
    spelt = {}
    for layer in layers:
        spelt[layer.replace(".", "_")] = layer
        original = original_name(layer, layers_per_block) if layers_per_block else None
        if original:
            spelt[original.replace(".", "_")] = layer
    return spelt
