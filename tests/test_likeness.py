"""Likeness teaches what adapters draw to look like photos, by dlib's network in torch, which says what dlib says."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import close, write_faces
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion import descent, likeness, person_photos, resembling
from w2wpp.inversion import encoder as encoder_module
from w2wpp.inversion.bound import Bound, EncoderOptions
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.gradient import REFINED, InversionOptions
from w2wpp.inversion.invert_photos import invert_photos, recipe_from
from w2wpp.inversion.person_photos import PersonPhotos
from w2wpp.inversion.resembling import LikenessOptions
from w2wpp.inversion.teaching import fit_encoder, fit_with_decoder
from w2wpp.inversion.tone import Tones, tones_of
from w2wpp.inversion.watching import InversionStep
from w2wpp.lora.layout import Layout
from w2wpp.photos import descriptors
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.descriptors import CHIP_PADDING, CHIP_SIDE, FACE_BOX, SIDE, describe_faces, face_models
from w2wpp.photos.face_network import FaceNetwork
from w2wpp.photos.images import Image, to_tensor
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import fingerprint


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that equal means equal on every processor."""
    monkeypatch.setenv("W2WPP_PRECISION", "float32")


def test_the_network_in_torch_describes_as_dlib_does() -> None:
    dlib = pytest.importorskip("dlib")
    faces = BaseModel.load("tiny-faces", "cpu").generate("photo of a person", range(6))
    models = face_models()
    landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    theirs = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    large = [np.ascontiguousarray(np.kron(face, np.ones((2, 2, 1), np.uint8))) for face in faces]
    assert large[0].shape == (SIDE, SIDE, 3)
    chips = [dlib.get_face_chip(face, landmarks(face, dlib.rectangle(*FACE_BOX)), CHIP_SIDE, CHIP_PADDING) for face in large]
    expected = torch.tensor(np.array([theirs.compute_face_descriptor(chip) for chip in chips]), dtype=torch.float32)
    found = FaceNetwork.load(models / "dlib_face_recognition_resnet_model_v1.dat")(
        torch.tensor(np.array(chips)).permute(0, 3, 1, 2).float()
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # Without looking for landmarks, descriptions are near: far nearer than those of two faces.
    whole, near = torch.from_numpy(describe_faces(faces)), likeness.describe_pixels(to_tensor(faces))
    apart = (whole[:, None] - whole).norm(dim=2).sum() / 30
    assert (near - whole).norm(dim=1).mean() < 0.5 * apart


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "network.dat"
    file.write_bytes(bytes(1000))
    with pytest.raises(W2WError, match="another network than dlib's"):
        FaceNetwork.load(file)


def test_likeness_teaches_an_encoder(
    base: BaseModel, bent_weights: Tensor, layout: Layout, described_photos: PersonPhotos, describer: Callable[[Tensor], Tensor]
) -> None:
    space = PcaSpace.fit(bent_weights, layout=layout, base_id=base.id, m=6)
    contexts = base.encode_text(["photo of sks person", "photo of sks person smiling", ""]).float()
    # People's photos are what adapters of the space draw, so there are points that draw what looks like them.
    draw = torch.Generator().manual_seed(1)
    weights, noise = space.decode(4 * torch.randn(60, 6, generator=draw)), torch.randn(60 * 8, *base.latent_shape, generator=draw)
    both = (contexts[0].expand(480, -1, -1), contexts[2].expand(480, -1, -1))
    with torch.no_grad():
        pictures = base.draw(noise, both, layout, weights, likeness.GUIDANCE, likeness.SOLVER_STEPS)
    names = [f"person-{i}" for i in range(60)]
    described, tones = (dict(zip(names, found.unflatten(0, (60, 8)), strict=True)) for found in (describer(pictures), tones_of(pictures)))
    people = PersonPhotos(base, {}, described, contexts, tones=Tones.among(tones))
    assert people.teacher == "likeness" and len(people.people) == 60
    options = EncoderOptions(hidden=8, steps=40, batch=16, draws=4, lr=1e-2, measured=2)
    encoder, history = fit_encoder(space, people, options)
    losses = [found["taught"] for found in history["held_out"]]
    assert history["kept_step"] > 0 and min(losses) < losses[0] and encoder.teacher == "likeness"


def test_unlikeness_is_of_what_is_drawn(
    base: BaseModel,
    pico: Path,
    bent_weights: Tensor,
    layout: Layout,
    describer: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contexts = [base.encode_text([caption])[0].float() for caption in ("photo of sks person", "")]
    weights = bent_weights[:2].clone().requires_grad_(True)

    def drawn(count: int) -> Tensor:
        return torch.randn(count, *base.latent_shape, generator=torch.Generator().manual_seed(3))

    both = [context.expand(4, -1, -1) for context in contexts]
    with torch.no_grad():
        made = describer(base.draw(drawn(4), (both[0], both[1]), layout, weights, likeness.GUIDANCE, likeness.SOLVER_STEPS))
    wanted, centre = [made[:2], made[2:]], made.mean(0) + 0.1
    found, tones = likeness.faces_drawn(base, layout, weights, contexts, drawn(4))
    lost = likeness.unlikeness(found, wanted, centre)
    cosines = [F.cosine_similarity(made[2 * i : 2 * i + 2] - centre, wanted[i].mean(0) - centre, dim=1).mean() for i in range(2)]
    assert close(lost.detach(), 1 - torch.stack(cosines))
    (lost.sum() + tones.sum()).backward()
    assert weights.grad is not None and weights.grad.abs().amax(1).min() > 0
    # The same in groups, whose parts are computed again and not kept.
    again, lean = weights.detach().clone().requires_grad_(True), BaseModel.load(pico, "cpu", low_memory=True)
    monkeypatch.setattr(likeness, "pictures_at_a_time", lambda base, n: 3)
    found, tones_again = likeness.faces_drawn(lean, layout, again, contexts, drawn(4))
    grouped = likeness.unlikeness(found, wanted, centre)
    (grouped.sum() + tones_again.sum()).backward()
    torch.testing.assert_close(tones_again, tones)
    torch.testing.assert_close(grouped, lost)
    torch.testing.assert_close(again.grad, weights.grad)


def test_tones_are_light_and_detail() -> None:
    draw = torch.Generator().manual_seed(2)
    pictures = torch.rand(8, 3, 32, 32, generator=draw) - 0.5
    blurred = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2.0, mode="bilinear")
    sharp, soft, dark = tones_of(pictures), tones_of(blurred), tones_of(pictures - 0.2)
    assert sharp.shape == (8, 7)
    torch.testing.assert_close(dark[:, :3], sharp[:, :3] - 0.1)  # of 1, where pixels go from -1 to 1
    torch.testing.assert_close(dark[:, 3:], sharp[:, 3:], atol=1e-4, rtol=0)
    assert (soft[:, 3] < sharp[:, 3] - 0.5).all() and (soft[:, 6] > sharp[:, 6] - 0.3).all()  # fine detail is gone, the rest is there
    assert torch.isfinite(tones_of(torch.zeros(2, 3, 9, 7))).all()


def test_pictures_are_off_in_tone_one_by_one_and_together() -> None:
    draw = torch.Generator().manual_seed(2)
    photos = {person: torch.randn(200, 7, generator=draw) for person in ("a", "b")}
    tones = Tones.among(photos)
    as_photos = torch.cat([photos["a"], photos["b"]])
    few = [tones.off(as_photos[[i, 200 + i]], ["a", "b"])[1] for i in range(200)]
    assert abs(sum(few) / 200) < 0.05 and tones.off(as_photos[:1], ["a"])[1] == 0  # of few pictures no more is asked
    own, common = tones.off(as_photos, ["a", "b"])
    assert own.shape == (2,) and common < 1e-4
    torch.testing.assert_close(own, torch.ones(2), atol=0.1, rtol=0)  # photos differ from their mean by one deviation
    darker = as_photos.clone().requires_grad_(True)
    own, common = tones.off(darker - 0.5, ["a", "b"])
    common.backward()
    assert 0.1 < common < 0.5 and darker.grad is not None and (darker.grad < 0).all()  # lighter is better, for each
    another, _ = tones.off(as_photos + torch.cat([torch.zeros(200, 7), torch.ones(200, 7)]), ["a", "b"])
    assert another[1] > 1.5 > another[0]


def test_small_photos_would_teach_blur(
    base: BaseModel, tmp_path: Path, describer: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    people = {"Ada_Lovelace": 2, "Alan_Turing": 1}
    faces = AlignedFaces.load(write_faces(tmp_path / "faces", people))
    with pytest.raises(W2WError, match=f"{faces.size}x{faces.size}, and pictures are 999x999"):
        Tones.of(faces, list(people), 999)
    small = AlignedFaces.load(write_faces(tmp_path / "small", people, size=base.image_size // 2))
    monkeypatch.setattr(person_photos, "described_faces", lambda *_: pytest.fail("photos were described before their size was looked at"))
    with pytest.raises(W2WError, match="they would learn to be blurred"):
        PersonPhotos.of(base, small, "", "photo of sks person", "likeness")
    assert Tones.of(faces, list(people), faces.size // 2).people.keys() == people.keys()


def test_loudness_needs_adapters(base: BaseModel, tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", {"Ada_Lovelace": 1})
    with pytest.raises(W2WError, match="loudness 2 was given to teacher likeness"):
        PersonPhotos.of(base, faces, "", "photo of sks person", "likeness", None, 2.0)


def test_photos_of_people_for_likeness(
    base: BaseModel, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, describer: Callable[[Tensor], Tensor]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(person_photos, "face_network", asked.append)
    monkeypatch.setattr(person_photos, "described_faces", lambda faces, people: {person: torch.randn(1, 6) for person in people})
    data = WeightDataset.load(dataset)
    names = [f"person-{i}" for i in range(10)]
    faces = write_faces(tmp_path / "faces", {"Ada_Lovelace": 1, "Ida_Rhodes": 1, **dict.fromkeys(names, 1)})
    found = PersonPhotos.of(base, faces, "train", "photo of sks person", "likeness", data)
    assert found.teacher == "likeness" and found.people == sorted([*names, "Ada_Lovelace", "Ida_Rhodes"]) and not found.latents
    assert found.taught and sorted(found.taught.rows) == names and len(found.contexts) == 4 and asked == ["cpu"]
    # It begins at these adapters, also with two people who have none; nobody's adapters are no hindrance, and few are none.
    space = AnchoredVaeSpace.fit(data, AnchoredOptions(m=4, components=8, hidden=8, steps=1), device="cpu")
    options = EncoderOptions(hidden=8, steps=2, batch=4, draws=1, measured=1)
    _, encoder, history = fit_with_decoder(space, found, options)
    assert encoder.teacher == "likeness" and len(history["step"]) == 2
    others = write_faces(tmp_path / "others", {**{f"Ada_{i}": 1 for i in range(10)}, "person-0": 1})
    few = PersonPhotos.of(base, others, "train", "photo of sks person", "likeness", data)
    with pytest.warns(UserWarning, match="adapters of 1 of these people: too few to begin at"):
        fit_with_decoder(space, few, options)
    nobody = write_faces(tmp_path / "nobody", {f"Ada_{i}": 1 for i in range(10)})
    assert PersonPhotos.of(base, nobody, "train", "photo of sks person", "likeness", data).taught is None


def test_small_gradients_survive_float16() -> None:
    """Those of single pixels of a large picture are below the smallest numbers of a float16 base."""
    point = torch.ones(4, requires_grad=True)

    class Pixels:
        options = EncoderOptions()

        def __call__(self, people: Sequence[str], draw: torch.Generator, jitter: float) -> dict[str, Tensor]:
            return {"loss": 2.0**-26 * point.half().float().sum()}

    for scaled in (True, False):
        point.grad, scaler = None, torch.amp.GradScaler("cpu", descent.SCALE, enabled=scaled)
        descent._with_gradients(cast(Bound, Pixels()), ["ada"], torch.Generator(), scaler)
        assert point.grad is not None
        assert (point.grad / scaler.get_scale()).tolist() == ([2.0**-26] * 4 if scaled else [0.0] * 4)


def test_a_step_that_memory_does_not_hold_is_told() -> None:
    class Large:
        options = EncoderOptions(batch=2)

        def __call__(self, people: Sequence[str], draw: torch.Generator, jitter: float = 0.0) -> dict[str, Tensor]:
            raise torch.OutOfMemoryError

        measure = Bound.measure

    with pytest.raises(W2WError, match="memory ran out with 2 people and 2 draws each at a time"):
        descent.loss_of_held_out(cast(Bound, Large()), ["ada", "ida"])
    with pytest.raises(W2WError, match="memory ran out with 2 people and 2 draws each at a time"):
        descent._with_gradients(cast(Bound, Large()), ["ada", "ida"], torch.Generator(), torch.amp.GradScaler("cpu", enabled=False))


@pytest.fixture
def taught(base: BaseModel, bent_weights: Tensor, layout: Layout) -> tuple[PcaSpace, PhotoEncoder]:
    """A space, and an encoder for it as if likeness had taught it."""
    space = PcaSpace.fit(bent_weights, layout=layout, base_id=base.id, m=6)
    encoder = PhotoEncoder(6, 6, 4)
    encoder.space, encoder.teacher, encoder.linear.bias.data = fingerprint(space), "likeness", 0.5 * torch.ones(6)
    return space, encoder


def test_a_photo_is_inverted_by_likeness(
    base: BaseModel, taught: tuple[PcaSpace, PhotoEncoder], describer: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def described(people: Sequence[Sequence[Image]]) -> Tensor:
        return torch.cat([describer(to_tensor(photos)).mean(0, keepdim=True) for photos in people])

    monkeypatch.setattr(resembling, "mean_descriptions", described)
    monkeypatch.setattr(encoder_module, "mean_descriptions", described)
    (space, encoder), told = taught, list[InversionStep]()
    photos = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8) for i in range(3)]
    common: dict[str, Any] = {"base": base, "encoder": encoder, "align": False}
    found = invert_photos(space, photos, ids=["a", "b", "c"], watch=told.append, **common)
    assert found.history.unet_evals == 40 and found.history.path.shape == (6, 3, 6) and len(told) == 5
    start = found.history.path[0]
    assert torch.equal(start, encoder.linear.bias.detach().expand(3, 6))
    # Each step moves at most by the rate; a person's point is the same alone and in a batch.
    assert 0.05 < (found.z - start).abs().max() <= 0.5 + 1e-6
    alone = invert_photos(space, [photos[1]], ids=["b"], method="likeness", **common)
    torch.testing.assert_close(alone.z, found.z[1:2], atol=1e-3, rtol=1e-3)
    kept = invert_photos(space, photos[:1], options=LikenessOptions(steps=0), **common)
    assert torch.equal(kept.z, start[:1]) and kept.history.unet_evals == 0
    # About what the start draws, the likeness of what another point draws comes nearer.
    near, far = (
        base.generate("photo of sks person", range(16), layout=space.layout, weights=space.decode(z)) for z in (start[:1], 4 * start[:1])
    )
    encoder.mean = described([near])[0]
    longer = invert_photos(space, [far], options=LikenessOptions(steps=30, batch=16, lr=1.0, prior_weight=0.0), **common)
    assert longer.history.losses[-10:].mean() < longer.history.losses[:5].mean() - 0.1
    with pytest.raises(W2WError, match="inversion diverged"):
        invert_photos(space, photos[:1], options=LikenessOptions(steps=1, lr=1e30), **common)
    with pytest.raises(W2WError, match="starts at an encoder"):
        invert_photos(space, photos[:1], base=base, align=False, method="likeness")
    with pytest.raises(W2WError, match="no mask"):
        invert_photos(space, photos[:1], method="likeness", mask=np.full((16, 16, 3), 255, np.uint8), **common)


def test_which_recipe_goes_on_from_an_encoder(taught: tuple[PcaSpace, PhotoEncoder]) -> None:
    _, encoder = taught
    assert isinstance(recipe_from(encoder), LikenessOptions)
    assert recipe_from(encoder, masked=True) == REFINED and recipe_from(None) == InversionOptions()
    encoder.teacher = "both"
    assert recipe_from(encoder) == REFINED
    for wrong in ({"lr": float("nan")}, {"steps": -1}, {"batch": 0}, {"batch": 10**11}, {"prior_weight": -1.0}):
        with pytest.raises(W2WError, match="a photo cannot be inverted with"):
            LikenessOptions(**wrong)


def test_models_that_cannot_be_read_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dlib")
    monkeypatch.setattr(descriptors, "face_models", lambda: tmp_path)
    descriptors._networks.cache_clear()
    (tmp_path / "shape_predictor_5_face_landmarks.dat").write_bytes(b"cut short")
    with pytest.raises(W2WError, match="faces cannot be described"):
        describe_faces([np.zeros((64, 64, 3), np.uint8)])
    monkeypatch.setitem(sys.modules, "dlib", None)  # installed, and cannot be imported
    with pytest.raises(W2WError, match="faces cannot be described"):
        describe_faces([np.zeros((64, 64, 3), np.uint8)])
