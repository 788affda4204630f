import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from w2wpp import base_training, denoiser_training
from w2wpp.alignment import INDEX, AlignedFaces
from w2wpp.autoencoder_training import AutoencoderOptions
from w2wpp.base_build import BaseSizes
from w2wpp.base_model import BaseModel
from w2wpp.base_training import BaseTraining, train_base
from w2wpp.captions import Shares, caption, gender
from w2wpp.checkpoints import load_checkpoint, save_checkpoint
from w2wpp.denoiser_training import DenoiserOptions
from w2wpp.errors import W2WError
from w2wpp.images import write_image
from w2wpp.seeds import generator

SIZES = BaseSizes(
    image_size=16,
    latent_channels=4,
    autoencoder_width=8,
    decoder_blocks=(1, 1),
    unet_widths=(16, 16),
    attention_heads=2,
    text_width=16,
    text_layers=1,
)
OPTIONS = BaseTraining(sizes=SIZES, autoencoder=AutoencoderOptions(steps=4, batch=4), denoiser=DenoiserOptions(steps=4, batch=4), seed=3)


@pytest.fixture
def faces(tmp_path):
    """Six people with one to three photos of noise, two of them held out."""
    draw = np.random.default_rng(0)
    lines = []
    for i, split in enumerate(["train"] * 4 + ["val"] * 2):
        for j in range(1 + i % 3):
            person, photo = f"Jane_Doe{i}", f"{j}.jpg"
            write_image(tmp_path / "faces" / person / f"{j}.png", draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            lines.append({"person": person, "photo": photo, "size": 16, "status": "ok", "labels": {"split": split, "emotion": "happiness"}})
    (tmp_path / "faces" / INDEX).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return AlignedFaces.open(tmp_path / "faces")


@pytest.fixture(autouse=True)
def describe_by_brightness():
    """Stand in for dlib, which is an extra."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_training, "describe_faces", lambda images: np.stack([image[0, :8, 0] for image in images]).astype(np.float32))
        yield


def weights_of(folder):
    return torch.cat([p.flatten() for p in BaseModel.load(folder, device="cpu").pipeline.unet.parameters()])


def test_a_trained_base_is_a_pipeline_that_knows_its_people(faces, tmp_path):
    folder = train_base(faces, tmp_path / "out", OPTIONS, device="cpu")
    base = BaseModel.load(folder, device="cpu")
    context = base.encode_text(["photo of Jane Doe1", "photo of jane doe2", "photo of a person"])
    assert (context[0] - context[1]).abs().max() > 1e-5
    with pytest.raises(W2WError, match="Doe5"):
        base.encode_text(["photo of Jane Doe5"])  # held out
    curves = json.loads((tmp_path / "out" / "training.json").read_text())["curves"]
    assert curves["denoiser"][-1]["step"] == 4 and "val_loss" in curves["denoiser"][-1]


def test_interrupted_training_ends_where_uninterrupted_training_does(faces, tmp_path, monkeypatch):
    whole = weights_of(train_base(faces, tmp_path / "whole", OPTIONS, device="cpu"))

    monkeypatch.setattr(denoiser_training, "SAVE_EVERY", 2)
    monkeypatch.setattr(denoiser_training, "LOG_EVERY", 3)
    logger = base_training._logger
    monkeypatch.setattr(base_training, "_logger", lambda path: interrupt if path.stem == "denoiser" else logger(path))
    with pytest.raises(KeyboardInterrupt):
        train_base(faces, tmp_path / "cut", OPTIONS, device="cpu")
    assert torch.load(tmp_path / "cut" / "denoiser.pt", weights_only=True)["step"] == 2
    monkeypatch.undo()
    assert torch.equal(weights_of(train_base(faces, tmp_path / "cut", OPTIONS, device="cpu")), whole)


def interrupt(line):
    raise KeyboardInterrupt


def test_a_checkpoint_of_another_base_is_refused(faces, tmp_path):
    train_base(faces, tmp_path / "out", OPTIONS, device="cpu")
    other = replace(OPTIONS, sizes=replace(SIZES, autoencoder_width=16))
    with pytest.raises(W2WError, match=r"begun with other options \(sizes"):
        train_base(faces, tmp_path / "out", other, device="cpu")
    (tmp_path / "out" / "options.json").unlink()
    with pytest.raises(W2WError, match="does not fit this training"):
        train_base(faces, tmp_path / "out", other, device="cpu")


def test_captions_follow_their_shares():
    draws = generator(0, "captions")
    drawn = [caption("Mary_Doe", {"emotion": "happiness"}, Shares(), draws) for _ in range(4000)]
    assert abs(sum("Mary Doe" in c for c in drawn) / 4000 - 0.70) < 0.03
    assert abs(sum("sks" in c for c in drawn) / 4000 - 0.08) < 0.02
    assert abs(drawn.count("") / 4000 - 0.08) < 0.02
    assert "photo of a smiling woman" in drawn and "photo of Mary Doe smiling" in drawn
    assert not any("smiling" in caption("Mary_Doe", {"emotion": "anger"}, Shares(), draws) for _ in range(200))
    assert gender("Xyzzy_Doe") == "person"


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    part = torch.nn.Linear(1, 1)
    save_checkpoint(tmp_path / "c.pt", {"part": part}, 3)

    def full(*args):
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(W2WError, match="cannot write"):
        save_checkpoint(tmp_path / "c.pt", {"part": part}, 4)
    assert load_checkpoint(tmp_path / "c.pt", {"part": part}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
