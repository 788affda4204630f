"""The ID Score counts what it cannot see; table 1 is fair, resumable, and says what it was made with."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from conftest import write_faces
from quick_table import SHORT, SMALL, ColourRecogniser
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation import table1_methods as ways
from w2wpp.evaluation import table1_parts as parts
from w2wpp.evaluation.id_score import id_score
from w2wpp.evaluation.table1 import summary, table1
from w2wpp.evaluation.table1_methods import Subject
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Image
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import fingerprint

TRAINED = AdapterOptions(prompt="photo of sks person", prior_weight=0, steps=2)
ROW = {"method", "space", "m", "id_input", "id_input_se", "id_other", "id_other_se", "n", "missed", "unet_evals", "seconds"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published recipe with 3 of its 400 steps."""
    monkeypatch.setattr(ways, "PUBLISHED", SHORT)


RECOGNISER = ColourRecogniser()


def plain(*colour: int) -> Image:
    return np.full((16, 16, 3), colour, np.uint8)


RED, GREEN, BLACK = plain(255, 0, 0), plain(0, 255, 0), plain(0, 0, 0)
YELLOW = plain(255, 255, 0)


def test_id_score_is_the_mean_over_pairs_with_faces() -> None:
    score = id_score([RED, YELLOW, BLACK], [RED, GREEN, BLACK, BLACK], RECOGNISER)
    assert score.mean == pytest.approx((1 + 0 + 2 * math.sqrt(0.5)) / 4)
    assert (score.n_pairs, score.missed, score.photos_missed) == (4, 1, 2)
    blind = id_score([BLACK], [RED], RECOGNISER)
    assert math.isnan(blind.mean) and (blind.n_pairs, blind.missed) == (0, 1)


def test_the_real_recogniser_knows_a_face_from_none() -> None:
    from skimage.data import astronaut

    face = astronaut()[:256, 96:352]
    score = id_score([face, face[:, ::-1], plain(127, 127, 127)], [face])
    assert (score.n_pairs, score.missed) == (2, 1)
    assert 0.9 < score.mean < 1.0001


def test_means_and_errors_are_over_people() -> None:
    values = [0.2, 0.6, None, 0.4]
    people = [{"person": str(i), "id_input": v, "id_other": v, "id_other_people": None, "missed": i} for i, v in enumerate(values)]
    row = summary(people)
    assert (row["n"], row["missed"]) == (3, 6)
    assert row["id_other"] == pytest.approx(0.4)
    assert row["id_other_se"] == pytest.approx(stdev([0.2, 0.6, 0.4]) / math.sqrt(3))
    assert row["id_other_people"] is None and row["id_other_people_se"] is None


@pytest.mark.parametrize("n", [2, 3, 7])
def test_no_method_sees_a_held_out_photo(n: int) -> None:
    photos = [plain(i, 0, 1) for i in range(n)]
    subject = Subject.of("Ada", photos)
    assert [*subject.seen, *subject.held_out] == photos
    assert len(subject.seen) == (n + 1) // 2 and len(subject.held_out) >= 1
    assert subject.input_photo is photos[0]


