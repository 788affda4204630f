"""Spaces and datasets as folders and on the hub: a local server stands for it, and nothing else is asked."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from conftest import Ended, close
from published_hub_server import hub_server
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import fingerprint
from w2wpp.spaces.pretrained import has_encoder
from w2wpp.spaces.vae import VaeSpace

REPO = "someone/faces"
Asked = list[tuple[str, str, str]]


@pytest.fixture
def space(dataset: Path) -> PcaSpace:
    return PcaSpace.fit(WeightDataset.load(dataset), m=3)


@pytest.fixture
def encoder(space: PcaSpace) -> PhotoEncoder:
    network = PhotoEncoder(8, space.m, 4)
    network.space, network.people = fingerprint(space), frozenset({"Ada"})
    return network.requires_grad_(False).eval()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """The folder that stands for the repository."""
    (tmp_path / "remote").mkdir()
    return tmp_path / "remote"


@pytest.fixture
def asked(tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """A hub of one repository; what it was asked."""
    from huggingface_hub import constants

    requests: Asked = []
    with hub_server(REPO, remote, requests) as endpoint:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield requests


def test_a_spaces_folder_holds_all_of_it(space: PcaSpace, encoder: PhotoEncoder, tmp_path: Path) -> None:
    space.save_pretrained(tmp_path / "mine", encoder=encoder, base_model="a/base", licence="mit")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "config.json",
        "encoder.safetensors",
        "space.safetensors",
    ]
    for load in (Space.load, Space.from_pretrained, PcaSpace.load):
        assert close(load(tmp_path / "mine").decode(torch.ones(1, 3)), space.decode(torch.ones(1, 3)))
    described = torch.randn(2, 8)
    assert close(PhotoEncoder.load(tmp_path / "mine")(described), encoder(described))
    about, head = read_json(tmp_path / "mine" / "config.json"), (tmp_path / "mine" / "README.md").read_text().split("---\n")[1]
    assert about["m"] == 3 and about["layout"]["rank"] == 1 and yaml.safe_load(head)["base_model"] == "a/base"
    assert has_encoder(tmp_path / "mine") and not has_encoder(tmp_path / "mine" / "space.safetensors")
    with pytest.raises(W2WError, match="kind pca; VaeSpace was expected"):
        VaeSpace.load(tmp_path / "mine")


def test_a_folder_that_is_taken_and_another_spaces_encoder_are_refused(space: PcaSpace, encoder: PhotoEncoder, tmp_path: Path) -> None:
    with pytest.raises(W2WError, match="another space"):
        space.truncate(2).save_pretrained(tmp_path / "mine", encoder=encoder)
    assert not (tmp_path / "mine").exists()
    space.save_pretrained(tmp_path / "mine")
    with pytest.raises(W2WError, match="not empty"):
        space.save_pretrained(tmp_path / "mine")


def test_a_datasets_folder_is_the_dataset(dataset: Path, tmp_path: Path) -> None:
    data = WeightDataset.load(dataset)
    data.save_pretrained(tmp_path / "copy", licence="mit")
    copy = WeightDataset.from_pretrained(tmp_path / "copy")
    copy.verify()
    assert copy.ids == data.ids and copy.fingerprint == data.fingerprint and torch.equal(copy.rows(), data.rows())
    assert "license: mit" in (tmp_path / "copy" / "README.md").read_text()


def test_a_space_goes_to_the_hub_and_comes_back(space: PcaSpace, encoder: PhotoEncoder, remote: Path, asked: Asked) -> None:
    url = space.push_to_hub(REPO, encoder=encoder, token="hf_x")
    assert url.endswith("/commit/0123456789abcdef0123456789abcdef01234567")
    assert sorted(path.name for path in remote.iterdir()) == ["README.md", "config.json", "encoder.safetensors", "space.safetensors"]
    (remote / "malware.pkl").write_bytes(b"never fetched")
    assert torch.equal(Space.from_pretrained(REPO, revision="main").components, space.components)
    assert torch.equal(PhotoEncoder.from_pretrained(REPO).linear.weight, encoder.linear.weight) and has_encoder(REPO)
    assert not [path for _, path, _ in asked if "pkl" in path]
    before = len(asked)
    assert Space.from_pretrained(REPO, revision="main", local_files_only=True).m == 3 and len(asked) == before


def test_a_dataset_goes_to_the_hub_and_comes_back(dataset: Path, remote: Path, asked: Asked) -> None:
    data = WeightDataset.load(dataset)
    data.push_to_hub(REPO)
    back = WeightDataset.from_pretrained(REPO)
    back.verify()
    assert back.ids == data.ids and torch.equal(back.rows(), data.rows()) and back.folder != data.folder


def test_what_the_hub_does_not_have_or_refuses_is_one_line(space: PcaSpace, remote: Path, asked: Asked) -> None:
    with pytest.raises(W2WError, match="no-one/nothing is not here"):
        Space.from_pretrained("no-one/nothing")
    with pytest.raises(W2WError, match=r"has none of space\.safetensors"):
        (remote / "README.md").write_text("something else")
        Space.from_pretrained(REPO)
    with pytest.raises(W2WError, match="cannot upload to someone/faces"):
        space.push_to_hub(REPO, token="wrong")


def test_what_is_on_disk_comes_first(space: PcaSpace, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space.save_pretrained(REPO)
    assert Space.from_pretrained(REPO).source == f"{REPO}/space.safetensors" and not asked


def test_the_command_takes_hub_ids(
    w2w: Callable[..., Ended], base: BaseModel, pico: Path, dataset: Path, space: PcaSpace, remote: Path, asked: Asked, tmp_path: Path
) -> None:
    space.push_to_hub(REPO)
    WeightDataset.load(dataset).push_to_hub(REPO)  # beside it
    common = ["--runs", tmp_path / "runs", "--json"]
    assert w2w("dataset", "info", REPO, "--json").json()["n"] == 10
    assert w2w("fit", "pca", REPO, "--m", 2, "--out", tmp_path / "two.safetensors", *common).json()["m"] == 2
    words = ["sample", REPO, "--n", 1, "--pictures", 1, "--solver-steps", 1, "--base", pico, "--device", "cpu", *common]
    assert w2w(*words).json()["points"] == ["sample-0-0"]
    ended = w2w("dataset", "info", "no-one/nothing")
    assert ended.code == 2 and "no-one/nothing is not here" in ended.err and ended.err.count("\n") == 1
