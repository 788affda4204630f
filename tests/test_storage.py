"""Datasets, photos and spaces at addresses: read by ranges, written whole, on a server of S3 that runs in this process."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Ended, write_faces
from test_pages import REPOSITORY, blocks, smaller
from test_weights import everything, filled, numbers
from w2wpp.common import storage
from w2wpp.common.errors import Unreached, W2WError
from w2wpp.common.files import apart, read_json, write_json
from w2wpp.common.storage import Address, at_once, fill, here, on_disk, place
from w2wpp.dataset.select_merge import merge, select
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces, align_photos
from w2wpp.photos.images import write_image
from w2wpp.photos.listing import find_photos
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace

WHY = "no storage to try: pip install 'w2wpp[storage]' 'moto[server]'"
s3fs = pytest.importorskip("s3fs", reason=WHY)
server = pytest.importorskip("moto.server", reason=WHY, exc_type=ImportError)

BUCKET = "w2w-tests"
PAGE = REPOSITORY / "docs" / "scale.md"
WIDE = Layout.of(nn.ModuleDict({"to_q": nn.Linear(20_000, 20_000)}))  # d = 40,000: rows far longer than what is read in vain


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """A server of S3 on this machine, with one bucket, and the environment that leads there and nowhere else."""
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """The address of a place of this test's own."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that the server sends from now on, of each request for an object."""
    found: list[int] = []
    ask = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        answer = await ask(self, method, *args, **kwargs)
        if method == "get_object":
            found.append(answer["ContentLength"])
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return found


