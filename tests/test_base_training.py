import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from w2wpp.base import train as base_training
from w2wpp.base import train_unet as denoiser_training
from w2wpp.base.build import BaseSizes, build_tokenizer
from w2wpp.base.captions import CaptionTable, Shares, captions_of, gender
from w2wpp.base.model import BaseModel
from w2wpp.base.name_embedding import NameEmbedding
from w2wpp.base.train import BaseTraining, reflected, sharpen_base, spoilt, train_base
from w2wpp.base.train_autoencoder import AutoencoderOptions
from w2wpp.base.train_decoder import DecoderOptions, energy_off
from w2wpp.base.train_unet import DenoiserOptions
from w2wpp.common.checkpoints import load_checkpoint, save_checkpoint
from w2wpp.common.clock import Clock
from w2wpp.common.errors import W2WError
from w2wpp.common.precision import fast_products
from w2wpp.common.seeds import generator
from w2wpp.photos.alignment import INDEX, AlignedFaces
from w2wpp.photos.images import to_tensor, write_image

VAE = "diffusion_pytorch_model.safetensors"
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
    return AlignedFaces.load(tmp_path / "faces")


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
    with pytest.raises(W2WError, match="was not made by this training"):
        train_base(faces, tmp_path / "out", OPTIONS, device="cpu")
    shutil.rmtree(tmp_path / "out" / "pipeline")
    with pytest.raises(W2WError, match="does not fit this training"):
        train_base(faces, tmp_path / "out", other, device="cpu")


def test_captions_follow_their_shares():
    listed = dict(captions_of("Mary_Doe", {"emotion": "happiness"}, Shares()))
    assert abs(sum(listed.values()) - 1) < 1e-9
    assert {"photo of a smiling woman", "photo of Mary Doe smiling", "photo of sks person", ""} <= listed.keys()
    assert abs(sum(share for words, share in listed.items() if "Mary Doe" in words) - Shares().name) < 1e-9
    assert not any("smiling" in words for words, _ in captions_of("Mary_Doe", {"emotion": "anger"}, Shares()))
    assert gender("Xyzzy_Doe") == "person"


def test_a_caption_table_draws_by_its_shares():
    tokenizer = build_tokenizer(["Mary Doe", "John Doe"], 8)
    table = CaptionTable.of(tokenizer, ["Mary_Doe", "John_Doe"], [{"emotion": "happiness"}, {}], Shares(name=0.7))
    chance = torch.rand(4000, generator=generator(0, "chance"))
    drawn = table.of_kinds(torch.arange(4000) % 2, table.kinds(chance))
    names = tokenizer.convert_tokens_to_ids(["mary doe", "john doe"])
    shares = [(drawn[i::2] == name).any(1).float().mean() for i, name in enumerate(names)]
    assert all(abs(share - 0.7) < 0.03 for share in shares)
    assert not (drawn[0::2] == names[1]).any()
    assert abs((drawn == tokenizer.unk_token_id).sum()) == 0


def test_a_moved_photo_shows_what_is_next_to_the_gap_mirrored():
    assert reflected(5, 0).tolist() == [0, 1, 2, 3, 4]
    assert reflected(5, 1).tolist() == [1, 0, 1, 2, 3]
    assert reflected(5, -2).tolist() == [2, 3, 4, 3, 2]


def test_training_ends_after_its_time_and_keeps_snapshots(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "seconds", lambda clock: 60.0 * next(clock.__dict__.setdefault("ticks", iter(range(99)))))
    timed = replace(OPTIONS.denoiser, steps=1000, minutes=12.0, snapshots=(0.5,))
    folder = train_base(faces, tmp_path / "out", replace(OPTIONS, denoiser=timed), device="cpu")
    assert not torch.equal(weights_of(folder), weights_of(tmp_path / "out" / "pipeline-0.5"))


def test_training_further_starts_where_the_first_ended(faces, tmp_path):
    first = train_base(faces, tmp_path / "first", OPTIONS, device="cpu")
    still = replace(OPTIONS.denoiser, steps=1, lr=0.0, spoilt=1, shift=1)
    second = train_base(
        faces, tmp_path / "second", replace(OPTIONS, denoiser=still, autoencoder_of=str(first), start=str(first)), device="cpu"
    )
    prompts = ["photo of Jane Doe1", "photo of sks person"]
    before, after = (BaseModel.load(folder, device="cpu") for folder in (first, second))
    assert torch.allclose(before.encode_text(prompts), after.encode_text(prompts), atol=2e-2)
    assert torch.allclose(weights_of(first), weights_of(second), atol=1e-3)


