"""How other tools spell the layers of a base: with underscores for dots, in the original code's blocks, and fused.

kohya names SD 1 and 2 by diffusers' blocks (`lora_unet_down_blocks_0_attentions_0_...`) and XL by those of the original
code (`lora_unet_input_blocks_4_1_...`), which counts the blocks' layers through. Of Flux and Stable Diffusion 3 the original
code has one layer where diffusers has several (`img_attn.qkv`: to_q, to_k, to_v): the outputs lie one after another.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from w2wpp.lora.layout import part_of

# A block's layers in diffusers' names and in the original code's.
RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
FLUX_DOUBLE = {
    "img_attn.qkv": QKV,
    "txt_attn.qkv": ADDED,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {"linear1": (*QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)}
FLUX_ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
SD3_JOINT = {
    "x_block.attn.qkv": QKV,
    "context_block.attn.qkv": ADDED,
    "x_block.attn.proj": ("attn.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
}
SD3_ENDS = {
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
DENOISER = (
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "unet.",
    "transformer.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
)
TEXT = (
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
    ("text_encoder_3.", "text_encoder_3"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
)


@dataclass(frozen=True)
class Names:
    """The spellings of a base's layers."""

    spelt: dict[str, tuple[str, ...]]  # with underscores for dots -> the layer, or the layers that are fused in it
    original: dict[tuple[str, ...], str]  # the layers of one layer of the original code -> its dotted name

    _found: dict[str, tuple[str, ...] | None] = field(default_factory=dict, repr=False, compare=False)

    def find(self, stem: str) -> tuple[str, ...] | None:
        """The layers that a key's stem stands for, whoever wrote it; None for no layer of this base."""
        if stem not in self._found:  # the files of a folder have the same keys
            self._found[stem] = self._find(stem)
        return self._found[stem]

    def _find(self, stem: str) -> tuple[str, ...] | None:
        for prefix, part in TEXT:
            if stem.startswith(prefix):
                rest = stem.removeprefix(prefix).removeprefix("base_model.model.")
                rest = re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", rest)  # diffusers of 2023
                rest = rest.replace(".", "_")
                parts = (part, "text_encoder_2") if part == "text_encoder_3" else (part,)  # kohya's name of Flux's T5
                spellings = (f"{part}_{more}{rest}" for part in parts for more in ("", "text_model_"))
                return next((self.spelt[name] for name in spellings if name in self.spelt), None)
        while prefix := next((prefix for prefix in DENOISER if stem.startswith(prefix)), ""):
            stem = stem.removeprefix(prefix)
        stem = re.sub(r"\.processor\.to_out$", ".to_out.0", stem)
        stem = re.sub(r"\.processor\.to_(q|k|v)$", r".to_\1", stem)
        return self.spelt.get(stem.replace(".", "_"))


def spellings(layers: Mapping[str, nn.Module], kind: str, levels: Any, *, xl: bool = False) -> Names:
    """Every way in which files spell these layers of a base.

    kind: the class of its denoiser. levels: its layers a block, a whole number or something else.
    """
    spelt: dict[str, tuple[str, ...]] = {layer.replace(".", "_"): (layer,) for layer in layers}
    transformer = kind in ("FluxTransformer2DModel", "SD3Transformer2DModel")
    original: dict[tuple[str, ...], str] = {}
    if transformer:
        original = {fused: name for fused, name in _fused(layers, kind) if all(layer in layers for layer in fused)}
    elif isinstance(levels, int):
        for layer in layers:
            if not part_of(layer) and (name := original_name(layer, levels)):
                original[layer,] = name
    spelt |= {name.replace(".", "_"): fused for fused, name in original.items() if name.replace(".", "_") not in spelt}
    return Names(spelt, original if xl or transformer else {})


def original_name(layer: str, layers_per_block: int) -> str | None:
    """A layer of a UNet in the original code's names; None for one that has none there.

    Each level down has `layers_per_block` layers and a downsampler, behind the first convolution; each level up one more,
    whose upsampler is the last part of its last layer.
    """
    if layer in ENDS:
        return ENDS[layer]
    if middle := re.fullmatch(r"mid_block\.(attentions|resnets)\.(\d+)\.(.+)", layer):
        kind, at, rest = middle.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(at)}.{RESNET.get(rest, rest)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", layer)
    if not found:
        return None
    side, block, kind, at, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    counted = block * (layers_per_block + 1) + at
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers_per_block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{(block + 1) * (layers_per_block + 1) - 1}.2.conv"
    place = f"input_blocks.{counted + 1}" if side == "down" else f"output_blocks.{counted}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{RESNET.get(rest, rest)}"


def _fused(layers: Iterable[str], kind: str) -> Iterable[tuple[tuple[str, ...], str]]:
    """The layers of the original code of Flux or Stable Diffusion 3, and the layers of diffusers that each is."""
    blocks = {"transformer_blocks": ("double_blocks", FLUX_DOUBLE), "single_transformer_blocks": ("single_blocks", FLUX_SINGLE)}
    ends = FLUX_ENDS
    if kind == "SD3Transformer2DModel":
        blocks, ends = {"transformer_blocks": ("joint_blocks", SD3_JOINT)}, SD3_ENDS
    for start in dict.fromkeys(found[0] for layer in layers if (found := re.match(r"(single_)?transformer_blocks\.\d+", layer))):
        name, number = start.split(".")
        if name in blocks:
            theirs, table = blocks[name]
            for original, ours in table.items():
                yield tuple(f"{start}.{layer}" for layer in ours), f"{theirs}.{number}.{original}"
    for original, layer in ends.items():
        yield (layer,), original
