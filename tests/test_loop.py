"""The whole loop through the command line, on a pico pipeline: from a folder of photos to an adapter that peft loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel

from conftest import Ended, write_faces
from w2wpp.base.model import BaseModel
from w2wpp.dataset.weights import WeightDataset
from w2wpp.demo import DemoOptions, run_demo
from w2wpp.exchange.formats.peft import read_peft
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.lora.batched import adapted, initial_weights
from w2wpp.photos.images import read_image
from w2wpp.spaces import edits
from w2wpp.spaces.base import Space

PEOPLE = {f"Person_{i}": 1 + i % 2 for i in range(10)}  # every second one has two photos, hence two adapters

SKS = "photo of sks person"
LEVELS = 4  # of 255: what bfloat16 in batches of another size may change


def test_from_photos_to_a_new_model(w2w: Callable[..., Ended], tmp_path: Path, pico: Path, base: BaseModel) -> None:
    faces = write_faces(tmp_path / "faces", PEOPLE)
    data, pca, vae = tmp_path / "adapters", tmp_path / "pca.safetensors", tmp_path / "vae.safetensors"
    photo = faces / "Person_0" / "0.png"
    common = ["--runs", tmp_path / "runs", "--json"]
    draw = ["--base", pico, "--device", "cpu", "--solver-steps", 2, *common]

    quick = ["--steps", 2, "--group", 4, "--prior-weight", 0, "--device", "cpu"]
    trained = w2w("adapters", "train", faces, "--out", data, "--base", pico, *quick, *common).json()
    assert trained["n"] == 15
    assert {"Person_1", "Person_1#b"} <= set(WeightDataset.load(data).ids)

    assert w2w("fit", "pca", data, "--m", 3, "--out", pca, *common).json()["m"] == 3
    fitted = w2w(
        "fit", "vae", data, "--m", 3, "--widths", "16,8", "--epochs", 2, "--batch", 4, "--out", vae, "--device", "cpu", *common
    ).json()
    assert {"active_units", "decoded_spread_ratio"} <= set(fitted["collapse"])

    for space in (pca, vae):
        out = tmp_path / f"sample-{space.stem}"
        drawn = w2w("sample", space, "--n", 2, "--pictures", 3, "--out", out, *draw).json()
        assert read_image(drawn["sheet"]).shape == (2 * 16 + 2, 3 * 16 + 4, 3)

        strip = w2w("interpolate", space, "--points", out / "points.safetensors", "--n", 3, *draw).json()
        # The ends of the strip are the drawn models themselves, at the same image seed.
        first, last = (read_image(out / "pictures" / drawn["points"][i] / "0.png").astype(int) for i in (0, 1))
        assert np.abs(read_image(strip["out"])[:, :16] - first).max() <= LEVELS
        assert np.abs(read_image(strip["out"])[:, -16:] - last).max() <= LEVELS

        rebuilt = w2w("reconstruct", space, data, "--n", 3, *draw).json()
        assert len(rebuilt["lost"]) == 3

        me = tmp_path / f"me-{space.stem}"
        found = w2w("invert", space, photo, "--no-align", "--steps", 2, "--pictures", 2, "--out", me, *draw).json()
        assert found["unet_evals"] == 2

        # The point, its full weights, its adapter folder and its export are one model: the same pictures.
        by_point = w2w("generate", SKS, "--points", me / "points.safetensors", "--space", space, "--n", 2, *draw).json()
        by_adapter = w2w("generate", SKS, "--adapter", me / "adapters" / "0", "--n", 2, *draw).json()
        by_weights = w2w("generate", SKS, "--dataset", me / "weights", "--id", "0", "--n", 2, *draw).json()
        w2w("export", "--points", me / "points.safetensors", "--space", space, "--base", pico, "--out", me / "again", *common).json()
        assert (read_image(by_point["sheet"]) == read_image(by_adapter["sheet"])).all()
        assert (read_image(by_point["sheet"]) == read_image(by_weights["sheet"])).all()
        assert torch.equal(read_peft(me / "again")[1], read_peft(me / "adapters" / "0")[1])
        assert same_in_peft(base, pico, me / "again") < 1e-4


def test_adapters_begin_where_an_encoder_puts_the_photos(w2w: Callable[..., Ended], tmp_path: Path, pico: Path) -> None:
    faces = write_faces(tmp_path / "faces", PEOPLE)
    common = ["--base", pico, "--device", "cpu", "--runs", tmp_path / "runs", "--json"]
    quick = ["--steps", 1, "--prior-weight", 0]
    w2w("adapters", "train", faces, "--out", tmp_path / "plain", "--lr", 0.3, *quick, *common).json()  # far from where others begin
    space, encoder = tmp_path / "pca.safetensors", tmp_path / "encoder.safetensors"
    w2w("fit", "pca", tmp_path / "plain", "--m", 3, "--out", space, "--runs", tmp_path / "runs", "--json").json()
    w2w("fit", "encoder", space, faces, "--encoder-steps", 5, "--teacher", "photos", "--out", encoder, *common).json()
    start = ["--start-space", space, "--encoder", encoder]
    w2w("adapters", "train", faces, "--out", tmp_path / "started", *start, "--lr", 1e-9, *quick, *common).json()
    started, plain = WeightDataset.load(tmp_path / "started"), WeightDataset.load(tmp_path / "plain")
    assert started.ids == plain.ids and started.meta["start"].endswith("of pca, m = 3")
    fitted, network = Space.load(space), PhotoEncoder.load(encoder)
    one = [read_image(faces / "Person_0" / "0.png")]
    with torch.no_grad():
        begin = fitted.decode(network.points([one]))[0]
    assert (begin - initial_weights(fitted.layout)).abs().max() > 0.1
    torch.testing.assert_close(started.rows([started.ids.index("Person_0")])[0], begin, atol=1e-3, rtol=1e-3)  # float16
    learned = started.meta["adapters"]
    assert (learned["blend"], learned["steps"]) == (0.5, 1) and plain.meta["adapters"]["blend"] == 1
    w2w("adapters", "train", faces, "--out", tmp_path / "whole", *start, "--blend", 1, "--lr", 1e-2, *quick, *common).json()
    w2w("adapters", "train", faces, "--out", tmp_path / "half", *start, "--lr", 1e-2, *quick, *common).json()
    whole, half = (WeightDataset.load(tmp_path / name).rows([0])[0] for name in ("whole", "half"))
    first = started.rows([0])[0]
    torch.testing.assert_close(half - first, (whole - first) / 2, atol=2e-3, rtol=0.05)
    assert (whole - first).abs().max() > 5e-3
    assert "without a start" in w2w("adapters", "train", faces, "--out", tmp_path / "none", "--blend", 0.5, *common).err
    assert "or the same options" in w2w("adapters", "train", faces, "--out", tmp_path / "plain", *start, *quick, *common).err
    assert "Give that as --start-space" in w2w("adapters", "train", faces, "--out", tmp_path / "none", "--encoder", encoder, *common).err


def same_in_peft(base: BaseModel, pico: Path, folder: Path) -> float:
    """The largest difference between peft's UNet with this adapter and ours, over the size of the adapter's effect."""
    layout, weights = read_peft(folder)
    draw = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, *base.latent_shape, generator=draw), torch.tensor([100, 700])
    context = base.encode_text([SKS, ""])
    loaded = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(pico, subfolder="unet"), str(folder)).eval()
    with torch.no_grad():
        theirs = loaded(x, t, context).sample
        with adapted(base.pipeline.unet, layout, weights[None]):
            ours = base.pipeline.unet(x, t, context).sample
        assert not torch.equal(ours, base.pipeline.unet(x, t, context).sample)
    return float((theirs - ours).abs().max())


def test_demo_makes_one_self_contained_report(tmp_path: Path, pico: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "TELLING", -1.0)  # the adapters are noise
    plain = WeightDataset.load(dataset)
    told = WeightDataset.create(tmp_path / "told", plain.layout, plain.base_id, plain.meta)
    labels: list[dict[str, Any]] = [{"person": name, "smiling": i % 2} for i, name in enumerate(plain.ids)]
    told.append(plain.rows(range(len(plain))), plain.ids, labels)
    photo = write_faces(tmp_path / "faces", {"Ada": 1}) / "Ada" / "0.png"
    small = {"m": 4, "components": 6, "people": 2, "pictures": 2, "strip": 3, "found": 2, "inversion_steps": 2, "scored": 1}
    options = DemoOptions(
        base=str(pico),
        dataset=str(tmp_path / "told"),
        space="",
        photo=photo,
        align_photo=False,
        device="cpu",
        **small,  # type: ignore[arg-type]
    )
    results = run_demo(options, tmp_path / "demo")
    html = results["report"].read_text()
    assert [section["title"] for section in results["sections"]] == [
        "New people, drawn from a space", "From one person to another", "Adapters, to points and back",
        "One attribute changed", "Who is near",
        "From one photo to a model",
    ]  # fmt: skip
    assert html.count("data:image/png;base64,") == 7  # two draws, and one picture of each other section
    assert 'src="http' not in html and 'href="http' not in html
    assert set(results["scores"]) == {"base", "PCA-w2w", "anchored VAE"}
    near = next(section for section in results["sections"] if section["title"] == "Who is near")
    assert sum(name in near["text"] for name in plain.ids) >= 2
    assert Space.load(tmp_path / "demo" / "anchored-vae.safetensors").m == 4
