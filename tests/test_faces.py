import json
import zipfile

import numpy as np
import pytest
from skimage import data

from w2wpp.common.errors import W2WError
from w2wpp.photos.alignment import INDEX, AlignedFaces, align_photos
from w2wpp.photos.faces import EYES_XY, MOUTH_XY, align, default_recogniser, embed_pictures
from w2wpp.photos.images import write_image


@pytest.fixture(scope="module")
def astronaut():
    return data.astronaut()  # a public-domain photo of Eileen Collins


def test_alignment_brings_eyes_and_mouth_to_their_places(astronaut):
    recogniser = default_recogniser()
    for turned in (astronaut, np.ascontiguousarray(astronaut[:, ::-1])):
        aligned = align(turned, recogniser.detect(turned)[0], 128)
        points = recogniser.detect(aligned)[0].points / 128
        np.testing.assert_allclose(points[:2].mean(0), EYES_XY, atol=0.04)
        np.testing.assert_allclose(points[3:].mean(0), MOUTH_XY, atol=0.04)


def test_embeddings_are_unit_vectors_that_know_the_person(astronaut):
    recogniser = default_recogniser()
    small = align(astronaut, recogniser.detect(astronaut)[0], 64)
    whole, crop, nothing = embed_pictures([astronaut, small, np.full((64, 64, 3), 127, np.uint8)])
    assert nothing is None
    assert np.linalg.norm(crop) == pytest.approx(1, abs=1e-5)
    assert float(whole @ crop) > 0.6


def test_bad_photos_are_listed_and_never_fatal_and_a_second_run_goes_on(astronaut, tmp_path):
    photos = tmp_path / "photos.zip"
    good = tmp_path / "good.png"
    write_image(good, astronaut[:256, 100:356])
    with zipfile.ZipFile(photos, "w") as archive:
        archive.write(good, "Eileen_Collins/1.png")
        archive.writestr("Eileen_Collins/cut.png", good.read_bytes()[:900])
        write_image(tmp_path / "grey.png", np.full((90, 90, 3), 127, np.uint8))
        archive.write(tmp_path / "grey.png", "Nobody/1.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("file,split\nEileen_Collins/1.png,train\n")
    found = align_photos(photos, tmp_path / "out", labels=labels)
    assert found["counts"] == {"ok": 1, "unreadable": 1, "none": 1}
    assert found["none"] == ["Nobody/1.png"]
    faces = AlignedFaces.load(tmp_path / "out")
    assert faces.people == {"Eileen_Collins": ["1"]} and faces.split("Eileen_Collins") == "train" and faces.size == 64
    assert faces.photos("Eileen_Collins")[0].shape == (64, 64, 3)

    index = tmp_path / "out" / INDEX
    index.write_text(index.read_text() + '{"person": "Nob')  # as a kill leaves it
    assert align_photos(photos, tmp_path / "out", labels=labels) == found
    assert len([json.loads(line) for line in index.read_text().splitlines()]) == 3
    with pytest.raises(W2WError, match="64 pixels, not 32"):
        align_photos(photos, tmp_path / "out", size=32)


def test_sources_without_people_are_refused(tmp_path):
    with pytest.raises(W2WError, match="neither a folder nor a zip"):
        align_photos(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(W2WError, match="holds no person"):
        align_photos(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(W2WError, match="w2w faces align"):
        AlignedFaces.load(tmp_path / "empty")


def test_labels_may_come_after_alignment_and_names_must_differ(astronaut, tmp_path):
    write_image(tmp_path / "photos" / "Eileen_Collins" / "1.png", astronaut[:256, 100:356])
    align_photos(tmp_path / "photos", tmp_path / "out")
    (tmp_path / "labels.csv").write_text("file,split\nEileen_Collins/1.png,val\n")
    align_photos(tmp_path / "photos", tmp_path / "out", labels=tmp_path / "labels.csv")
    assert AlignedFaces.load(tmp_path / "out").of_split("val") == ["Eileen_Collins"]
    write_image(tmp_path / "photos" / "Eileen_Collins" / "1.jpg", astronaut[:256, 100:356])
    with pytest.raises(W2WError, match="2 photos of Eileen_Collins named 1"):
        align_photos(tmp_path / "photos", tmp_path / "out")


def test_people_are_chosen_by_split_number_and_photos(tmp_path):
    people = {"Ada": ["1"], "Bea": ["1", "2"], "Cyd": ["1", "2"], "Dot": ["1", "2", "3"]}
    labels = {(person, "1"): {"split": "val" if person == "Bea" else "train"} for person in people}
    faces = AlignedFaces(tmp_path, 64, people, labels)
    assert faces.choose() == [*people] and faces.choose(n=2) == ["Ada", "Bea"]
    assert faces.choose("train", 2) == ["Ada", "Cyd"]
    assert faces.choose("train", 2, most_photos=True) == ["Dot", "Cyd"]
    assert faces.choose(n=3, most_photos=True) == ["Dot", "Bea", "Cyd"]
    with pytest.raises(W2WError, match="nobody in split 'test'"):
        faces.choose("test")


def test_a_zip_cannot_write_elsewhere(astronaut, tmp_path):
    write_image(tmp_path / "a.png", astronaut[:256, 100:356])
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "in/../b.png")
        archive.write(tmp_path / "a.png", "__MACOSX/._b.png")
    with pytest.raises(W2WError, match="holds no person"):
        align_photos(tmp_path / "photos.zip", tmp_path / "out")
