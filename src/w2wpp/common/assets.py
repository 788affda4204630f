"""Where the embedded pipeline, weights and space lie: in the package `w2wpp-tiny-faces`."""

from importlib.resources import files
from pathlib import Path

from w2wpp.common.errors import W2WError
from w2wpp.common.storage import Address, Anywhere, place

TINY_FACES = "tiny-faces"  # what stands for the embedded files in place of a path
PACKAGE = "w2wpp-tiny-faces"


def tiny_faces(part: str) -> Path:
    """The path of a part of tiny-faces: `pipeline`, `weights`, `space/space.safetensors`, `training.json`.

    Raises W2WError if the data package is not installed.
    """
    try:
        folder = files("w2wpp_tiny_faces")
    except ModuleNotFoundError as error:
        how = f"pip install {PACKAGE} (in a checkout: pip install packages/{PACKAGE})"
        raise W2WError(f"{TINY_FACES} is in a package that is not installed. Install it with: {how}.") from error
    return Path(str(folder)) / part


def located(source: Anywhere, part: str) -> Path | Address:
    """`source` as a path or an address: for the name `tiny-faces` the embedded `part`, for a folder the file in it of the part's name.

    A part without a suffix is a folder, and so is its source. Raises W2WError if tiny-faces is not installed.
    """
    if str(source) == TINY_FACES:
        return tiny_faces(part)
    path, name = place(source), Path(part).name
    return path / name if Path(part).suffix and path.is_dir() else path
