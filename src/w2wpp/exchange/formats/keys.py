"""From a key of a LoRA file to the layer's stem and the role of its tensor, for every tool that writes such files."""

import re
from functools import lru_cache

# Where each tool ends a key -> the role. `down` and `up` are the two factors; the rest says what is done with them.
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
ENDINGS |= {f".{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")}
ENDINGS |= {f".{name}": name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")}
BY_LENGTH = sorted(ENDINGS, key=len, reverse=True)
# What other methods end their keys with: they are no product of two matrices.
OTHERS = {
    ".oft_blocks": "OFT, a rotation of the weights",
    ".oft_diag": "OFT, a rotation of the weights",
    ".oft_R.weight": "OFT, a rotation of the weights",
    ".boft_R": "BOFT, a rotation of the weights",
    ".on_input": "(IA)3, a scale of the outputs",
    ".ia3_l": "(IA)3, a scale of the outputs",
    ".diff": "whole differences of weights",
    ".diff_b": "differences of biases",
    ".w_norm": "changed norms",
    ".b_norm": "changed norms",
    ".a1.weight": "GLoRA",
    ".bora_scale": "BoRA",
}
FIRST_GENERATION = re.compile(r"(unet|text_encoder):(\d+):(up|down)")


@lru_cache(maxsize=2**16)  # the files of a folder have the same keys
def split_key(key: str) -> tuple[str, str] | None:
    """The stem of a key, that names the layer, and the role of its tensor; None for a key that is no part of a LoRA."""
    # peft names the adapter within the key when it saves from inside the model, as the published adapters do.
    plain = re.sub(r"\.(lora_[AB]|lora_magnitude_vector)\.[^.]+\.weight$", r".\1.weight", key)
    plain = re.sub(r"\.((?:hada|lokr)_\w+)\.[^.]+$", r".\1", plain)
    ending = next((known for known in BY_LENGTH if plain.endswith(known)), None)
    return (plain.removesuffix(ending), ENDINGS[ending]) if ending else None


def other_method(key: str) -> str | None:
    """What a key that is no part of a LoRA belongs to, where that is known."""
    return next((what for ending, what in OTHERS.items() if key.endswith(ending)), None)


def what_it_is(keys: list[str]) -> str | None:
    """What a file with these keys is, if it is no LoRA but another well-known kind; None otherwise."""
    loras = sum(split_key(key) is not None or bool(FIRST_GENERATION.fullmatch(key)) for key in keys)
    if loras:
        return None
    if not keys:
        return "an empty file"
    if len(keys) <= 4 and all(re.fullmatch(r"emb_params|clip_[lg]|t5xxl|<.+>|[\w\- ]{1,40}", key) for key in keys):
        return "a textual inversion, which is a word and no LoRA"
    if any(key.startswith(("control_model.", "controlnet_", "input_hint_block")) for key in keys):
        return "a ControlNet"
    if any(key.startswith(("ip_adapter.", "image_proj.")) for key in keys):
        return "an IP-Adapter"
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")) for key in keys):
        return "a full checkpoint"
    if any(re.match(r"(unet\.|transformer\.)?(down_blocks|up_blocks|transformer_blocks|double_blocks)\.", key) for key in keys):
        return "a full model"
    if any(key.startswith(("encoder.", "decoder.", "post_quant_conv", "quant_conv")) for key in keys):
        return "an autoencoder (VAE)"
    if any(key.startswith(("text_model.", "transformer.text_model.")) for key in keys):
        return "a text encoder"
    return None
