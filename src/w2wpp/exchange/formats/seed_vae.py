"""`vae.pt` of Weights2Weights++: the state dict of its vanilla VAE, in and out, without unpickling code.

Its keys are encoder.<i>.0, fc_mu, fc_var, decoder_input, decoder.<i>.0 and final_layer.0, each with weight and bias; with batch
normalisation also encoder.<i>.1 and decoder.<i>.1, which a frozen layer takes up exactly.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.torch_files import load_plain, write_plain
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

WRAPPED = ("model_state_dict", "vae_state_dict")  # where a checkpoint holds the state dict
EPSILON = 1e-5  # of torch's batch normalisation


def read_vae(path: str | Path, layout: Layout, base_id: str) -> VaeSpace:
    """Read a `vae.pt`, or a checkpoint of its training, as a space of adapters of `layout`, trained on weights x 10.

    Raises W2WError if the file needs code to load, is of another network, or of another number of weights.
    """
    path = Path(path)
    state = _state(load_plain(path), path)
    try:
        encoder, decoder = _stack(state, "encoder"), _stack(state, "decoder")
        ends = {name: _linear(state, name) for name in ("fc_mu", "fc_var", "decoder_input", "final_layer.0")}
    except KeyError as error:
        raise W2WError(f"{path} is no vae.pt of the vanilla VAE: it lacks {error}. Give the state dict that its script saves.") from error
    if ends["fc_mu"][0].shape != ends["fc_var"][0].shape:
        raise W2WError(f"{path}: fc_mu and fc_var are of two shapes. Is it another network?")
    m, widths = len(ends["fc_mu"][1]), tuple(len(bias) for _, bias in encoder)
    found = encoder[0][0].shape[1] if encoder else 0
    if found != layout.d:
        raise W2WError(f"{path} is a VAE of {found:,} weights; the base's adapters have {layout.d:,}. Give the --base it was made for.")
    space = VaeSpace(layout, base_id, VaeOptions(m=m, widths=widths, variant="vanilla"))
    joined = tuple(torch.cat(pair) for pair in zip(ends["fc_mu"], ends["fc_var"], strict=True))
    for network, layers in (
        (space.encoder, [*encoder, joined]),
        (space.decoder, [ends["decoder_input"], *decoder, ends["final_layer.0"]]),
    ):
        places = _linears(network)
        if len(places) != len(layers) or any(place.weight.shape != weight.shape for place, (weight, _) in zip(places, layers, strict=True)):
            raise W2WError(f"{path}: encoder and decoder do not mirror each other, which the vanilla VAE's do. Is it another network?")
        for place, (weight, bias) in zip(places, layers, strict=True):
            place.weight.data, place.bias.data = weight.clone(), bias.clone()
    return space.frozen()


def write_vae(path: str | Path, space: Space) -> None:
    """Write a vanilla VAE as `vae.pt`, which the seed's code loads. Raises W2WError for a space of another kind."""
    if not isinstance(space, VaeSpace) or space.options.variant != "vanilla" or (space.options.scale, space.options.shift) != (10.0, 0.0):
        kind = f"{space.kind}, {space.options.variant}" if isinstance(space, VaeSpace) else space.kind
        raise W2WError(f"{space.source} is a {kind}; a vae.pt is a vanilla VAE of weights x 10. Fit one with --preset report.")
    encoder, decoder = _linears(space.encoder), _linears(space.decoder)
    named = {f"encoder.{i}.0": _pair(layer) for i, layer in enumerate(encoder[:-1])}
    halves = [part.chunk(2) for part in _pair(encoder[-1])]
    named |= {"fc_mu": (halves[0][0], halves[1][0]), "fc_var": (halves[0][1], halves[1][1]), "decoder_input": _pair(decoder[0])}
    named |= {f"decoder.{i}.0": _pair(layer) for i, layer in enumerate(decoder[1:-1])} | {"final_layer.0": _pair(decoder[-1])}
    weights, biases = ({f"{name}.{part}": pair[i].clone() for name, pair in named.items()} for i, part in enumerate(("weight", "bias")))
    write_plain(Path(path), weights | biases)


def _linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.children() if isinstance(module, nn.Linear)]


def _pair(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().cpu(), layer.bias.detach().cpu()


def _state(found: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPED:
        if isinstance(found, Mapping) and key in found:
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise W2WError(f"{path} does not hold a state dict of tensors. Give the vae.pt that the seed's script saves.")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def _stack(state: Mapping[str, Tensor], name: str) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each hidden layer in order."""
    numbers = {int(found[1]) for key in state if (found := re.fullmatch(rf"{name}\.(\d+)\.0\.weight", key))}
    return [_linear(state, f"{name}.{i}.0", f"{name}.{i}.1") for i in range(len(numbers))]


def _linear(state: Mapping[str, Tensor], name: str, norm: str = "") -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, with the batch normalisation after it, if any, taken up."""
    weight, bias = state[f"{name}.weight"].float(), state[f"{name}.bias"].float()
    parts = (
        [state[f"{norm}.{part}"] for part in ("running_var", "running_mean", "weight", "bias")] if f"{norm}.running_var" in state else []
    )
    if weight.dim() != 2 or any(part.shape != weight.shape[:1] for part in (bias, *parts)):
        raise KeyError(f"{name} of one shape")
    if not parts:
        return weight, bias
    factor = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
    return weight * factor[:, None], (bias - state[f"{norm}.running_mean"]) * factor + state[f"{norm}.bias"]
