"""Which base a set of files is: what a picture depends on, whole; read once, and remembered by file.

An identity is up to three parts with dashes between, 16 hex digits each: the denoiser's sample of early versions, all of
the denoiser, and all the rest (text encoders, tokenizers, autoencoder, noise schedule). Two are of one base if the parts that
both have are the same: files of early versions have the first part only, a denoiser without its pipeline the first two.

Numbers are rounded to float16 first, so that the same weights saved in half precision keep their identity; weights that were
trained on do not. A pipeline saved again by a library that gives tensors or tokenizer files other names counts as another.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_text

DENOISERS = ("unet", "transformer")
REST = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "vae", "scheduler")
# What changes a UNet's function and not its parameters' shapes. A fixed list, for later versions of diffusers add keys.
IDENTITY = ("act_fn", "attention_head_dim", "num_attention_heads", "norm_num_groups", "sample_size", "time_embedding_type")
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
SCHEDULE = ("prediction_type", *BETAS, "timestep_spacing", "steps_offset", "shift", "use_dynamic_shifting")
TEXT = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "max_position_embeddings")
NO_WEIGHT = re.compile(r"position_ids$")  # of a text encoder, in files of early versions of transformers
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of an autoencoder's attention


def same_base(a: str, b: str) -> bool:
    """Whether two identities are of one base, as far as both tell."""
    return all(x == y for x, y in zip(a.split("-"), b.split("-"), strict=False))


def identity(denoiser: Any, folder: Path | None) -> str:
    """The identity of a pipeline's denoiser (a diffusers module) and of the folder it was loaded from, if that is known."""
    parts = [sampled(denoiser)]
    if folder is not None:
        parts += [_of_parts(folder, DENOISERS), *([_of_parts(folder, REST)] if (folder / "scheduler").is_dir() else [])]
    return "-".join(parts)


def sampled(denoiser: Any) -> str:
    """What early versions took for an identity: 16 hex digits over some 64 numbers of every parameter, and `IDENTITY`."""
    shape = {key: denoiser.config.get(key) for key in IDENTITY}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, parameter in sorted(denoiser.named_parameters()):
        sample = parameter.detach().flatten()
        sample = sample[:: max(1, sample.numel() // 64)].to("cpu", torch.float16)
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_parts(folder: Path, names: tuple[str, ...]) -> str:
    """16 hex digits over those of the parts that the pipeline has."""
    digest = hashlib.sha256()
    for name in names:
        part = folder / name
        if part.is_dir():
            about = _tokenizer(part) if name.startswith("tokenizer") else [_settings(part), _weights(part)]
            digest.update(json.dumps([name, about], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _weights(part: Path) -> dict[str, str]:
    """The digest of each tensor in a part's safetensors, those that a library loads unless it is asked for a variant."""
    found: dict[str, str] = {}
    for file in weight_files(part):
        for name, digest in json.loads(remembered(file, "tensors", lambda path: json.dumps(dict(_tensors(path))))).items():
            if not NO_WEIGHT.search(name):
                found[_today(name)] = digest
    return found


def weight_files(part: Path) -> list[Path]:
    """The safetensors of a part of a pipeline: one, or those that its index names."""
    for index in sorted(part.glob("*.safetensors.index.json")):
        return [part / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    plain = [part / name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors") if (part / name).is_file()]
    return plain or sorted(part.glob("*.safetensors"))


def _tensors(file: Path) -> Iterator[tuple[str, str]]:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            yield name, _digest(opened.get_tensor(name))


def _digest(tensor: Tensor) -> str:
    rounded = tensor.to(torch.float16) if tensor.is_floating_point() else tensor
    flat = rounded.contiguous().reshape(-1)
    return hashlib.sha256(str(list(tensor.shape)).encode() + flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def _today(name: str) -> str:
    """A tensor's name as today's libraries write it."""
    name = name.removeprefix("text_model.")
    return ".".join(OLD_NAMES.get(word, word) for word in name.split(".")) if "attentions" in name else name


def _settings(part: Path) -> dict[str, Any]:
    """What a part's configuration says of its function: a list of keys, or of a diffusers network all that is not the default."""
    for name in ("scheduler_config.json", "config.json"):
        if (part / name).is_file():
            config = read_json(part / name)
            break
    else:
        return {}
    keys = SCHEDULE if name == "scheduler_config.json" else TEXT
    if "_class_name" in config and keys is TEXT:
        network = getattr(import_module("diffusers"), config["_class_name"], None)
        usual = {key: p.default for key, p in inspect.signature(network.__init__).parameters.items()} if network else {}
        plain = {key: value for key, value in config.items() if not key.startswith("_") and key != "force_upcast"}
        return {key: value for key, value in plain.items() if json.dumps(value) != json.dumps(usual.get(key), default=str)}
    return {key: config.get(key) for key in keys}


def _tokenizer(part: Path) -> list[Any]:
    """A tokenizer's words, and how many of them a prompt may have."""
    files = [part / name for name in ("vocab.json", "merges.txt") if (part / name).is_file()] or [part / "tokenizer.json"]
    about = part / "tokenizer_config.json"
    words = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return [*words, read_json(about).get("model_max_length") if about.is_file() else None]


def remembered(file: Path, what: str, find: Any) -> str:
    """What `find(file)` says, kept for the next time under the file's path, size, time and inode; a change is found anew."""
    real = file.resolve()
    stat = real.stat()
    key = hashlib.sha256(json.dumps([what, str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino]).encode()).hexdigest()
    kept = cache_folder() / f"{key}.json"
    with suppress(OSError, W2WError, ValueError, KeyError):
        return str(read_json(kept)["found"])
    found = str(find(file))
    with suppress(OSError, W2WError):  # a home that cannot be written to costs time, not the result
        write_text(kept, json.dumps({"file": str(real), "found": found}))
    return found


def cache_folder() -> Path:
    """Where digests of files are kept: they can be found again, so it may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2wpp" / "files"
