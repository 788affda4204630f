"""Shared fixtures: `pico`, a random pipeline of kilobytes in Stable Diffusion's folder format, and what grows on it."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor
from torch.nn import functional as F

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="w2wpp-tests-")  # what is remembered of files stays out of the home
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before diffusers is imported: no test asks the network
if beside := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # processes that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(beside))))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

from nodes import two_nodes
from w2wpp.base.build import BaseSizes, build_pipeline
from w2wpp.base.model import BaseModel
from w2wpp.cli import main
from w2wpp.common.files import write_text
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion import likeness
from w2wpp.inversion.person_photos import PersonPhotos
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos.images import write_image

# The same examples on every run, on a machine of any speed; `pytest --hypothesis-seed random` looks for others.
settings.register_profile(
    "w2w", deadline=None, derandomize=True, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("w2w")

PICO = BaseSizes(
    image_size=16,
    latent_channels=4,
    autoencoder_width=8,
    decoder_blocks=(1, 1),
    unet_widths=(16, 32),
    attention_heads=2,
    norm_groups=8,
    text_width=16,
    text_layers=1,
    prompt_tokens=8,
)


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved random pipeline: 16x16 pictures, 4x8x8 latents, two people's names in its vocabulary."""
    folder = tmp_path_factory.mktemp("pico") / "pipeline"
    build_pipeline(PICO, names=("Ada Lovelace", "Grace Hopper")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(pico: Path) -> BaseModel:
    """The pico pipeline, loaded on the CPU."""
    return BaseModel.load(pico, device="cpu")


@pytest.fixture(scope="session")
def layout(base: BaseModel) -> Layout:
    """The default adapter of the pico pipeline: rank 1 on to_q and to_v, d = 1,344."""
    return Layout.of(base.pipeline.unet)


@pytest.fixture(scope="session")
def bent_weights(layout: Layout) -> Tensor:
    """Sixty adapters with five strong directions, bent: the second is the square of the first."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(60, 5, generator=draw)
    z[:, 1] = z[:, 0].square() - 1
    directions = torch.randn(5, layout.d, generator=draw)
    return initial_weights(layout) + 0.05 * (z @ directions + 0.3 * torch.randn(60, layout.d, generator=draw))


@pytest.fixture(scope="session")
def described_photos(base: BaseModel) -> PersonPhotos:
    """Twenty people whose latents are a linear map of their description."""
    draw = torch.Generator().manual_seed(1)
    lift = torch.randn(6, base.latent_shape[0] * base.latent_shape[1] * base.latent_shape[2], generator=draw)
    described: Mapping[str, Tensor] = {f"person-{i}": torch.randn(2, 6, generator=draw) for i in range(20)}
    latents = {person: (about @ lift / 6**0.5).unflatten(1, base.latent_shape) for person, about in described.items()}
    return PersonPhotos(base, latents, described, base.encode_text(["photo of sks person"]).float())


@pytest.fixture
def describer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """What stands for the describing network, which is an extra: [n, 6], the levels of six parts of a picture."""

    def describe(pixels: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), (2, 3)).flatten(1)

    monkeypatch.setattr(likeness, "describe_pixels", describe)
    return describe


@pytest.fixture
def dataset(tmp_path: Path, base: BaseModel, layout: Layout) -> Path:
    """The folder of a dataset of ten random adapters of the pico pipeline."""
    data = WeightDataset.create(tmp_path / "dataset", layout, base.id)
    weights = 0.02 * torch.randn(10, layout.d, generator=torch.Generator().manual_seed(0))
    data.append(weights, [f"person-{i}" for i in range(10)], [{"person": f"person-{i}"} for i in range(10)])
    return tmp_path / "dataset"


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON object on stdout; fails if there is anything else."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes of one core each on this machine."""
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def w2w(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run `w2w` as from a shell: `w2w("fit", "pca", folder, "--m", 4)`."""

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["w2w", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


def refused(ended: Ended, *words: str) -> None:
    """Assert one clear line on stderr and exit code 2."""
    assert ended.code == 2, ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    for word in words:
        assert word in lines[0]


def write_faces(folder: Path, people: Mapping[str, int], size: int = 16, split: str = "train") -> Path:
    """An aligned faces folder of noise: `people` maps a name to a number of photos. Nobody's face is in it."""
    lines = []
    for person, n in people.items():
        for i in range(n):
            draw = np.random.default_rng([len(lines), i])
            write_image(folder / person / f"{i}.png", draw.integers(0, 256, (size, size, 3), np.uint8))
            lines.append({"person": person, "photo": f"{i}.jpg", "size": size, "status": "ok", "labels": {"split": split}})
    write_text(folder / "faces.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether numbers agree but for rounding: a product of the same numbers differs by a bit with their place in memory."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
