"""What goes wrong on real machines, done on purpose: kills, full disks, damaged files, malformed adapters.

    .venv/bin/python benchmarks/faults.py --kills 200 --files 1000 --damages 1000

Each function raises AssertionError where a promise does not hold, and returns how much was tried; `tests/test_faults.py`
runs the same with smaller numbers.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from w2wpp.base_build import BaseSizes, build_pipeline
from w2wpp.errors import W2WError
from w2wpp.files import write_json
from w2wpp.formats.lora_file import read_lora
from w2wpp.formats.peft import CONFIG, TENSORS, write_peft
from w2wpp.formats.single_file import write_diffusers, write_kohya
from w2wpp.formats.torch_files import load_plain
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.layout import Layout
from w2wpp.point_files import load_points, save_points
from w2wpp.runs import command_line, versions
from w2wpp.seeds import generator
from w2wpp.spaces.base import load_space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.weights import WeightDataset

FORK = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import torch
LAYOUT = Layout.of(nn.ModuleDict({"to_q": nn.Linear(5, 3), "to_v": nn.Linear(4, 4)}))
BASE = "0123456789abcdef"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what it holds, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


def refused(act: Callable[[], Any]) -> str:
    """The line with which `act` refuses. Raises AssertionError if it goes through, crashes or says more than a line."""
    try:
        act()
    except W2WError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) <= 2000, repr(str(error))
        return str(error)
    raise AssertionError("it was accepted")


def in_child(act: Callable[[], str], patience: float = 120) -> str:
    """What `act` returns in a process of its own, or "crash: ..." with what it raised. Raises AssertionError if it is not done in time."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run() -> None:
        # The threads of the parent's pools do not come along in a fork: to wait for one is to wait for ever.
        torch.set_num_threads(1)
        try:
            sender.send(act())
        except BaseException as error:
            sender.send(f"crash: {error!r}")

    process = FORK.Process(target=run)
    process.start()
    sender.close()
    try:
        assert receiver.poll(patience), f"not done in {patience:g} seconds"
        return receiver.recv()
    except EOFError:
        return "crash: it died without a word"
    finally:
        process.kill()
        process.join()


# Kills.


def row_of(name: str, i: int) -> Tensor:
    """The row that writer `name` appends as its i-th: its content follows from its id."""
    return torch.randn(1, LAYOUT.d, generator=torch.Generator().manual_seed(hash_of(f"{name}-{i}")))


