"""A base is what its pictures depend on, whole: its identity tells any other, and its files hold all they should."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import Ended, close
from w2wpp.base import identity as identities
from w2wpp.base.identity import same_base, sampled
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.lora.layout import Layout

UNET, TEXT, VAE = "unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"


def loaded(folder: Path) -> BaseModel:
    return BaseModel.load(folder, device="cpu")


def tensors(change: Callable[[dict[str, Tensor]], Any], name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        file = folder / f"{name}.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, {"format": "pt"})

    return act


def config(file: str, **values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return act


def negate_unsampled(held: dict[str, Tensor]) -> None:
    """All numbers but those that early versions looked at."""
    for tensor in held.values():
        flat = tensor.view(-1)
        step = max(1, flat.numel() // 64)
        kept = flat[::step].clone()
        flat.neg_()
        flat[::step] = kept


def another_word(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("smiling", "smirking"))


OTHERS = {
    "numbers that were not sampled": tensors(negate_unsampled, UNET),
    "text encoder": tensors(lambda held: held[max(held)].view(-1)[-1:].add_(1), TEXT),
    "autoencoder": tensors(lambda held: held[max(held)].view(-1)[-1:].add_(1), VAE),
    "prediction": config("scheduler/scheduler_config.json", prediction_type="epsilon"),
    "betas": config("scheduler/scheduler_config.json", beta_end=0.02),
    "scaling of latents": config("vae/config.json", scaling_factor=0.5),
    "words": another_word,
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_a_picture_depends_on_is_part_of_the_identity(what: str, pico: Path, base: BaseModel, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(pico, folder)
    assert loaded(folder).id == base.id
    OTHERS[what](folder)
    assert not same_base(loaded(folder).id, base.id)


def test_the_same_weights_in_half_precision_are_the_same_base(pico: Path, base: BaseModel, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pico, safety_checker=None)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half")
    assert loaded(tmp_path / "half").id == base.id


def test_early_versions_knew_the_denoiser_by_a_sample(base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    early = sampled(base.pipeline.unet)
    assert early != base.id and same_base(early, base.id) and not same_base("0" * 16, base.id)
    data = WeightDataset.create(tmp_path / "early", layout, early)
    data.append(torch.zeros(1, layout.d), ["a"])
    WeightDataset.load(tmp_path / "early").check(layout, base.id, "this base")


def test_a_denoiser_without_its_pipeline_is_told_apart_by_its_weights_alone(pico: Path, base: BaseModel) -> None:
    alone = base.id.rsplit("-", 1)[0]
    assert same_base(alone, base.id) and Denoiser.load(pico).id == base.id
    assert not same_base(alone.replace(alone[-1], "f" if alone[-1] != "f" else "0"), base.id)


def test_files_are_read_once(pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = tmp_path / "base", []
    shutil.copytree(pico, folder)
    tensors_of = identities._tensors
    monkeypatch.setattr(identities, "_tensors", lambda file: (read.append(file.parent.name), tensors_of(file))[1])
    first = loaded(folder).id
    assert sorted(read) == ["text_encoder", "unet", "vae"]
    assert loaded(folder).id == first and len(read) == 3
    tensors(lambda held: held[max(held)].neg_(), VAE)(folder)
    assert loaded(folder).id != first and read[3:] == ["vae"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")  # where nothing can be kept
    assert loaded(pico).id == first


def rename(held: dict[str, Tensor]) -> None:
    held["a.tensor.of.nothing"] = torch.zeros(2)


def reshape(held: dict[str, Tensor]) -> None:
    held[max(held)] = torch.zeros(7)


def not_a_number(held: dict[str, Tensor]) -> None:
    held[max(held)].view(-1)[0] = float("nan")


def infinite(held: dict[str, Tensor]) -> None:
    held[min(held)].view(-1)[-1] = float("-inf")


@pytest.mark.parametrize("part", [UNET, TEXT, VAE])
@pytest.mark.parametrize("change", [lambda held: held.pop(max(held)), rename, reshape, not_a_number, infinite])
def test_a_file_that_does_not_hold_its_network_is_refused(
    part: str, change: Callable[[dict[str, Tensor]], Any], pico: Path, tmp_path: Path
) -> None:
    shutil.copytree(pico, tmp_path / "base")
    names = load_file(pico / f"{part}.safetensors").keys()
    tensors(change, part)(tmp_path / "base")
    named = "a.tensor.of.nothing" if change is rename else min(names) if change is infinite else max(names)
    with pytest.raises(W2WError) as refusal:
        loaded(tmp_path / "base")
    assert part.split("/")[0] in str(refusal.value) and named in str(refusal.value)


def test_a_base_that_would_have_to_be_unpickled_is_refused(w2w: Callable[..., Ended], pico: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(pico, folder)
    weights = load_file(folder / f"{UNET}.safetensors")
    (folder / f"{UNET}.safetensors").unlink()
    torch.save(weights, folder / f"{UNET}.bin")
    for load in (loaded, Denoiser.load):
        with pytest.raises(W2WError, match=r"does not load: .*safetensors"):
            load(folder)
    ended = w2w("base", "show", folder, "--device", "cpu")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1


def test_a_text_encoder_of_early_versions_is_the_same_base(pico: Path, base: BaseModel, tmp_path: Path) -> None:
    """As in Stable Diffusion 1.5's own file: a prefix to every name, and a table of positions that is no weight."""
    shutil.copytree(pico, tmp_path / "base")

    def early(held: dict[str, Tensor]) -> None:
        renamed = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in held.items()}
        held.clear()
        held.update(renamed | {"text_model.embeddings.position_ids": torch.arange(8)[None]})

    tensors(early, TEXT)(tmp_path / "base")
    again = loaded(tmp_path / "base")
    assert again.id == base.id
    words = ["photo of a person"]
    assert close(again.encode_text(words), base.encode_text(words))


def test_a_pipeline_does_not_name_the_code_that_loads_it(pico: Path, tmp_path: Path) -> None:
    shutil.copytree(pico, tmp_path / "base")
    config("model_index.json", vae=["antigravity", "AutoencoderTiny"])(tmp_path / "base")
    with pytest.raises(W2WError, match="its vae is AutoencoderTiny of antigravity"):
        loaded(tmp_path / "base")
