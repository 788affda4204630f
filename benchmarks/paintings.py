"""Out of distribution, the paper's own test (Dravid et al. 2024, section 5.4): paintings and drawings inverted in the embedded spaces.

    apt-get download freecol && dpkg -x freecol_*.deb freecol
    python benchmarks/paintings.py freecol/usr/share/games/freecol/default/resources/images/monarch --shown \
        --more freecol/usr/share/games/freecol/default/resources/images/foundingFathers

FreeCol, a game that Debian packages, has portraits of rulers and others of the 16th to 19th century: paintings, engravings,
drawings. Each is inverted with m = 128 in PCA-w2w, by the published recipe in both of its forms and by ours without encoder, and in
the embedded anchored VAE with its encoder. Pictures are scored against the portrait itself. A file without a face is listed; of
several files of one size, those named *.size6.* are taken. Writes docs/results/paintings.json, and with --shown a picture of the
first folder, whose portraits are in the public domain.
"""

import argparse
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from PIL import Image as PILImage

from machine import machine
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.id_score import id_score
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.gradient import InversionOptions
from w2wpp.inversion.invert_photos import invert_photos, recipe_from
from w2wpp.inversion.photo import ready_photo
from w2wpp.inversion.published import RAW, PublishedOptions
from w2wpp.photos.images import Image, grid, write_image
from w2wpp.photos.listing import pictures_in
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace

M = 128
LARGER = 2  # times, in the picture
RESULTS, SHEET = Path("docs/results/paintings.json"), Path("docs/pictures/paintings.png")
OUT_OF_DISTRIBUTION = PublishedOptions(steps=800, lr=1.0)


def portraits(folder: Path, base: BaseModel) -> tuple[dict[str, Image], list[str]]:
    """The aligned face of each picture of a folder, by name, and the names of those in which none was found."""
    files = [file for file in pictures_in(folder) if ".size6" in file.name] or pictures_in(folder)
    found: dict[str, Image] = {}
    missed = []
    for file in files:
        name = file.name.split(".")[0]
        try:
            found[name] = ready_photo(file, base)
        except W2WError as error:
            if "no face" not in str(error):
                raise
            missed.append(name)
    return found, missed


def invert_and_score(faces: dict[str, Image], base: BaseModel, pictures: int) -> tuple[list[dict[str, Any]], dict[str, list[Image]]]:
    """A row of figures for each way, and the first picture of each portrait by it."""
    pca = PcaSpace.fit(WeightDataset.load("tiny-faces"), m=M)
    ours = Space.load("tiny-faces").to(base.device)
    encoder = PhotoEncoder.from_pretrained("tiny-faces")
    ways: dict[str, tuple[Space, PhotoEncoder | None, Any]] = {
        "PCA, published": (pca, None, RAW),
        "PCA, published for what is out of distribution": (pca, None, OUT_OF_DISTRIBUTION),
        "PCA, prior": (pca, None, InversionOptions()),
        f"anchored VAE, m = {ours.m}, encoder and steps": (ours, encoder, recipe_from(encoder)),
    }
    rows, first = [], {}
    for name, (space, start, how) in ways.items():
        found = invert_photos(space, list(faces.values()), base=base, encoder=start, options=how, ids=list(faces), seed=0, align=False)
        drawn = found.pictures(pictures)
        scores = [id_score(some, [face]) for some, face in zip(drawn, faces.values(), strict=True)]
        seen = [score.mean for score in scores if score.n_pairs]
        rows.append(
            {
                "way": name,
                "id_input": fmean(seen) if seen else None,
                "se": stdev(seen) / len(seen) ** 0.5 if len(seen) > 1 else None,
                "n": len(seen),
                "no_face": sum(score.missed for score in scores),
                "pictures": pictures * len(faces),
                "photos_missed": sum(score.photos_missed for score in scores),
                "unet_evals": found.history.unet_evals,
            }
        )
        first[name] = [some[0] for some in drawn]
        print(rows[-1], flush=True)
    return rows, first


def enlarged(image: Image) -> Image:
    """A picture [h, w, 3] uint8, `LARGER` times as large."""
    size = (image.shape[1] * LARGER, image.shape[0] * LARGER)
    return np.asarray(PILImage.fromarray(image).resize(size, PILImage.Resampling.LANCZOS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paintings", type=Path)
    parser.add_argument("--more", type=Path, action="append", default=[], help="A further folder; it is scored, not shown.")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--shown", action="store_true", help=f"Write {SHEET}.")
    given = parser.parse_args()
    base = BaseModel.load("tiny-faces")
    shown, missed = portraits(given.paintings, base)
    faces = dict(shown)
    for folder in given.more:
        some, without = portraits(folder, base)
        faces, missed = faces | some, missed + without
    rows, first = invert_and_score(faces, base, given.pictures)
    if given.shown:
        order = ("PCA, published", f"anchored VAE, m = {M}, encoder and steps")
        sheet = [list(shown.values()), *([image for image, _ in zip(first[way], shown, strict=False)] for way in order)]
        write_image(SHEET, grid([[enlarged(image) for image in row] for row in sheet]))
    about = {"command": command_line(), "machine": machine(), "versions": versions(), "seed": 0, "m": M}
    write_json(RESULTS, about | {"portraits": list(faces), "without_a_face": missed, "rows": rows})


if __name__ == "__main__":
    main()