def test_names_that_are_taken_over_mean_the_same_in_bfloat16(monkeypatch):
    monkeypatch.setenv("W2WPP_PRECISION", "bfloat16")
    draw = torch.Generator().manual_seed(0)
    described = torch.randn(60, 6, generator=draw)
    described[:, 5] = described[:, 4] + 1e-4 * torch.randn(60, generator=draw)  # nearly the same number twice
    strangers = described[:8] + 0.1 * torch.randn(8, 6, generator=draw)
    strangers[:, 5] = strangers[:, 4]
    table = torch.cat([torch.zeros(4, 16), described @ torch.randn(6, 16, generator=draw) + 0.3 * torch.randn(60, 16, generator=draw)])
    names = NameEmbedding(torch.nn.Embedding(64, 16), described, strangers, 0.2, draw)
    names.take(table)
    assert torch.allclose(names.table(), table, atol=1e-4)
    ids = torch.arange(4, 72)
    with torch.no_grad(), fast_products("cpu"):
        rounded = names(ids).float()
    exact = names(ids)
    assert (rounded - exact).abs().max() < 0.05 * exact.std()


def test_a_sharper_decoder_leaves_latents_and_identity_alone(faces, tmp_path):
    first = train_base(faces, tmp_path / "first", OPTIONS, device="cpu")
    options = DecoderOptions(width=16, blocks=(1, 1), steps=3, batch=4)
    second = sharpen_base(first, faces, tmp_path / "second", options, device="cpu")
    before, after = (BaseModel.load(folder, device="cpu") for folder in (first, second))
    photos = to_tensor([photo for person in faces.people for photo in faces.photos(person)])
    latents = before.encode_images(photos)
    assert torch.allclose(latents, after.encode_images(photos)) and before.id.split("-")[:2] == after.id.split("-")[:2]
    assert not np.array_equal(before.decode_latents(latents)[0], after.decode_latents(latents)[0])


def test_an_autoencoder_is_taken_over_as_it_is(faces, tmp_path):
    first = train_base(faces, tmp_path / "first", OPTIONS, device="cpu")
    second = train_base(faces, tmp_path / "second", replace(OPTIONS, autoencoder_of=str(first), seed=4), device="cpu")
    assert load_file(first / "vae" / VAE).keys() == load_file(second / "vae" / VAE).keys()
    assert all(torch.equal(value, load_file(second / "vae" / VAE)[key]) for key, value in load_file(first / "vae" / VAE).items())
    wide = replace(OPTIONS, sizes=replace(SIZES, latent_channels=8), autoencoder_of=str(first))
    with pytest.raises(W2WError, match="latent_channels 4"):
        train_base(faces, tmp_path / "third", wide, device="cpu")


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


def test_a_spoilt_photo_is_another_one_and_no_noise(faces):
    photos = torch.from_numpy(np.stack([photo for person in faces.people for photo in faces.photos(person)])).permute(0, 3, 1, 2)
    worse = spoilt(photos, generator(0, "spoilt"))
    assert worse.shape == photos.shape and worse.dtype == torch.uint8 and not torch.equal(worse, photos)
    flat = torch.full_like(photos, 77)
    assert torch.equal(spoilt(flat, generator(0, "spoilt")), flat)


def test_blur_has_less_energy_of_detail():
    photos = torch.rand(2, 3, 32, 32, generator=generator(0, "photos"))
    blurred = torch.nn.functional.avg_pool2d(photos, 3, 1, 1)
    assert energy_off(photos, photos) == 0 and energy_off(blurred, photos) > 0.1
    assert energy_off(photos.flip(-1), photos) < energy_off(blurred, photos)


def test_louder_names_are_farther_from_their_mean():
    draw = generator(0, "names")
    names = NameEmbedding(torch.nn.Embedding(9, 4), torch.randn(5, 3, generator=draw), torch.randn(2, 3, generator=draw), 0.2, draw)
    plain, loud = names.table(), names.table(2.0)
    assert torch.equal(plain[:4], loud[:4]) and torch.allclose(plain[4:].mean(0), loud[4:].mean(0), atol=1e-6)
    assert torch.allclose(loud[4:] - loud[4:].mean(0), 2 * (plain[4:] - plain[4:].mean(0)), atol=1e-6)
    assert names(torch.tensor([10])).shape == (1, 4)  # a stranger, after the vocabulary
