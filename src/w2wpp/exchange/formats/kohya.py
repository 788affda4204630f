"""Write one adapter as a single file in kohya's keys, which ComfyUI and A1111 read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_tensors
from w2wpp.exchange.formats.tensors import checked_matrices
from w2wpp.lora.layout import Layout, part_of

TEXT = {"text_encoder": "lora_te_"}


def write_kohya(
    path: str | Path,
    layout: Layout,
    weights: Tensor,
    original: Mapping[tuple[str, ...], str] | None = None,
    text: Mapping[str, str] = TEXT,
    about: Mapping[str, str] | None = None,
    outputs: Mapping[str, int] | None = None,
) -> None:
    """Write weights [d] in kohya's keys, with an alpha a layer, as ComfyUI and A1111 read them.

    original: the original code's names, where kohya uses them (Stable Diffusion XL and 3, Flux), by the layers that one of
    its layers is; those of several are put together exactly, at the sum of their ranks. text: how keys of each text encoder
    begin. about: more metadata, such as `ss_base_model_version`. outputs: of the base's layers, for those that one of the
    original code's has beside the adapted ones; they get zeros.
    Raises W2WError if the weights are not those of the layout, or not finite, or there is no original name for a layer.
    """
    matrices = checked_matrices(layout, weights)
    tensors: dict[str, Tensor] = {}
    fused = {layer: layers for layers in original or {} for layer in layers}
    for layer in layout.modules:
        part = part_of(layer)
        layers = (layer,) if part or original is None else fused.get(layer, ())
        if not layers or (part and part not in text):
            raise W2WError(f"kohya's files have no name for {layer} of this base. Use --format diffusers.")
        if part:
            stem = text[part] + layer.removeprefix(f"{part}.").replace(".", "_")
        else:
            stem = "lora_unet_" + (original[layers] if original else layer).replace(".", "_")
        if f"{stem}.alpha" in tensors:
            continue
        down, up = _together(matrices, layers, outputs or {})
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down.float(), up.float()
        tensors[f"{stem}.alpha"] = torch.tensor(float(layout.alpha * len(layers)))
    told = {"ss_network_module": "networks.lora", "ss_network_dim": str(layout.rank), "ss_network_alpha": f"{layout.alpha:g}"}
    told |= dict(about or {})
    write_tensors(path, tensors, {"format": "pt", **told, **hashes(tensors, told)})


def _together(matrices: Mapping[str, Tensor], layers: tuple[str, ...], outputs: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """The factors of several layers, whose outputs lie one after another, as those of one; of a single layer, as they are."""
    downs = [matrices.get(f"{layer}.lora_A.weight") for layer in layers]
    some = next(down for down in downs if down is not None)
    if len(layers) == 1:
        return some, matrices[f"{layers[0]}.lora_B.weight"]
    ups = []
    for layer, down in zip(layers, downs, strict=True):
        if down is None and layer not in outputs:
            raise W2WError(f"kohya's files fuse {', '.join(layers)}, and {layer} is not adapted here. Use --format diffusers or peft.")
        ups.append(some.new_zeros(outputs[layer], len(some)) if down is None else matrices[f"{layer}.lora_B.weight"])
    return torch.cat([torch.zeros_like(some) if down is None else down for down in downs]), torch.block_diag(*ups)


def hashes(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> dict[str, str]:
    """What kohya writes so that galleries tell files apart: SHA-256 over the numbers, and A1111's old short one."""
    whole = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, dict(about))
    begin = 8 + int.from_bytes(whole[:8], "little")
    short = hashlib.sha256(whole[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(whole[begin:]).hexdigest(), "sshs_legacy_hash": short}
