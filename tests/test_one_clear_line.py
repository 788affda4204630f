"""Numbers, options, points and spaces that cannot be used end in one clear line and exit code 2, and never in black pictures."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Ended, write_faces
from w2wpp.base.model import BaseModel
from w2wpp.cli.common import show
from w2wpp.common.device import pick_device
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points, save_points

Command = Callable[..., Ended]


@pytest.fixture
def made(pico: Path, base: BaseModel, dataset: Path, tmp_path: Path) -> dict[str, Path]:
    """What the verbs read: a base, a dataset, a space over it and points in that."""
    space = PcaSpace.fit(WeightDataset.load(dataset), m=3)
    space.save(tmp_path / "space.safetensors")
    save_points(tmp_path / "points.safetensors", space.sample(2), ["a", "b"], space)
    found = {"base": pico, "data": dataset, "space": tmp_path / "space.safetensors", "points": tmp_path / "points.safetensors"}
    return {**found, "runs": tmp_path / "runs"}


def one_line(ended: Ended, *words: str) -> None:
    assert ended.code == 2 and ended.out == "", ended
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.err
    assert all(word in lines[0] for word in words), lines[0]


SAMPLE = "sample {space} --base {base} --device cpu --solver-steps 2"
OPTIONS = [
    (f"{SAMPLE} --seed {2**64}", "--seed"),
    (f"{SAMPLE} --seed {2**63}", "--seed"),
    (f"{SAMPLE} --seed -1", "--seed"),
    (f"{SAMPLE} --guidance nan", "--guidance"),
    (f"{SAMPLE} --guidance inf", "--guidance"),
    (f"{SAMPLE} --guidance 1e38", "guidance"),
    (f"{SAMPLE} --n {10**20}", "--n"),
    ("sample {space} --base {base} --device cpu --solver-steps 3000", "1000"),
    ("sample {space} --base {base} --device meta --solver-steps 2", "meta"),
    ("sample {space} --base {base} --device cuda:99 --solver-steps 2", "cuda:99"),
    ("interpolate {space} --base {base} --device cpu --image-seed " + str(2**64), "--image-seed"),
    ("fit pca {data} --m 3 --memory inf", "--memory"),
    ("fit pca {data} --m 3 --memory nan", "--memory"),
    ("fit pca {data} --m 3 --memory -1", "--memory"),
    ("fit vae {data} --m 3 --device cpu --lr nan", "--lr"),
    ("fit vae {data} --m 3 --device cpu --kl-weight inf", "--kl-weight"),
    ("faces align {data} --out {runs} --processes -1", "--processes"),
    ("adapters train {data} --out {runs} --base {base} --lr nan", "--lr"),
    ("adapters train {data} --out {runs} --base {base} --alpha inf", "--alpha"),
    ("edit {space} --points {points} --dataset {data} --base {base} --attribute smiling=nan", "smiling=nan"),
    ("mix a.safetensors b.safetensors --out {runs} --format vae", "--format"),
    ("generate person --space {space} --points {points} --base {base} --device cpu --guidance nan", "--guidance"),
]


@pytest.mark.parametrize(("option", "value"), [("--widths", "96,wide"), ("--snapshots", "0.5,late")])
def test_a_list_of_numbers_that_is_none(option: str, value: str, tmp_path: Path, w2w: Command) -> None:
    faces = write_faces(tmp_path / "faces", {"Ada": 1})
    one_line(w2w("base", "train", faces, "--out", tmp_path / "base", "--runs", tmp_path / "runs", option, value), value, "Write them like")


@pytest.mark.parametrize(("line", "named"), OPTIONS)
def test_an_option_that_cannot_be_used(line: str, named: str, made: dict[str, Path], w2w: Command) -> None:
    words = [word.format(**made) for word in line.split()]
    one_line(w2w(*words, "--runs", made["runs"]), named)


POINTS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], Any]] = {
    "a number alone": lambda held, about: held.update(z=torch.tensor(1.0)),
    "one row without a table": lambda held, about: held.update(z=held["z"][0]),
    "three axes": lambda held, about: held.update(z=held["z"][None]),
    "an odd fingerprint": lambda held, about: held.update(fingerprint=held["fingerprint"][:, None]),
    "NaN": lambda held, about: held["z"].fill_(float("nan")),
    "infinity": lambda held, about: held["z"][0].fill_(float("inf")),
    "too few ids": lambda held, about: about.update(ids='["a"]'),
    "ids that are none": lambda held, about: about.update(ids='{"a": 1}'),
    "one id twice": lambda held, about: about.update(ids='["a", "a"]'),
    "no JSON": lambda held, about: about.update(ids="["),
    "no layout": lambda held, about: about.pop("layout"),
    "a layout that is none": lambda held, about: about.update(layout="[]"),
}
SPACES: dict[str, Callable[[dict[str, Tensor], dict[str, str]], Any]] = {
    "NaN in its mean": lambda held, about: held["mean"][:1].fill_(float("nan")),
    "infinity in its components": lambda held, about: held["components"][:1].fill_(float("-inf")),
    "a mean of one number": lambda held, about: held.update(mean=torch.tensor(1.0)),
    "three axes": lambda held, about: held.update(components=held["components"][None]),
    "another m": lambda held, about: about.update(config='{"m": 4}'),
    "a negative m": lambda held, about: about.update(config='{"m": -4}'),
    "an m beyond all": lambda held, about: about.update(config=f'{{"m": {10**30}}}'),
    "an m that is none": lambda held, about: about.update(config='{"m": [1]}'),
    "a list": lambda held, about: about.update(config="[]"),
    "a layout that is none": lambda held, about: about.update(layout="[]"),
    "no config": lambda held, about: about.pop("config"),
}


def damaged(file: Path, change: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> None:
    tensors, about = read_checked(file, "it")
    held = {name: tensor.clone() for name, tensor in tensors.items()}
    change(held, about)
    write_checked(file, held, about)


@pytest.mark.parametrize("what", POINTS)
def test_points_made_by_hand(what: str, made: dict[str, Path], w2w: Command) -> None:
    damaged(made["points"], POINTS[what])
    words = ["--points", made["points"], "--space", made["space"], "--base", made["base"], "--device", "cpu", "--runs", made["runs"]]
    one_line(w2w("generate", "photo of sks person", *words), "points.safetensors")


@pytest.mark.parametrize("what", SPACES)
def test_spaces_made_by_hand(what: str, made: dict[str, Path], w2w: Command) -> None:
    damaged(made["space"], SPACES[what])
    one_line(w2w("sample", made["space"], "--base", made["base"], "--device", "cpu", "--runs", made["runs"]), "space.safetensors")


def test_points_are_read_as_they_were_written(made: dict[str, Path]) -> None:
    space = PcaSpace.load(made["space"])
    z, ids = load_points(made["points"], space)
    assert ids == ["a", "b"] and torch.equal(z, space.sample(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_library_refuses_what_would_be_black(value: float, base: BaseModel, layout: Layout) -> None:
    with pytest.raises(W2WError, match="guidance"):
        base.generate("photo of a person", [0], steps=1, guidance=value)
    with pytest.raises(W2WError, match="weights that are not numbers"):
        base.generate("photo of a person", [0], steps=1, layout=layout, weights=torch.full((layout.d,), value))
    with pytest.raises(W2WError, match="NaN or infinity"):
        base.decode_latents(torch.full((1, *base.latent_shape), value))


def test_a_device_without_numbers_is_none() -> None:
    with pytest.raises(W2WError, match="device meta is not available"):
        pick_device("meta")


def test_a_terminal_that_lacks_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    show({"name": "Zoë"}, as_json=True)
    printed.seek(0)
    assert json.loads(printed.read()) == {"name": "Zoë"}
    code = "import sys; sys.argv = ['w2w', 'dataset', 'info', 'Zoë']; from w2wpp.cli import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1) and "Zo\\xeb" in ended.stderr


def test_a_space_that_keeps_little_says_so(made: dict[str, Path], dataset: Path, tmp_path: Path, w2w: Command) -> None:
    """Ten random adapters lie in nine directions: three of them keep a third, nine all."""
    common = ["--base", made["base"], "--device", "cpu", "--solver-steps", 1, "--runs", made["runs"], "--json"]
    found = w2w("reconstruct", made["space"], dataset, "--n", 10, *common)
    assert "warning" in found.json() and found.json()["kept"] < 0.5
    assert found.err.startswith("warning: ") and "space.safetensors loses" in found.err
    run = json.loads((Path(found.json()["run"]) / "results.json").read_text())
    assert run["kept"] == found.json()["kept"] and "loses" in run["warning"]
    PcaSpace.fit(WeightDataset.load(dataset), m=9).save(tmp_path / "whole.safetensors")
    whole = w2w("reconstruct", tmp_path / "whole.safetensors", dataset, "--n", 10, *common)
    assert whole.err == "" and whole.json()["kept"] == pytest.approx(1, abs=1e-3) and "warning" not in whole.json()


def test_editing_by_points_that_hold_little_says_so(made: dict[str, Path], dataset: Path, tmp_path: Path, w2w: Command) -> None:
    labels = "person,tall\n" + "".join(f"person-{i},{i % 2}\n" for i in range(10))
    (tmp_path / "labels.csv").write_text(labels)
    words = ["--points", made["points"], "--dataset", dataset, "--labels", tmp_path / "labels.csv", "--attribute", "tall=1"]
    common = ["--base", made["base"], "--device", "cpu", "--solver-steps", 1, "--pictures", 1, "--runs", made["runs"], "--json"]
    found = w2w("edit", made["space"], *words, *common)
    assert "loses" in found.json()["warning"] and found.err.startswith("warning: ")
