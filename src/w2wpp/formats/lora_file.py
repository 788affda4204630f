"""Read a LoRA of a UNet from the files people have: peft folders, diffusers files (three key styles), kohya files.

A file becomes a `Lora`: for each adapted layer its two factors and the scale of their product. No key is skipped in
silence, and alpha is taken from where each format keeps it; `docs/bring-your-own-loras.md` says where that is.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from w2wpp.errors import W2WError
from w2wpp.formats import peft
from w2wpp.formats.names import spellings
from w2wpp.formats.tensors import finite_floats, opened

TEXT_ENCODER = ("text_encoder", "lora_te")
OWN = ("unet.", "transformer.")  # how diffusers' files call the denoiser
# Where each format ends a key: (ending, which factor). `alpha` is a number beside the factors.
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}


PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Lora:
    """One adapter, layer by layer: W x + scale * up @ down @ x. Factors are float32, [out, r] and [r, in]."""

    source: str
    down: dict[str, Tensor]  # by the dotted name of the adapted layer
    up: dict[str, Tensor]
    scale: dict[str, float]

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(factor.shape[0] for factor in self.down.values())


def read_lora(path: str | Path, unet: nn.Module, *, drop_text_encoder: bool = False) -> Lora:
    """Read one adapter of `unet`: a peft folder, or a safetensors file of diffusers, kohya, ComfyUI or A1111.

    drop_text_encoder: leave a text encoder's part out in place of refusing the file.
    Raises W2WError naming the key that matches no layer, has no partner or another shape, or is not a number.
    """
    path = Path(path)
    if path.is_dir():
        file, given = path / peft.TENSORS, peft.read_config(path / peft.CONFIG)[:2]
    elif path.suffix == ".safetensors":
        file, given = path, None
    else:
        raise W2WError(f"{path} is neither a peft folder nor a .safetensors file. Pickles (.pt, .ckpt, .bin) are not read; convert it.")
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    spelt = spellings(layers, blocks_of(unet))
    factors: dict[str, dict[str, Tensor]] = {"down": {}, "up": {}, "alpha": {}}
    with opened(file) as tensors:
        metadata, keys = tensors.metadata() or {}, list(tensors.keys())
        dropped = [key for key in keys if key.startswith(TEXT_ENCODER)]
        # Every key finds its place before a number is read: a whole model is refused without loading it.
        places = {key: _place(key, layers, spelt, path) for key in keys if key not in dropped}
        for key, (layer, factor) in places.items():
            if layer in factors[factor]:
                raise W2WError(f"{path} has two keys for {factor} of {layer}, one of them {key}. Keep one.")
            factors[factor][layer] = finite_floats(tensors, key, file, integers=factor == "alpha")
    if dropped and not drop_text_encoder:
        raise W2WError(
            f"{path} also adapts the text encoder ({len(dropped)} keys); w2w holds the UNet's. To leave it out: --drop-text-encoder."
        )
    _check_pairs(path, factors["down"], factors["up"], layers)
    rest = set(factors["alpha"]) - set(factors["down"])
    if rest:
        raise W2WError(f"{path} has an alpha for {min(rest)}, and no factors. Was it cut short?")
    told = given or _metadata_scale(metadata, path)
    return Lora(str(path), factors["down"], factors["up"], _scales(path, factors["down"], factors["alpha"], told))


def blocks_of(unet: nn.Module) -> int | None:
    """How many layers a level of the UNet has; None where they differ, and for a transformer."""
    found = getattr(unet, "config", {}).get("layers_per_block")
    return found if isinstance(found, int) else None


def _scales(path: Path, down: Mapping[str, Tensor], alphas: Mapping[str, Tensor], told: tuple[int, float] | None) -> dict[str, float]:
    """The scale of each layer: from its own alpha, else from the rank and alpha that the file tells for all, else 1."""
    scales = {}
    for layer, factor in down.items():
        alpha, rank = alphas.get(layer), factor.shape[0]
        if alpha is not None and (alpha.numel() != 1 or not float(alpha) > 0):
            raise W2WError(f"{path}: alpha of {layer} is {str(alpha.tolist())[:40]}; one number above 0 was expected.")
        if told and told[0] != rank:
            raise W2WError(f"{path}: factors of {layer} have rank {rank}, but its configuration says {told[0]}. Save it again.")
        scales[layer] = float(alpha) / rank if alpha is not None else told[1] / told[0] if told else 1.0
    return scales


def _place(key: str, layers: Mapping[str, nn.Module], spelt: Mapping[str, str], path: Path) -> tuple[str, str]:
    """The layer and the factor that a key stands for."""
    # peft names the adapter within the key when it saves from inside the model, as the published adapters do.
    plain = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", key)
    ending = next((known for known in ENDINGS if plain.endswith(known)), None)
    if ending is None:
        raise W2WError(f"{path} has the key {key}, which is no factor of a LoRA that w2w knows (lora_A, lora_down, alpha, ...).")
    stem = plain.removesuffix(ending)
    if stem.startswith("lora_unet_"):
        layer = spelt.get(stem.removeprefix("lora_unet_"))
    else:
        stem = re.sub(r"^(unet|transformer)\.", "", stem).removeprefix(peft.PREFIX)
        stem = re.sub(r"\.processor\.(to_(?:q|k|v))$", r".\1", re.sub(r"\.processor\.to_out$", ".to_out.0", stem))
        layer = stem if stem in layers else None
    if layer is None:
        raise W2WError(f"{path} has the key {key}, which matches no layer of this base. Is it of another model? Give its --base.")
    return layer, ENDINGS[ending]


def _check_pairs(path: Path, down: Mapping[str, Tensor], up: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> None:
    if not down and not up:
        raise W2WError(f"{path} holds no LoRA of the UNet. Give a LoRA file, not a whole model.")
    alone = set(down) ^ set(up)
    if alone:
        raise W2WError(f"{path} has one factor of {min(alone)} without the other. Was it cut short?")
    for layer, a in down.items():
        module, b = layers[layer], up[layer]
        if not isinstance(module, nn.Linear) or a.dim() != 2 or b.dim() != 2:
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and a.dim() == b.dim() == 4:
                raise W2WError(f"{path} adapts {layer}, a convolution; w2w holds linear layers. Train without convolutions.")
            raise W2WError(f"{path}: factors of {layer} have shapes {list(a.shape)} and {list(b.shape)}; two matrices were expected.")
        if a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise W2WError(f"{path}: factors of {layer} have ranks {a.shape[0]} and {b.shape[1]}. Was it cut short?")
        if (a.shape[1], b.shape[0]) != (module.in_features, module.out_features):
            raise W2WError(
                f"{path}: factors of {layer} are for a layer of {a.shape[1]} -> {b.shape[0]}; "
                f"this base has {module.in_features} -> {module.out_features}. Give its --base."
            )


def _metadata_scale(metadata: Mapping[str, str], path: Path) -> tuple[int, float] | None:
    """r and alpha of diffusers' metadata; None without, where diffusers itself takes alpha = r."""
    if "lora_adapter_metadata" not in metadata:
        return None
    try:
        described: dict[str, Any] = json.loads(metadata["lora_adapter_metadata"])
        found = {key.rsplit(".", 1)[-1]: value for key, value in described.items() if key.startswith(OWN) or "." not in key}
    except (ValueError, AttributeError, RecursionError) as error:
        raise W2WError(f"{path} has metadata without a usable lora_alpha and r ({error!r}). Save it again with diffusers.") from error
    if not found:
        return None
    peft.check_arithmetic(found, path)
    return peft.check_scale(found.get("r"), found.get("lora_alpha"), path)


def list_loras(source: str | Path) -> list[Path]:
    """The adapters under a folder, sorted: peft folders and safetensors files; or the one that `source` is."""
    source = Path(source)
    if (source / peft.CONFIG).is_file() or source.is_file():
        return [source]
    if not source.is_dir():
        raise W2WError(f"{source} is not there. Give a LoRA file, a peft folder, or a folder of them.")
    folders = {config.parent for config in source.rglob(peft.CONFIG)}
    files = {file for file in source.rglob("*.safetensors") if file.parent not in folders}
    if not folders and not files:
        pickled = pickles(source)
        such = f", but {len(pickled)} pickles such as {pickled[0]}, which may hold code: convert them" if pickled else ""
        raise W2WError(f"{source} holds no peft folder and no .safetensors file{such}.")
    return sorted(folders | files)


def pickles(source: Path) -> list[Path]:
    """The files under a folder that would have to be unpickled, which is not done, sorted."""
    return sorted(file for file in source.rglob("*") if file.suffix.lower() in PICKLES) if source.is_dir() else []


def layers_of(loras: Iterable[Lora]) -> list[str]:
    """Every layer that one of the adapters adapts, sorted."""
    return sorted({layer for lora in loras for layer in lora.down})
