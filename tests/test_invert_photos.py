"""Photos in, models out: one function for paths, folders, pictures and arrays, which resumes where it was cut short."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from conftest import Ended, write_faces
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.peft import read_peft
from w2wpp.inversion import gradient
from w2wpp.inversion import invert_photos as inverting
from w2wpp.inversion.gradient import InversionOptions
from w2wpp.inversion.invert_photos import invert_photos
from w2wpp.lora.layout import Layout
from w2wpp.lora.prompting import Prompting
from w2wpp.photos.images import read_image
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points

QUICK = InversionOptions(steps=2, group=1)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float32")


@pytest.fixture
def space(dataset: Path) -> PcaSpace:
    return PcaSpace.fit(WeightDataset.load(dataset), m=4)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", {"Ada": 1, "Grace": 2, "Ida": 1})


def test_paths_folders_pictures_and_arrays_are_the_same_photos(base: BaseModel, space: PcaSpace, faces: Path) -> None:
    one, two = faces / "Ada" / "0.png", faces / "Grace"
    of_paths = invert_photos(space, [one, two], base=base, options=QUICK, align=False)
    assert of_paths.ids == ["0", "Grace"] and [len(photos) for photos in of_paths.photos] == [1, 2]
    pictures = [PILImage.open(one), [read_image(two / f"{i}.png") for i in range(2)]]
    of_pixels = invert_photos(space, pictures, base=base, options=QUICK, align=False, ids=["0", "Grace"])
    assert torch.equal(of_paths.z, of_pixels.z) and of_paths.z.shape == (2, 4) and of_paths.z.abs().max() > 0.01
    alone = invert_photos(space, one, base=base, options=QUICK, align=False)
    torch.testing.assert_close(alone.z[0], of_paths.z[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(of_paths.weights, space.decode(of_paths.z))
    assert invert_photos(space, read_image(one), base=base, options=QUICK, align=False).ids == ["photo-0"]


def test_bad_photos_options_and_ids_are_refused(base: BaseModel, space: PcaSpace, faces: Path) -> None:
    photo = faces / "Ada" / "0.png"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"photos": []}, "no photo"),
        ({"photos": [photo, faces / "Ida" / "0.png"]}, "same name, 0"),
        ({"photos": photo, "ids": ["a", "b"]}, "2 ids"),
        ({"photos": photo, "method": "cem"}, "those of gradient"),
        ({"photos": photo, "method": "encoder", "options": None}, "takes an encoder"),
        ({"photos": photo, "method": "guess"}, "no method"),
        ({"photos": np.zeros((16, 16), np.uint8)}, r"uint8 \[16, 16\]"),
        ({"photos": photo, "mask": np.zeros((16, 16, 3), np.uint8)}, "black all over"),
    ]
    for given, message in cases:
        with pytest.raises(W2WError, match=message):
            invert_photos(space, **{"base": base, "options": QUICK, "align": False, **given})


def test_what_is_saved_and_exported_is_the_model(base: BaseModel, space: PcaSpace, faces: Path, tmp_path: Path) -> None:
    found = invert_photos(space, [faces / "Ada", faces / "Grace"], base=base, options=QUICK, align=False)
    sheet = found.save(tmp_path / "out", pictures=2, steps=2)
    assert read_image(sheet).shape == (2 * 16 + 2, 3 * 16 + 4, 3)
    z, ids = load_points(tmp_path / "out" / "points.safetensors", space)
    assert ids == ["Ada", "Grace"] and torch.equal(z, found.z)
    saved = WeightDataset.load(tmp_path / "out" / "weights")
    assert saved.ids == ids and torch.equal(saved.rows(), found.weights)
    assert torch.equal(read_peft(tmp_path / "out" / "adapters" / "Grace")[1], found.weights[1])
    found.save(tmp_path / "out", pictures=2, steps=2)  # again: the same
    assert len(WeightDataset.load(tmp_path / "out" / "weights")) == 2
    found.export(tmp_path / "kohya", "kohya")
    assert sorted(path.name for path in (tmp_path / "kohya").glob("[!.]*")) == ["Ada.safetensors", "Grace.safetensors", "README.md"]
    assert torch.equal(read_peft(found.export(tmp_path / "peft").parent / "Ada")[1], found.weights[0])


def test_an_inversion_that_was_cut_short_resumes(
    base: BaseModel, space: PcaSpace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = [faces / name for name in ("Ada", "Grace", "Ida")], tmp_path / "out"
    whole = invert_photos(space, photos, base=base, options=QUICK, align=False)
    invert, calls = inverting.invert, []

    def cut(*args: Any, **options: Any) -> Any:
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return invert(*args, **options)

    monkeypatch.setattr(inverting, "invert", cut)
    with pytest.raises(KeyboardInterrupt):
        invert_photos(space, photos, base=base, options=QUICK, align=False, folder=out)
    resumed = invert_photos(space, photos, base=base, options=replace(QUICK, group=8), align=False, folder=out)
    assert calls == [["Ada"], ["Grace"], ["Ida"], ["Ida"]]
    torch.testing.assert_close(resumed.z, whole.z, atol=1e-4, rtol=0)
    assert resumed.history.path.shape == (3, 3, 4) and resumed.history.unet_evals == 2


@pytest.mark.parametrize("variational", [False, True])
def test_a_single_photo_resumes_at_its_step(
    base: BaseModel, space: PcaSpace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variational: bool
) -> None:
    options = InversionOptions(steps=4, variational=variational)
    given: dict[str, Any] = {"base": base, "options": options, "align": False}
    whole = invert_photos(space, faces / "Ada", **given)
    monkeypatch.setattr(gradient, "KEEP_EVERY", 0.0)
    loss, calls = gradient.NoisePairs.loss, []

    def cut(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(gradient.NoisePairs, "loss", cut)
    with pytest.raises(KeyboardInterrupt):
        invert_photos(space, faces / "Ada", folder=tmp_path / "out", **given)
    resumed = invert_photos(space, faces / "Ada", folder=tmp_path / "out", **given)
    assert len(calls) == 5  # two steps, the one that was cut, and the two that were left
    torch.testing.assert_close(resumed.history.path, whole.history.path)
    torch.testing.assert_close(resumed.history.losses, whole.history.losses)
    assert [file.name for file in (tmp_path / "out" / "inversion").iterdir()] == ["000000.safetensors"]


def test_a_folder_of_something_else_is_refused_and_stays_as_it_was(
    base: BaseModel, space: PcaSpace, faces: Path, tmp_path: Path, layout: Layout
) -> None:
    out, photo = tmp_path / "out", faces / "Ada"
    invert_photos(space, photo, base=base, options=QUICK, align=False, folder=out).save(out, pictures=1, steps=1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = PcaSpace.fit(torch.randn(8, layout.d), layout=layout, base_id=base.id, m=4)
    another = {"base": base, "align": False, "folder": out}
    for where, what, options, message in (
        (space, photo, replace(QUICK, lr=0.5), "lr 0.2; this run has lr 0.5|lr 0.2; this run has 0.5"),
        (other, photo, QUICK, "another space"),
        (space, faces / "Ida", QUICK, "a model of Ada"),
    ):
        with pytest.raises(W2WError, match=message):
            invert_photos(where, what, options=options, **another)
    with pytest.raises(W2WError, match="another photo of Ada"):
        invert_photos(space, faces / "Ida", options=QUICK, ids=["Ada"], **another)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_prompt_is_the_spaces_unless_told(base: BaseModel, space: PcaSpace, faces: Path) -> None:
    space.prompting = Prompting(prompt="photo of Ada Lovelace")
    kept = invert_photos(space, faces / "Ada", base=base, options=QUICK, align=False)
    told = invert_photos(space, faces / "Ada", base=base, options=QUICK, align=False, prompt="photo of Ada Lovelace")
    other = invert_photos(space, faces / "Ada", base=base, options=QUICK, align=False, prompt="photo of sks person")
    assert kept.prompt == "photo of Ada Lovelace" and torch.equal(kept.z, told.z) and not torch.equal(kept.z, other.z)
    drawn, asked = kept.pictures(1, steps=2), kept.pictures(1, "photo of Ada Lovelace", steps=2)
    assert (drawn[0][0] == asked[0][0]).all()


def test_the_command_resumes(w2w: Callable[..., Ended], pico: Path, space: PcaSpace, faces: Path, tmp_path: Path) -> None:
    space.save(tmp_path / "space.safetensors")
    words = ["invert", tmp_path / "space.safetensors", faces / "Ada", "--no-align", "--steps", 2, "--pictures", 1, "--solver-steps", 1]
    words += ["--base", pico, "--device", "cpu", "--out", tmp_path / "me", "--runs", tmp_path / "runs", "--json"]
    first = w2w(*words).json()
    points = load_points(tmp_path / "me" / "points.safetensors", space)[0]
    (tmp_path / "me" / "inverted.png").unlink()
    again = w2w(*words).json()
    assert again["points"] == first["points"] == ["Ada"] and Path(again["sheet"]).exists()
    assert torch.equal(load_points(tmp_path / "me" / "points.safetensors", space)[0], points)
    assert "Choose another --out" in w2w(*words, "--lr", 0.5).err
