"""The embedded base and weights are what the README says they are."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from w2wpp.adapters.train import options_for
from w2wpp.base.model import BaseModel
from w2wpp.common.assets import tiny_faces
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.demo import DemoOptions, run_demo


@pytest.fixture(scope="module")
def tiny():
    return BaseModel.load("tiny-faces", device="cpu")


def test_pipeline_is_plain_diffusers_and_small():
    assert sum(path.stat().st_size for path in tiny_faces("pipeline").rglob("*") if path.is_file()) <= 30e6
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_faces("pipeline"))  # no code of ours, no arguments
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("photo of a person", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]
    assert drawn.shape == (64, 64, 3) and np.ptp(drawn) > 0.1


def test_our_sampler_agrees_with_the_pipelines_own(tiny, monkeypatch):
    monkeypatch.setenv("W2WPP_PRECISION", "float32")
    noise = tiny.noise_for([5])
    theirs = tiny.pipeline("photo of a man", latents=noise, num_inference_steps=6, guidance_scale=2.0, output_type="np").images[0]
    ours = tiny.generate("photo of a man", [5], steps=6, guidance=2.0)[0]
    assert np.abs(theirs * 255 - ours).mean() < 2


def test_words(tiny):
    known, other = tiny.encode_text(["photo of George W Bush", "photo of jacques chirac"])
    assert (known - other).abs().max() > 1e-2
    with pytest.raises(W2WError, match="'photo of a zorb' has a word that tiny-faces does not know"):
        tiny.encode_text(["photo of a zorb"])


def test_weights_belong_to_the_base_and_are_many(tiny):
    dataset = WeightDataset.load("tiny-faces")
    dataset.verify()
    dataset.check(options_for("tiny-faces").layout_of(tiny), tiny.id, "tiny-faces")
    info = dataset.info()
    assert info["people"] >= 2000 and info["second_adapters"] >= 400
    assert info["splits"] == {"train": len(dataset)}
    pairs = {name.removesuffix("#b") for name in dataset.ids if name.endswith("#b")}
    assert pairs <= set(dataset.ids)


def test_a_copy_of_the_weights_can_be_gone_on_with():
    """`w2w adapters train` appends only what was trained alike: a new option has to stand in the embedded dataset too."""
    assert WeightDataset.load("tiny-faces").meta["adapters"] == json.loads(json.dumps(asdict(options_for("tiny-faces"))))


def test_the_demo_says_at_once_that_an_extra_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(W2WError, match=r"w2wpp\[encoder\]"):
        run_demo(DemoOptions(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "base show",
        "dataset info",
        "dataset labels tiny-faces",
        "fit pca",
        "sample tiny-faces",
        "invert tiny-faces me.jpg",
        "demo",
    ],
)
def test_without_the_data_package_one_line_says_how_to_install_it(w2w, monkeypatch, tmp_path, words):
    monkeypatch.setitem(sys.modules, "w2wpp_tiny_faces", None)  # what an import finds when it is not installed
    monkeypatch.chdir(tmp_path)
    ended = w2w(*words.split())
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and len(lines) == 1 and "pip install w2wpp-tiny-faces" in lines[0] and "hub id" not in lines[0]


def test_the_demo_refuses_a_table_that_is_none(tmp_path):
    (tmp_path / "table.json").write_text('{"rows": []}')
    with pytest.raises(W2WError, match=r"table1\.json"):
        run_demo(DemoOptions(space="", table=tmp_path / "table.json"), tmp_path / "demo")