@contextmanager
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What is patched here holds for filesystems made in the block, and for none after it."""
    try:
        with monkeypatch.context() as patch:
            s3fs.S3FileSystem.clear_instance_cache()
            yield patch
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def at(address: str) -> Address:
    found = place(address)
    assert isinstance(found, Address)
    return found


def uploaded(folder: Path, address: str) -> str:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        (at(address) / file.relative_to(folder)).write(file)
    return address


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_dataset_comes_back_from_an_address(tmp_path: Path, bucket: str, dtype: torch.dtype) -> None:
    here_ = select(filled(tmp_path / "data"), {"half": ""}, tmp_path / "kept", dtype=dtype)
    merge([here_], f"{bucket}/all")
    read = WeightDataset.load(f"{bucket}/all")
    assert (read.ids, read.labels, read.meta, read.base_id, read.layout) == (
        here_.ids,
        here_.labels,
        here_.meta,
        here_.base_id,
        here_.layout,
    )
    assert torch.equal(read.rows(), here_.rows()) and torch.equal(read.rows([4, 1, 1]), here_.rows([4, 1, 1]))
    for kept in (torch.float32, torch.bfloat16):
        assert torch.equal(read.columns(2, 5, [5, 0, 3], kept), here_.columns(2, 5, [5, 0, 3], kept))
    assert torch.equal(torch.cat(list(read.blocks(4))), here_.rows())
    read.verify()
    assert read.info()["bytes"] == here_.info()["bytes"] and read.info()["folder"] == f"{bucket}/all"
    again = merge([read], tmp_path / "again")
    assert again.fingerprint == read.fingerprint


def test_a_copied_dataset_is_the_same_dataset(tmp_path: Path, bucket: str) -> None:
    data = filled(tmp_path / "data")
    data.save_pretrained(bucket, licence="cc0-1.0")
    read = WeightDataset.from_pretrained(bucket)
    assert read.fingerprint == data.fingerprint and torch.equal(read.rows(), everything())
    assert sorted(at(bucket).files()) == sorted(["README.md", *data.files])


def test_only_the_bytes_of_the_rows_are_read(tmp_path: Path, bucket: str, sent: list[int]) -> None:
    data = WeightDataset.create(tmp_path / "data", WIDE, "0123456789abcdef")
    weights = torch.randn(12, WIDE.d, generator=torch.Generator().manual_seed(0))
    data.append(weights, [str(i) for i in range(12)])
    read = merge([data], bucket)
    sent.clear()
    assert torch.equal(read.rows([3, 7]), weights[[3, 7]])
    assert 0 < sum(sent) - 2 * 4 * WIDE.d < 4096  # two rows, and the header of their shard
    sent.clear()
    assert torch.equal(read.columns(5, 9), weights[:, 5:9])
    assert sent == 12 * [4 * 4]  # the header is known
    sent.clear()
    assert torch.equal(read.rows(), weights)
    assert sum(sent) == 4 * weights.numel()


def test_short_rows_are_read_together(tmp_path: Path, bucket: str, sent: list[int]) -> None:
    data = merge([filled(tmp_path / "data")], bucket)
    sent.clear()
    assert torch.equal(data.columns(1, 4, range(6)), everything()[:, 1:4])
    assert len(sent) == 2  # the header, and all six pieces


def test_long_reads_are_many_requests(bucket: str, sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PIECE", 1000)
    content = np.random.default_rng(0).bytes(10_500)
    at(bucket).write(content)
    found = bytearray(10_400)
    at(bucket).read_whole_into(found, 50)
    assert bytes(found) == content[50:10_450] and sorted(sent) == [400, *[1000] * 10]
    with pytest.raises(W2WError, match="became shorter"):
        at(bucket).read_whole_into(found, 200)


def test_the_first_error_ends_what_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = list[int](), Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ended.set()
            super().shutdown(wait=wait)

    def work(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise W2WError("out of reach")
        ended.wait(600)

    monkeypatch.setattr(storage, "ThreadPoolExecutor", Pool)
    with pytest.raises(W2WError, match="out of reach"):
        at_once(work, range(1000))
    assert len(begun) <= storage.AT_ONCE + 1


def test_rows_that_were_altered_or_cut_short_are_found(tmp_path: Path, bucket: str) -> None:
    data = merge([filled(tmp_path / "data")], bucket)
    shard = at(bucket) / data.files[-1]
    whole = shard.read_bytes()
    shard.write(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(W2WError, match="row c1 cannot be trusted"):
        data.verify()
    shard.write(whole[:-1])
    with pytest.raises(W2WError, match="became shorter"):
        data.rows()
    with pytest.raises(W2WError, match="does not read"):
        WeightDataset.load(bucket).rows()
    shard.remove()
    with pytest.raises(W2WError, match="is not there"):
        data.rows()


def test_nothing_is_added_to_a_dataset_at_an_address(tmp_path: Path, bucket: str) -> None:
    data = merge([filled(tmp_path / "data")], bucket)
    before = at(bucket).files()
    for change in (
        lambda: data.append(numbers(1), ["new"]),
        lambda: data.set_labels({"a0": {}}),
        lambda: WeightDataset.create(f"{bucket}-new", data.layout, data.base_id),
        lambda: WeightDataset.load_or_create(bucket, data.layout, data.base_id, {}),
    ):
        with pytest.raises(W2WError, match="is an address; a path on this machine was expected"):
            change()
    assert at(bucket).files() == before and at(f"{bucket}-new").files() == {}


def test_a_dataset_is_not_replaced_and_not_copied_onto_itself(tmp_path: Path, bucket: str) -> None:
    data = merge([filled(tmp_path / "data")], bucket)
    with pytest.raises(W2WError, match="is not empty"):
        merge([filled(tmp_path / "other")], bucket)
    with pytest.raises(W2WError, match="is the input"):
        merge([data], bucket)
    with pytest.raises(W2WError, match="lies in"):
        select(data, {"half": ""}, f"{bucket}/part")
    with pytest.raises(W2WError, match="lies in"):
        apart("gs://bucket/adapters/part", "gcs://bucket/adapters")  # two names of one storage
    apart(f"{bucket}x", bucket)
    apart(tmp_path, bucket)


KILLED = """
import os, signal, sys
from w2wpp.common.storage import Address
from w2wpp.dataset.select_merge import merge
from w2wpp.dataset.weights import WeightDataset

write, left = Address.write, [2]

def killed(self, content, *, new=False):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(self, content, new=new)

