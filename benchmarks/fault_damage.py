"""Every file that w2w reads, damaged: what is read afterwards is refused, or as it was."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fault_basics import LAYOUT, filled
from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.diffusers import write_diffusers
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.lora_file import read_lora
from w2wpp.exchange.formats.peft import CONFIG, TENSORS, write_peft
from w2wpp.exchange.formats.torch_files import load_plain
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points, save_points


def damaged(content: bytes, n: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """n damages of a file: cut short, or one byte altered."""
    for i in range(n):
        place = draw.randrange(len(content))
        if i % 3 == 0:
            yield f"cut at {place} of {len(content)}", content[:place]
        else:
            altered = content[place] ^ (1 << draw.randrange(8))
            yield f"byte {place} of {len(content)} altered", content[:place] + bytes([altered]) + content[place + 1 :]


def damage(path: Path, n: int, read: Callable[[], Any], allowed: Sequence[Any] = (), seed: int = 0) -> Counter[str]:
    """Damage one file n times, read it each time, and put it back. Counts of what was refused, and what was read.

    read: raises W2WError or returns what it read. allowed: what it may return; anything where there is no checksum.
    """
    content, counts = path.read_bytes(), Counter[str]()
    for what, altered in damaged(content, n, random.Random(seed)):
        path.write_bytes(altered)
        try:
            found = read()
        except W2WError as error:
            assert "\n" not in str(error), error
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{path.name}, {what}: {error!r}") from error
        else:
            assert not allowed or found in allowed, f"{path.name}, {what}: silently {str(found)[:200]}"
            counts["the same" if allowed else "read"] += 1
    path.write_bytes(content)
    return counts


def content(folder: Path) -> Any:
    """All that a dataset says, once it has verified itself."""
    data = WeightDataset.load(folder)
    data.verify()
    return [data.base_id, data.layout.to_json(), data.meta, data.ids, data.labels, data.rows().tolist()]


def beginnings(folder: Path) -> list[Any]:
    """What a dataset said after each line of its manifest: a cut last line takes it back to one of these."""
    manifest, found = folder / "manifest.jsonl", []
    lines = manifest.read_bytes().splitlines(keepends=True)
    for n in range(len(lines) + 1):
        manifest.write_bytes(b"".join(lines[:n]))
        data = WeightDataset.load(folder)
        found.append([data.base_id, data.layout.to_json(), data.meta, data.ids, data.labels, data.rows().tolist()])
    manifest.write_bytes(b"".join(lines))
    return found


def damage_everything(folder: Path, n: int, seed: int = 0) -> dict[str, dict[str, int]]:
    """Damage each kind of file n times. Where a checksum exists, what is read afterwards is refused, or as it was.

    A manifest without its end is a dataset without its last rows, which is what a kill leaves, too.
    """
    unet = nn.ModuleDict({"to_q": nn.Linear(5, 3), "to_v": nn.Linear(4, 4)})
    data = filled(folder / "data")
    whole, weights = content(data.folder), data.rows()
    found = {
        "dataset.json": damage(data.folder / "dataset.json", n, lambda: content(data.folder), [whole], seed),
        "manifest.jsonl": damage(data.folder / "manifest.jsonl", n, lambda: content(data.folder), beginnings(data.folder), seed),
        "shard": damage(data.folder / "shards" / "000001.safetensors", n, lambda: content(data.folder), [whole], seed),
        "shard, not verified": damage(data.folder / "shards" / "000001.safetensors", n, WeightDataset.load(data.folder).rows, seed=seed),
    }
    space = PcaSpace.fit(data, m=3)
    space.save(folder / "space.safetensors")
    save_points(folder / "points.safetensors", space.encode(weights), data.ids, space)
    encoder, draw = PhotoEncoder(6, 3, 8), generator(seed, "encoder")
    for parameter in encoder.parameters():  # all of them matter
        nn.init.normal_(parameter, generator=draw)
    encoder.save(folder / "encoder.safetensors")
    for name, read in (("space", Space.load), ("encoder", PhotoEncoder.load)):
        file = folder / f"{name}.safetensors"
        found[name] = damage(file, n, lambda file=file, read=read: _numbers(read(file)), [_numbers(read(file))], seed)
    expected = [data.ids, space.encode(weights).tolist()]
    found["points"] = damage(folder / "points.safetensors", n, lambda: _points(folder / "points.safetensors", space), [expected], seed)
    write_kohya(folder / "kohya.safetensors", LAYOUT, weights[0])
    write_diffusers(folder / "diffusers.safetensors", LAYOUT, weights[0])
    write_peft(folder / "peft", LAYOUT, weights[0], "base")
    for name, path, lora in (
        ("kohya file", folder / "kohya.safetensors", folder / "kohya.safetensors"),
        ("diffusers file", folder / "diffusers.safetensors", folder / "diffusers.safetensors"),
        ("peft configuration", folder / "peft" / CONFIG, folder / "peft"),
        ("peft tensors", folder / "peft" / TENSORS, folder / "peft"),
    ):
        found[name] = damage(path, n, partial(read_lora, lora, unet), seed=seed)
    torch.save(weights, folder / "all_weights.pt")
    torch.save(
        {f"base_model.model.{m.name}": [(m.shape[0] * m.shape[1],), m.shape] for m in LAYOUT.matrices}, folder / "weight_dimensions.pt"
    )
    for name in ("all_weights.pt", "weight_dimensions.pt"):
        expected = str(load_plain(folder / name))
        found[name] = damage(folder / name, n, lambda name=name: str(load_plain(folder / name)), [expected], seed)
    return {name: dict(counts) for name, counts in found.items()}


def _numbers(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def _points(path: Path, space: PcaSpace) -> Any:
    z, ids = load_points(path, space)
    return [ids, z.tolist()]