def test_a_persons_pictures_do_not_depend_on_company(base: BaseModel, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float32")
    weights = initial_weights(layout) + 0.1 * torch.randn(3, layout.d, generator=torch.Generator().manual_seed(0))
    keys = ["Ada", "Grace", "Ida"]
    rows = generate_for(base, layout, weights, keys, "photo of sks person", 2, steps=3, group=2)
    alone = generate_for(base, layout, weights[1:2], ["Grace"], "photo of sks person", 2, steps=3)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert np.abs(np.int16(rows[1]) - np.int16(alone[0])).max() <= 1
    # Another adapter, the same starting noise; another person, another noise.
    plain_rows = generate_for(base, layout, None, keys, "photo of sks person", 2, steps=3)
    assert not np.array_equal(plain_rows[0], plain_rows[1]) and not np.array_equal(plain_rows[0], rows[0])


@pytest.fixture
def faces(tmp_path: Path) -> AlignedFaces:
    """Two people to score, one with a single photo, one whose input photo shows no face."""
    folder = write_faces(tmp_path / "faces", {"Ada": 4, "Grace": 3, "Ida": 1, "Unseen": 2}, split="test")
    from w2wpp.photos.images import write_image

    write_image(folder / "Unseen" / "0.png", BLACK)
    return AlignedFaces.load(folder)


@pytest.fixture
def adapters(tmp_path: Path, base: BaseModel, layout: Layout) -> WeightDataset:
    """A dataset that says how it was trained, of ten random adapters."""
    data = WeightDataset.create(tmp_path / "adapters", layout, base.id, {"adapters": asdict(TRAINED)})
    weights = initial_weights(layout) + 0.02 * torch.randn(10, layout.d, generator=torch.Generator().manual_seed(0))
    data.append(weights, [f"p{i}" for i in range(10)], [{"person": f"p{i}"} for i in range(10)])
    return WeightDataset.load(tmp_path / "adapters")


def test_table_has_every_method_once_and_its_schema(base: BaseModel, adapters: WeightDataset, faces: AlignedFaces) -> None:
    table = table1(base, adapters, faces, seed=3, options=SMALL, recogniser=RECOGNISER)
    assert {"split", "base", "command", "seed", "versions", "rows"} <= set(table)
    assert (table["split"], table["seed"], table["left_out"]) == ("test", 3, ["Unseen"])
    names = [(row["method"], row["space"], row["m"]) for row in table["rows"]]
    spaces = [(f"inversion, {way}", "pca", m) for m in (2, 3) for way in ("published", "prior")]
    spaces += [("inversion, published", "vae", m) for m in (2, 3)]
    dreambooth = [(f"DreamBooth, {n}", None, None) for n in ("one photo", "many photos", "many photos, 4 times the steps")]
    assert names == [("base", None, None), *dreambooth, *spaces, ("real photos", None, None)]
    for row in table["rows"]:
        assert set(row) >= ROW
        assert [person["person"] for person in row["people"]] == ["Ada", "Grace"]
        scored = [person["id_other"] for person in row["people"] if person["id_other"] is not None]
        assert row["n"] == len(scored)
        assert row["id_other"] == (pytest.approx(fmean(scored)) if scored else None)
    assert [row["unet_evals"] for row in table["rows"]] == [0, 2, 2, 8, 3, 2, 3, 2, 3, 3, None]
    assert [row["photos"] for row in table["rows"]] == [0, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert table["rows"][-1]["id_input"] is None and table["rows"][-1]["id_other"] > 0.9  # grey noise is one colour


def test_rows_may_be_left_out(base: BaseModel, adapters: WeightDataset, faces: AlignedFaces, tmp_path: Path) -> None:
    skip = ("DreamBooth, many photos", "inversion, published, vae", "inversion, prior, pca 2")
    few = replace(SMALL, skip=("DreamBooth", "inversion"))
    assert len(table1(base, adapters, faces, options=few, folder=tmp_path / "table", recogniser=RECOGNISER)["rows"]) == 2
    # More rows may follow in the same folder.
    rows = table1(base, adapters, faces, options=replace(SMALL, skip=skip), folder=tmp_path / "table", recogniser=RECOGNISER)["rows"]
    assert [(row["method"], row["m"]) for row in rows] == [
        ("base", None), ("DreamBooth, one photo", None), ("inversion, published", 2), ("inversion, published", 3),
        ("inversion, prior", 3), ("real photos", None),
    ]  # fmt: skip
    with pytest.raises(W2WError, match=r"no row begins with 'dreambooth'.*DreamBooth, one photo; .*inversion, published, vae 3"):
        table1(base, adapters, faces, options=replace(SMALL, skip=("dreambooth",)), recogniser=RECOGNISER)


def test_trained_spaces_are_rows_too(base: BaseModel, adapters: WeightDataset, faces: AlignedFaces, tmp_path: Path) -> None:
    space = AnchoredVaeSpace.fit(adapters, AnchoredOptions(m=3, components=4, hidden=4, steps=1), device="cpu")
    space.save(tmp_path / "space.safetensors")
    trained = replace(SMALL, ms=(3,), trained=((str(tmp_path / "space.safetensors"), ""),))
    rows = table1(base, adapters, faces, options=trained, recogniser=RECOGNISER)["rows"]
    assert [(row["method"], row["space"]) for row in rows[-3:-1]] == [("inversion, published", "vae"), ("inversion, prior", "anchored-vae")]
    assert set(rows[-2]["against"]) == {"inversion, published", "inversion, prior"}
    with pytest.raises(W2WError, match="m = 4, at which searches are asked for"):
        table1(base, adapters, faces, options=replace(trained, searches_m=4), recogniser=RECOGNISER)
    with pytest.raises(W2WError, match="cannot read space"):
        table1(base, adapters, faces, options=replace(trained, trained=((str(tmp_path / "none"), ""),)), recogniser=RECOGNISER)


def test_scores_are_against_the_photos_they_are_named_for(
    base: BaseModel, adapters: WeightDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2wpp.photos.images import write_image

    folder = write_faces(tmp_path / "faces", {"Ada": 2, "Grace": 2}, split="test")
    for name, photos in {"Ada": [RED, GREEN], "Grace": [YELLOW, RED]}.items():
        for i, photo in enumerate(photos):
            write_image(folder / name / f"{i}.png", photo)

    def red(*arguments: Any, **options: Any) -> list[list[Image]]:
        return [[RED, BLACK], [RED, RED]]

    monkeypatch.setattr(parts, "generate_for", red)
    row = table1(base, adapters, AlignedFaces.load(folder), options=SMALL, recogniser=RECOGNISER)["rows"][0]
    ada, grace = row["people"]
    half = math.sqrt(0.5)
    assert ada == {"person": "Ada", "id_input": 1, "id_other": 0, "id_other_people": pytest.approx((half + 1) / 2), "missed": 1}
    assert grace == {"person": "Grace", "id_input": pytest.approx(half), "id_other": 1, "id_other_people": 0.5, "missed": 0}
    assert (row["missed"], row["pictures"]) == (1, 4)


def test_finished_rows_are_not_made_again(
    base: BaseModel, adapters: WeightDataset, faces: AlignedFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    real = ways.inverted

    def interrupted(*arguments: Any) -> Any:
        if arguments[1].kind == "vae":
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ways, "inverted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table1(base, adapters, faces, options=SMALL, folder=folder, recogniser=RECOGNISER)
    assert {path.stem for path in (folder / "rows").iterdir()} >= {"base", "dreambooth-many-photos", "inversion-prior-pca-3"}
    assert (folder / "sheets" / "inversion-prior-pca-3.png").exists()

    def refuse(base: BaseModel, subjects: Sequence[Subject], *arguments: Any, **options: Any) -> Any:
        raise AssertionError("DreamBooth was trained again")

    monkeypatch.setattr(ways, "inverted", real)
    monkeypatch.setattr(ways, "dreambooth", refuse)
    resumed = table1(base, adapters, faces, options=SMALL, folder=folder, recogniser=RECOGNISER)
    monkeypatch.undo()
    monkeypatch.setattr(ways, "PUBLISHED", SHORT)
    whole = table1(base, adapters, faces, options=SMALL, recogniser=RECOGNISER)

    def scores(table: dict[str, Any]) -> list[Any]:
        return [row["people"] for row in table["rows"]]

    assert scores(resumed) == scores(whole)
    with pytest.raises(W2WError, match="other settings"):
        table1(base, adapters, faces, options=replace(SMALL, pictures=3), folder=folder, recogniser=RECOGNISER)


def test_another_trained_space_joins_a_finished_table(
    base: BaseModel, adapters: WeightDataset, faces: AlignedFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{name}.safetensors") for name in ("first", "second", "other")]
    for file, m, hidden in zip(files, (3, 2, 3), (4, 4, 5), strict=True):
        AnchoredVaeSpace.fit(adapters, AnchoredOptions(m=m, components=4, hidden=hidden, steps=1), device="cpu").save(file)
    folder, made = tmp_path / "run", []
    real = ways.inverted

    def noted(*arguments: Any) -> Any:
        made.append((arguments[1].kind, arguments[1].m))
        return real(*arguments)

    monkeypatch.setattr(ways, "inverted", noted)

    def table(*spaces: str) -> list[Any]:
        options = replace(SMALL, ms=(3,), skip=("DreamBooth",), trained=tuple((space, "") for space in spaces))
        return table1(base, adapters, faces, options=options, folder=folder, recogniser=RECOGNISER)["rows"]

    before = table(files[0])
    made.clear()
    after = table(files[0], files[1])
    assert made == [("anchored-vae", 2)] and [row["people"] for row in after[:-2]] == [row["people"] for row in before[:-1]]
    with pytest.raises(W2WError, match=r"inversion-prior-anchored-vae-3\.json is of another anchored-vae of m = 3"):
        table(files[2])
    assert table(files[0])[-2]["people"] == before[-2]["people"] and made == [("anchored-vae", 2)]


def test_a_dataset_that_knows_the_people_is_refused(
    base: BaseModel, layout: Layout, adapters: WeightDataset, faces: AlignedFaces, dataset: Path, tmp_path: Path
) -> None:
    space = PcaSpace.fit(adapters, m=3)
    space.save(tmp_path / "space.safetensors")
    encoder = PhotoEncoder(6, space.m, 8)
    encoder.space, encoder.people = fingerprint(space), frozenset(["Ada", "Bob"])
    encoder.save(tmp_path / "encoder.safetensors")
    trained = replace(SMALL, trained=((str(tmp_path / "space.safetensors"), str(tmp_path / "encoder.safetensors")),))
    with pytest.raises(W2WError, match=r"encoder\.safetensors learned from 1 people to be scored, such as Ada"):
        table1(base, adapters, faces, options=trained, recogniser=RECOGNISER)
    adapters.append(torch.zeros(1, layout.d), ["Ada"], [{"person": "Ada"}])
    with pytest.raises(W2WError, match="1 people to be scored, such as Ada"):
        table1(base, adapters, faces, options=SMALL, recogniser=RECOGNISER)
    started = WeightDataset.create(tmp_path / "started", layout, base.id, {**adapters.meta, "start": "encoder"})
    with pytest.raises(W2WError, match="trained from nothing"):
        table1(base, started, faces, options=SMALL, recogniser=RECOGNISER)
    with pytest.raises(W2WError, match="how its adapters were trained"):
        table1(base, WeightDataset.load(dataset), faces, options=SMALL, recogniser=RECOGNISER)
    with pytest.raises(W2WError, match="nobody in split 'val'"):
        table1(base, adapters, faces, "val", options=SMALL, recogniser=RECOGNISER)
