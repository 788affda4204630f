"""Malformed adapters of every kind, for ever, and a reader that must refuse each in one line."""

import json
import pickle
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from fault_basics import refused
from w2wpp.exchange.formats.diffusers import write_diffusers
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.lora_file import read_lora
from w2wpp.exchange.formats.peft import CONFIG, TENSORS, write_peft
from w2wpp.lora.layout import Layout


class Evil:
    """A pickle that leaves a file behind if it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, true or not."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def malformed_tensors(good: dict[str, Tensor], draw: random.Random) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Sets of tensors with one thing wrong, at a random key of a good set."""
    factors = [key for key in good if good[key].dim() == 2]
    key = draw.choice(factors)
    rest, tensor = {k: v for k, v in good.items() if k != key}, good[key]
    for value in (float("nan"), float("inf"), -float("inf")):
        spoiled = tensor.clone()
        spoiled.view(-1)[draw.randrange(spoiled.numel())] = value
        yield f"{value} in a factor", {**rest, key: spoiled}
    yield "beyond float32", {**rest, key: tensor.double() * 1e300 + 1e300}
    yield "a factor is missing", rest
    yield "a key that nobody knows", {**good, key.replace("lora", "loha"): tensor.clone()}
    yield "of another layer", {**rest, key.replace("attn", "attm"): tensor}
    yield "one dimension", {**rest, key: tensor.flatten()}
    yield "three dimensions", {**rest, key: tensor[None]}
    yield "no dimension", {**rest, key: tensor.flatten()[0]}
    yield "a row more", {**rest, key: torch.cat([tensor, tensor[:1]])}
    yield "a column more", {**rest, key: torch.cat([tensor, tensor[:, :1]], 1)}
    yield "transposed", {**rest, key: torch.zeros(tensor.shape[1] + 1, tensor.shape[0] + 1)}
    rank_0 = {k: v[:0] if "lora_down" in k or "lora_A" in k else v[:, :0] for k, v in good.items() if k in factors}
    yield "rank 0", {**good, **rank_0}
    for dtype in (torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64):
        yield f"{dtype}", {**rest, key: tensor.to(dtype)}
    for prefix in ("../", "../../../../tmp/", "/etc/", "..\\", "a\nb", "\x1b[2J", "\x00", "x" * 5000, "unet/../"):
        yield f"key that begins with {prefix[:20]!r}", {**rest, prefix + key: tensor}
    yield "nothing", {}
    yield "a whole model", {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}
    yield "a text encoder's part", {**good, "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 4)}
    yield "a convolution", {**rest, key: tensor[..., None, None]}
    for alpha in (k for k in good if k.endswith(".alpha")):
        for value in (torch.tensor(float("nan")), torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(float("inf")), torch.ones(2)):
            yield f"alpha {value.tolist()}", {**good, alpha: value}
        yield "alpha true", {**good, alpha: torch.tensor(True)}
        yield "alpha alone", {k: v for k, v in good.items() if not k.startswith(alpha.removesuffix("alpha")) or k == alpha}
        break


def malformed_bytes(good: dict[str, Tensor], draw: random.Random, mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files that are no safetensors file, or lie in their header."""
    whole = save(good)
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    key = draw.choice(list(good))
    yield "empty", b""
    yield "cut short", whole[: draw.randrange(1, len(whole))]
    yield "more behind it", whole + b"more"
    yield "random bytes", draw.randbytes(draw.randrange(1, 4000))
    yield "pickle", pickle.dumps(Evil(mark))
    yield "pickle behind a length", with_header(pickle.dumps(Evil(mark)))
    yield "zip", b"PK\x03\x04" + whole[4:]
    for size in (2**62, 2**63 + 1, 10**8, len(whole)):
        yield f"header of {size} bytes", size.to_bytes(8, "little") + whole[8:]
    for text in (b"", b"{", b"[]", b"null", b"7", b"{" * 1000, b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b'{"a":NaN}'):
        yield f"header {text[:12]!r}", with_header(text, data)
    lies: list[Any] = [
        {"data_offsets": [0, len(data) * 2]},
        {"data_offsets": [len(data), 0]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": [2**63, 2**64]},
        {"data_offsets": [0, 0]},
        {"data_offsets": None},
        {"shape": [2**40, 2**40]},
        {"shape": [-1, 5]},
        {"shape": [10**30]},
        {"shape": "many"},
        {"shape": [1] * 100_000},
        {"dtype": "F33"},
        {"dtype": "object"},
        {"dtype": None},
        {"dtype": "F64"},
    ]
    for lie in lies:
        yield f"a header that says {str(lie)[:40]}", with_header(json.dumps({**header, key: {**header[key], **lie}}).encode(), data)
    yield "a key twice", with_header(json.dumps(header)[:-1].encode() + b", " + json.dumps({key: header[key]})[1:].encode(), data + data)
    yield "metadata that is no text", with_header(json.dumps({**header, "__metadata__": {"a": 1}}).encode(), data)


CONFIGS: list[dict[str, Any]] = [
    *({"r": r} for r in (0, -1, 2, 1.5, True, None, "1", [1], 10**400, float("nan"))),
    *({"lora_alpha": a} for a in (0, -27, True, None, "27", {}, float("nan"), float("inf"), 10**400)),
    *({"peft_type": t} for t in (None, "IA3", ["LORA"])),
    *({option: True} for option in ("use_dora", "fan_in_fan_out")),
    {"rank_pattern": {"to_q": 2}},
    *({"alpha_pattern": pattern} for pattern in ({"to_q": 0}, {"(": 2}, {"to_q": "2"}, ["to_q"])),
]
CONFIG_TEXTS = [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}", b"\x80\x04cposix\nsystem\n."]
METADATA = [
    "",
    "{",
    "[]",
    "7",
    '{"unet.r": 1}',
    "[" * 100_000,
    *(f'{{"unet.r": 1, "unet.lora_alpha": {a}}}' for a in ("0", "-1", "NaN", "1e999", '"x"', "true")),
    *(f'{{"unet.r": {r}, "unet.lora_alpha": 27}}' for r in ("0", "-1", "7", "1.0", "null")),
    '{"unet.r": 1, "unet.lora_alpha": 27, "unet.use_dora": true}',
]


def malformed(folder: Path, layout: Layout, mark: Path, seed: int = 0) -> Iterator[tuple[str, Path]]:
    """One malformed adapter after the other, for ever: what is wrong, and the file or peft folder that it is wrong in."""
    draw = random.Random(seed)
    while True:
        weights = torch.randn(layout.d, generator=torch.Generator().manual_seed(draw.randrange(2**31)))
        file, peft = folder / "lora.safetensors", folder / "peft"
        write_kohya(file, layout, weights)
        kohya = tensors_of(file)
        write_diffusers(file, layout, weights)
        diffusers = tensors_of(file)
        write_peft(peft, layout, weights, "base")
        of_peft, config = tensors_of(peft / TENSORS), json.loads((peft / CONFIG).read_text())
        for form, good, place, path in (
            ("kohya", kohya, file, file),
            ("diffusers", diffusers, file, file),
            ("peft", of_peft, peft / TENSORS, peft),
        ):
            for what, tensors in malformed_tensors(good, draw):
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, place)
                yield f"{form}: {what}", path
            for what, content in malformed_bytes(good, draw, mark):
                place.write_bytes(content)
                yield f"{form}: {what}", path
            save_file(good, place)
        save_file({**kohya, **diffusers}, file)
        yield "a layer in two spellings", file
        for text in METADATA:
            save_file(diffusers, file, {"lora_adapter_metadata": text})
            yield f"diffusers: metadata {text[:40]}", file
        for changes in CONFIGS:
            (peft / CONFIG).write_text(json.dumps({**config, **changes}))
            yield f"peft: configuration with {str(changes)[:40]}", peft
        for content in [*CONFIG_TEXTS, pickle.dumps(Evil(mark))]:
            (peft / CONFIG).write_bytes(content)
            yield f"peft: configuration {content[:20]!r}", peft
        (peft / CONFIG).write_text(json.dumps(config))
        (peft / TENSORS).unlink()
        yield "peft: no tensors", peft
        (peft / "adapter_model.bin").write_bytes(pickle.dumps(Evil(mark)))
        yield "peft: a pickle in their place", peft
        (peft / "adapter_model.bin").unlink()
        for suffix in (".pt", ".ckpt", ".bin", ".pkl", ""):
            pickled = folder / f"lora{suffix}"
            pickled.write_bytes(pickle.dumps(Evil(mark)))
            yield f"a pickle named lora{suffix}", pickled
            pickled.unlink()


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a good file, in memory of their own."""
    from safetensors.torch import load

    return load(file.read_bytes())


def refuse_malformed(folder: Path, unet: nn.Module, n: int, use: Callable[[Path], Any] | None = None, seed: int = 0) -> dict[str, int]:
    """Give n malformed adapters to the reader, or to `use`. Each is refused in one line, and no code of theirs runs."""
    layout, mark = Layout.of(unet), folder / "ran"
    (folder / "in").mkdir()
    kinds = set()
    for _, (what, path) in zip(range(n), malformed(folder / "in", layout, mark, seed), strict=False):
        try:
            refused(partial(use or partial(read_lora, base=unet), path))
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        kinds.add(what)
    assert not mark.exists(), "code of a file was run"
    return {"files": n, "kinds": len(kinds)}