def hash_of(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(text.encode()[-6:], "little")


def write(folder: Path, name: str, told: Connection) -> None:
    """Append rows one by one, and label each, for ever; tell after each that it is there."""
    torch.set_num_threads(1)  # see in_child
    data = WeightDataset.open(folder)
    told.send(-1)
    for i in range(10**9):
        data.append(row_of(name, i), [f"{name}-{i}"], [{"n": i}])
        data.set_labels({f"{name}-{i}": {"n": i, "labelled": True}})
        told.send(i)


def kill_writers(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill writers with SIGKILL, two at a time, each at a random moment.

    After every kill the dataset opens and verifies, holds what was acknowledged and at most one row of each writer that
    was not, each row with its own numbers, and can be appended to.
    """
    WeightDataset.create(folder, LAYOUT, BASE)
    draw, acknowledged, unacknowledged, torn = random.Random(seed), 0, 0, 0
    for first in range(0, kills, 2):
        begun = [(f"w{k}", *FORK.Pipe(duplex=False)) for k in range(first, min(kills, first + 2))]
        processes = [FORK.Process(target=write, args=(folder, name, sender)) for name, _, sender in begun]
        for process in processes:
            process.start()
        for _, receiver, sender in begun:
            sender.close()
            assert receiver.poll(120) and receiver.recv() == -1  # it has begun
        for process in processes:
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "the writer ended by itself"
        manifest = folder / "manifest.jsonl"
        torn += manifest.exists() and not manifest.read_bytes().endswith(b"\n")
        data = WeightDataset.open(folder)
        data.verify()
        for name, receiver, _ in begun:
            last = -1
            while receiver.poll():
                try:
                    last = receiver.recv()
                except EOFError:
                    break
            there = [i for i in range(last + 3) if f"{name}-{i}" in data.ids]
            assert there in (list(range(last + 1)), list(range(last + 2))), (name, last, there)
            for i in there:
                assert torch.equal(data.rows([data.index_of(f"{name}-{i}")]), row_of(name, i))
                assert data.labels[data.index_of(f"{name}-{i}")].get("labelled") or i > last
            acknowledged += last + 1
            unacknowledged += len(there) - last - 1
        data.append(row_of("after", first), [f"after-{first}"])
        assert WeightDataset.open(folder).ids[-1] == f"after-{first}"
        assert not list((folder / "shards").glob(".*")), "what killed writers left aside stays"
    return {"kills": kills, "acknowledged": acknowledged, "written_before_the_acknowledgement": unacknowledged, "torn_lines": torn}


# A full disk.


def with_file_limit(size: int, act: Callable[[], Any]) -> str:
    """What `act` says in a process whose files cannot grow beyond `size` bytes, as on a full disk."""

    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            act()
        except W2WError as error:
            return "error: " + str(error)
        return "it was written"

    return in_child(limited)


def full_disk(folder: Path, writers: dict[str, Callable[[], Any]]) -> dict[str, int]:
    """Run each writer with files that cannot grow beyond 0, a few, and many bytes.

    It says so in one line and leaves everything below `folder` as it was, or the limit did not matter.
    """
    tried = stopped = 0
    for name, act in writers.items():
        for size in (0, 1, 60, 500, 3000):
            before = tree(folder)
            said = with_file_limit(size, act)
            tried += 1
            assert not said.startswith("crash"), (name, size, said)
            if said.startswith("error"):
                stopped += 1
                assert "\n" not in said and tree(folder) == before, (name, size, said)
            else:
                break
    return {"tried": tried, "stopped": stopped}


# Damage.


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


# Malformed adapters.


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
    *({"target_modules": t} for t in (None, [], "to_q", 7)),
    *({"peft_type": t} for t in (None, "IA3", ["LORA"])),
    *({option: True} for option in ("use_dora", "use_rslora", "fan_in_fan_out")),
    {"rank_pattern": {"to_q": 2}},
    {"alpha_pattern": {"to_q": 2}},
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
]
METADATA += [f'{{"unet.r": {r}, "unet.lora_alpha": 27}}' for r in ("0", "-1", "7", "1.0", "null")] + [
    '{"unet.r": 1, "unet.lora_alpha": 27, "unet.use_dora": true}'
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
            refused(partial(use or partial(read_lora, unet=unet), path))
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        kinds.add(what)
    assert not mark.exists(), "code of a file was run"
    return {"files": n, "kinds": len(kinds)}


# Everything that w2w reads, damaged.


def filled(folder: Path, n: int = 12) -> WeightDataset:
    """A dataset of n labelled rows in four shards."""
    data = WeightDataset.create(folder, LAYOUT, BASE, {"steps": 3})
    for first in range(0, n, 3):
        rows = torch.cat([row_of("r", i) for i in range(first, first + 3)])
        data.append(rows, [f"r-{i}" for i in range(first, first + 3)], [{"split": "train", "age": i} for i in range(3)])
    data.set_labels({"r-0": {"split": "val", "age": 9}})
    return data


def content(folder: Path) -> Any:
    """All that a dataset says, once it has verified itself."""
    data = WeightDataset.open(folder)
    data.verify()
    return [data.base_id, data.layout.to_json(), data.meta, data.ids, data.labels, data.rows().tolist()]


def beginnings(folder: Path) -> list[Any]:
    """What a dataset said after each line of its manifest: a cut last line takes it back to one of these."""
    manifest, found = folder / "manifest.jsonl", []
    lines = manifest.read_bytes().splitlines(keepends=True)
    for n in range(len(lines) + 1):
        manifest.write_bytes(b"".join(lines[:n]))
        data = WeightDataset.open(folder)
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
        "shard, not verified": damage(data.folder / "shards" / "000001.safetensors", n, WeightDataset.open(data.folder).rows, seed=seed),
    }
    space = PcaSpace.fit(data, m=3)
    space.save(folder / "space.safetensors")
    save_points(folder / "points.safetensors", space.encode(weights), data.ids, space)
    encoder, draw = PhotoEncoder(6, 3, 8), generator(seed, "encoder")
    for parameter in encoder.parameters():  # all of them matter
        nn.init.normal_(parameter, generator=draw)
    encoder.save(folder / "encoder.safetensors")
    for name, read in (("space", load_space), ("encoder", PhotoEncoder.load)):
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


def fill_the_disk(folder: Path) -> dict[str, int]:
    """Everything that w2w writes, on a disk that is full."""
    data = filled(folder / "data")
    weights, space = data.rows(), PcaSpace.fit(data, m=3)
    space.save(folder / "space.safetensors")
    save_points(folder / "points.safetensors", space.encode(weights), data.ids, space)
    write_kohya(folder / "kohya.safetensors", LAYOUT, weights[0])
    write_diffusers(folder / "diffusers.safetensors", LAYOUT, weights[0])
    write_peft(folder / "peft", LAYOUT, weights[0], "base")
    other = torch.randn(200, LAYOUT.d)
    return full_disk(
        folder,
        {
            "append": lambda: WeightDataset.open(folder / "data").append(other, [f"new-{i}" for i in range(200)]),
            "append a row": lambda: WeightDataset.open(folder / "data").append(other[:1], ["new" * 999], [{"long": "label" * 999}]),
            "labels": lambda: WeightDataset.open(folder / "data").set_labels({"r-1": {"long": "label" * 999}}),
            "space": lambda: space.truncate(2).save(folder / "space.safetensors"),
            "points": lambda: save_points(folder / "points.safetensors", torch.zeros(500, 3), ["x"] * 500, space),
            "kohya": lambda: write_kohya(folder / "kohya.safetensors", LAYOUT, other[0]),
            "diffusers": lambda: write_diffusers(folder / "diffusers.safetensors", LAYOUT, other[0]),
            "peft": lambda: write_peft(folder / "peft", LAYOUT, other[0], "other"),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--files", type=int, default=1000, help="malformed adapters")
    parser.add_argument("--damages", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    args = parser.parse_args()
    begun = time.monotonic()
    unet = build_pipeline(BaseSizes(image_size=16, unet_widths=(16, 32), norm_groups=8), names=("Ada Lovelace",)).unet
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("kills", "files", "damages", "disk"):
            (Path(scratch) / name).mkdir()
        results = {
            "killed_writers": kill_writers(Path(scratch) / "kills" / "data", args.kills, args.seed),
            "malformed_adapters": refuse_malformed(Path(scratch) / "files", unet, args.files, seed=args.seed),
            "full_disk": fill_the_disk(Path(scratch) / "disk"),
            "damaged_files": damage_everything(Path(scratch) / "damages", args.damages, args.seed),
        }
    about = {"command": command_line(), "versions": versions(), "cores": os.cpu_count(), "seconds": round(time.monotonic() - begun)}
    write_json(args.out, {**about, "results": results})
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