Address.write = killed
merge([WeightDataset.load(sys.argv[1])], sys.argv[2], memory=1e-9)
"""


def test_a_killed_copy_is_no_dataset_and_is_gone_on_with(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = filled(tmp_path / "data")
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "data", bucket], timeout=240)
    assert ended.returncode == -signal.SIGKILL
    assert sorted(at(bucket).files()) == [storage.MARK, "shards/000000.safetensors"]  # of one row
    with pytest.raises(W2WError, match="is not a weight dataset"):
        WeightDataset.load(bucket)
    other = select(data, {"split": "val"}, tmp_path / "other")
    with pytest.raises(W2WError, match="is being written by another run"):
        merge([other], bucket, memory=1e-9)
    written, write = list[str](), Address.write

    def noted(self: Address, content: Path | bytes, *, new: bool = False) -> None:
        written.append(str(self).removeprefix(f"{bucket}/"))
        write(self, content, new=new)

    monkeypatch.setattr(Address, "write", noted)
    merged = merge([data], bucket, memory=1e-9)
    assert written == [*(f"shards/{i:06d}.safetensors" for i in range(1, 6)), "manifest.jsonl", "dataset.json"]
    assert torch.equal(merged.rows(), everything()) and storage.MARK not in at(bucket).files()
    merged.verify()


def test_of_two_writers_one_is_refused_by_the_storage(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at(bucket).write(b"first", new=True)
    with pytest.raises(W2WError, match="is there already"):
        at(bucket).write(b"second", new=True)

    def unseen(*_: object, **__: object) -> bool:
        return False

    with anew(monkeypatch) as patch:
        patch.setattr(s3fs.S3FileSystem, "exists", unseen)  # as where the first came after the look
        assert not s3fs.S3FileSystem().exists(f"{BUCKET}/{at(bucket).name}")
        with pytest.raises(W2WError, match="is there already"):
            at(bucket).write(b"second", new=True)
    assert at(bucket).read_bytes() == b"first"


def test_an_upload_that_fails_leaves_what_was_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(f"{bucket}/old.json", 1)
    ask = s3fs.S3FileSystem._call_s3

    async def failing(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "put_object":
            raise ConnectionResetError("the line went dead")
        return await ask(self, method, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", failing)
        for name in ("old", "new"):
            with pytest.raises(W2WError, match=r"is out of reach .the line went dead"):
                write_json(f"{bucket}/{name}.json", 2)
    assert list(at(bucket).files()) == ["old.json"] and read_json(f"{bucket}/old.json") == 1


def test_a_space_comes_back_from_an_address(tmp_path: Path, bucket: str) -> None:
    space = PcaSpace.fit(filled(tmp_path / "data"), m=2)
    space.save(f"{bucket}/one/space.safetensors")
    space.save_pretrained(f"{bucket}/folder")
    z = space.sample(3)
    for source in (f"{bucket}/one/space.safetensors", f"{bucket}/one", f"{bucket}/folder", Path(f"{bucket}/folder")):
        loaded = Space.from_pretrained(source)
        assert loaded.kind == "pca" and torch.equal(loaded.decode(z), space.decode(z))
        assert loaded.source.startswith(f"{bucket}/") and loaded.source.endswith("/space.safetensors")
    with pytest.raises(W2WError, match="is not empty"):
        space.save_pretrained(f"{bucket}/folder")
    file = at(f"{bucket}/one/space.safetensors")
    whole = file.read_bytes()
    for bad in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b"not a space"):
        file.write(bad)
        with pytest.raises(W2WError, match=f"space {file}"):
            Space.load(str(file))


def test_photos_are_read_from_an_address(tmp_path: Path, bucket: str) -> None:
    faces = AlignedFaces.load(uploaded(write_faces(tmp_path / "faces", {"Ada": 2, "Grace": 1}), f"{bucket}/faces"))
    local = AlignedFaces.load(tmp_path / "faces")
    assert (faces.people, faces.labels, faces.size) == (local.people, local.labels, local.size)
    for person in local.people:
        assert all(np.array_equal(a, b) for a, b in zip(faces.photos(person), local.photos(person), strict=True))
    (at(bucket) / "faces/Ada/0.png").write(b"%!PS no picture")
    with pytest.raises(W2WError, match=r"Ada/0.png is not a readable picture"):
        faces.photos("Ada")
    (at(bucket) / "faces/Ada/0.png").remove()
    with pytest.raises(W2WError, match=r"Ada/0.png is not there"):
        faces.photos("Ada")


def test_photos_of_an_address_are_aligned(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for person in ("Ada", "Grace"):
        write_image(tmp_path / "photos" / person / "1.jpg", np.full((40, 40, 3), 128, np.uint8))
    write_image(tmp_path / "photos" / "nobody.png", np.zeros((8, 8, 3), np.uint8))
    source = uploaded(tmp_path / "photos", bucket)
    found = find_photos(source)
    assert [(photo.person, photo.name) for photo in found.photos] == [("Ada", "1.jpg"), ("Grace", "1.jpg")]
    assert list(found.left_out) == ["nobody.png"]
    told, again = (align_photos(source, tmp_path / "faces", size=16) for _ in range(2))
    assert told["none"] == ["Ada/1.jpg", "Grace/1.jpg"] and "renewed" not in again
    with pytest.raises(W2WError, match=r"neither a folder nor a zip|holds no person"):
        find_photos(f"{bucket}-none")

    async def expired(*_: object, **__: object) -> None:
        raise PermissionError("The provided token has expired.")

    before = (tmp_path / "faces" / "faces.jsonl").read_text()
    with anew(monkeypatch) as patch:
        patch.setattr(s3fs.S3FileSystem, "_cat_file", expired)
        for out in ("faces", "others"):  # no photo counts as unreadable, or as changed
            with pytest.raises(Unreached, match="token has expired"):
                align_photos(source, tmp_path / out, size=16)
    assert (tmp_path / "faces" / "faces.jsonl").read_text() == before
    assert "unreadable" not in (tmp_path / "others" / "faces.jsonl").read_text()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: WeightDataset.load(f"s3://{BUCKET}/none"), f"s3://{BUCKET}/none is not a weight dataset"),
        (lambda: Space.load(f"s3://{BUCKET}/none.safetensors"), f"s3://{BUCKET}/none.safetensors is not there. Check"),
        (lambda: WeightDataset.load("s3://no-such-bucket/x"), "is not there .The specified bucket does not exist"),
        (lambda: Space.load("s3://no-such-bucket/x"), "is not there .The specified bucket does not exist"),
        (lambda: AlignedFaces.load("s3://no-such-bucket/x"), "is not there .The specified bucket does not exist"),
        (lambda: write_json("s3://no-such-bucket/x", 1), "is not there .The specified bucket does not exist"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(what: Callable[[], object], said: str) -> None:
    with pytest.raises(W2WError, match=said) as told:
        what()
    assert "\n" not in str(told.value)


def test_a_storage_that_cannot_be_asked_is_said_in_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    with anew(monkeypatch) as patch:
        patch.setattr(s3fs.S3FileSystem, "_info", refused)
        with pytest.raises(W2WError, match=r"is refused with your credentials .Access Denied"):
            at(bucket).size()
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.filesystem", missing)
        with pytest.raises(W2WError, match=r"needs pip install 'w2wpp\[storage\]'"):
            at(bucket).read_bytes()

    async def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with anew(monkeypatch) as patch:
        patch.setattr(s3fs.S3FileSystem, "_get_file", full)
        with pytest.raises(W2WError, match=r"does not fit on this machine .No space left"), on_disk(bucket):
            pass
    with anew(monkeypatch) as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(W2WError, match="is out of reach"):
            at(bucket).size()
    with anew(monkeypatch) as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(W2WError, match="needs credentials"):
            at(bucket).size()


@pytest.mark.parametrize(
    "address",
    [
        *(
            "simplecache::s3://b/x",
            "s3://b/x::zip://y",
            "zip://x::s3://b/y",
            "reference://x",
            "github://a:b@c/x",
            "local://x",
            "file:///etc/x",
        ),
        *("http://127.0.0.1/x", "https://127.0.0.1/x", "ftp://x/y", "ssh://x/y", "python://x", "blockcache::s3://b/x", "dask://x"),
        *("s3://b/../x", "s3://", "s3:///", "s3://b/./x"),
    ],
)
def test_other_addresses_are_refused_before_fsspec_sees_them(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("fsspec was asked")

    monkeypatch.setattr("fsspec.filesystem", asked)
    monkeypatch.chdir(tmp_path)
    for given in (address, *([Path(address)] if ".." in address or address.startswith(("simple", "zip", "http", "git")) else [])):
        for use in (WeightDataset.load, Space.load, AlignedFaces.load, find_photos, lambda path: write_json(path, 1), here):
            with pytest.raises(W2WError):
                use(given)
    assert not list(tmp_path.iterdir())


def test_a_path_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    for path in ("adapters", "./a:b/c", "C:/x", "/s3:/b/x", "s3:/b/x", Path("s3:/b/x")):
        assert place(path) == Path(path)
    (tmp_path / "s3:").rmdir()
    assert place(Path("s3://b/x")) == place("s3://b/x/") == Address("s3", "b/x") and str(place(Path("s3://b/x"))) == "s3://b/x"
    assert place("S3://b/x") == Address("s3", "b/x")
    assert place("hf://datasets/me/adapters@dev/x").name == "x"


def test_any_storage_of_fsspec_does_the_same(tmp_path: Path) -> None:
    address = "memory://w2w-tests/any"
    data = merge([filled(tmp_path / "data")], address)
    assert torch.equal(data.rows(), everything()) and torch.equal(data.columns(1, 3), everything()[:, 1:3])
    data.verify()
    with pytest.raises(W2WError, match="is not empty"):
        fill(at(address), {}, [])


def test_the_commands_of_the_page_run_as_written(
    w2w: Callable[..., Ended], dataset: Path, pico: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset.rename("adapters")
    commands = [words for _, found in blocks(PAGE) for words in found if any(word.startswith("s3://") for word in words)]
    assert len(commands) == 4
    for words in commands:
        if words[:2] == ["dataset", "merge"] and words[-1] == "adapters":
            Path("adapters").rename("before")
        ended = w2w(*(word.replace("s3://bucket", bucket) for word in smaller(words)), *(["--base", pico] if words[0] == "sample" else []))
        assert ended.code == 0, ended.err
    assert (tmp_path / "drawn" / "points.safetensors").is_file()
    assert torch.equal(WeightDataset.load("adapters").rows(), WeightDataset.load("before").rows())


def test_commands_take_addresses(w2w: Callable[..., Ended], dataset: Path, pico: Path, bucket: str, tmp_path: Path) -> None:
    runs = ("--runs", tmp_path / "runs", "--json")
    made = w2w("dataset", "merge", dataset, "--out", f"{bucket}/adapters", *runs).json()
    assert made["out"] == made["folder"] == f"{bucket}/adapters" and made["n"] == 10
    fitted = w2w("fit", "pca", f"{bucket}/adapters", "--m", 3, "--out", f"{bucket}/space.safetensors", *runs).json()
    assert (fitted["out"], fitted["m"], fitted["n"]) == (f"{bucket}/space.safetensors", 3, 10)
    small = ("--base", pico, "--solver-steps", 2, "--pictures", 1)
    drawn = w2w("sample", f"{bucket}/space.safetensors", "--n", 2, *small, "--out", tmp_path / "drawn", *runs).json()
    assert drawn["points"] == ["sample-0-0", "sample-0-1"] and (tmp_path / "drawn" / "pictures.png").is_file()
    dry = w2w("fit", "pca", f"{bucket}/adapters", "--out", f"{bucket}/no.safetensors", "--dry-run", *runs).json()
    assert dry["writes"][0] == f"{bucket}/no.safetensors" and not at(f"{bucket}/no.safetensors").is_file()
    assert w2w("dataset", "info", f"{bucket}/adapters", "--verify", "--json").json()["verified"]
    assert w2w("resize", f"{bucket}/adapters", "--rank", 1, "--out", tmp_path / "resized", *runs).code == 0
    for words in (
        ("sample", f"{bucket}/space.safetensors", *small, "--out", f"{bucket}/drawn"),
        ("sample", f"{bucket}/space.safetensors", "--base", f"{bucket}/pipeline", "--out", tmp_path / "no"),
        ("dataset", "merge", dataset, "--out", tmp_path / "no", "--runs", f"{bucket}/runs"),
        ("dataset", "merge", dataset, "--out", f"{bucket}/adapters"),
        ("fit", "pca", dataset, "--m", 3, "--out", f"{bucket}/adapters"),
        ("fit", "pca", dataset, "--m", 3, "--out", f"s3://{BUCKET}"),
        ("fit", "pca", dataset, "--m", 3, "--out", f"{bucket}/space.safetensors"),
        ("dataset", "merge", f"{bucket}/adapters", "--out", f"{bucket}/adapters"),
        ("fit", "pca", f"{bucket}/adapters", "--m", 3, "--out", "s3://no-such-bucket/space.safetensors"),
        ("adapters", "train", f"{bucket}/faces", "--out", f"{bucket}/trained"),
    ):
        ended = w2w(*words, *(runs[:2] if "--runs" not in words else ()))
        assert ended.code == 2 and ended.err.count("\n") == 1 and "error: " in ended.err and "s3://" in ended.err, ended.err
    assert sorted(name.split("/")[0] for name in at(bucket).files()) == [*["adapters"] * 3, "space.safetensors"]
    assert not (tmp_path / "no").exists()
