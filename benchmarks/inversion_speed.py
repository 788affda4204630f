"""Seconds from one photo to a model: ours against the published recipe's loop, in turn, in one go.

    python benchmarks/inversion_speed.py --rounds 3
    python benchmarks/inversion_speed.py --base FOLDER/base-512 --device cuda    # FOLDER is that of sd15.py

The published loop takes 400 steps of one fresh noise pair each; ours takes 40 evaluations of the UNet, and by likeness also passes
through the decoder and the face network (the extra `encoder`). All move a point of one PCA
with --m components over --rows random adapters of the base: how long a step takes does not depend on their numbers. The
photo is skimage's astronaut. Writes benchmarks/results/inversion_speed.json.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import skimage
import torch

from machine import machine
from w2wpp.base.model import BaseModel
from w2wpp.common.files import write_json
from w2wpp.common.runs import command_line, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.gradient import REFINED, InversionOptions
from w2wpp.inversion.invert_photos import invert_photos
from w2wpp.inversion.photo import ready_photo
from w2wpp.inversion.published import RAW
from w2wpp.inversion.resembling import LikenessOptions
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import fingerprint

LIKENESS = "ours, by likeness after an encoder"
WAYS: dict[str, Any] = {"published": RAW, "ours": InversionOptions(), "ours, as after an encoder": REFINED, LIKENESS: LikenessOptions()}
DESCRIBED = 128  # numbers of a description
RESULTS = Path(__file__).parent / "results" / "inversion_speed.json"


def random_space(base: BaseModel, rows: int, m: int) -> PcaSpace:
    """A PCA of random adapters of the base's default layout."""
    layout = Layout.of(base.pipeline.unet)
    with TemporaryDirectory() as folder:
        data = WeightDataset.create(Path(folder) / "weights", layout, base.id)
        data.append(0.01 * torch.randn(rows, layout.d, generator=torch.Generator().manual_seed(0)), [f"row-{i}" for i in range(rows)])
        return PcaSpace.fit(data, m=m)


def untrained_encoder(space: PcaSpace) -> PhotoEncoder:
    """An encoder for a space that answers with the mean adapter."""
    encoder = PhotoEncoder(DESCRIBED, space.m, 8)
    encoder.space = fingerprint(space)
    return encoder


def seconds_of(space: PcaSpace, photo: Any, base: BaseModel, how: Any) -> tuple[float, float]:
    """Seconds of one inversion, and its UNet evaluations."""
    encoder = untrained_encoder(space) if isinstance(how, LikenessOptions) else None
    begun = time.perf_counter()
    found = invert_photos(space, [photo], base=base, options=how, align=False, encoder=encoder)
    found.z.tolist()  # a GPU is waited for
    return time.perf_counter() - begun, found.history.unet_evals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-faces")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--m", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    base = BaseModel.load(given.base, given.device)
    space = random_space(base, given.rows, given.m)
    photo = ready_photo(Path(skimage.__file__).parent / "data" / "astronaut.png", base)
    for how in (REFINED, LikenessOptions()):  # warm up
        seconds_of(space, photo, base, how)
    rounds = [{name: seconds_of(space, photo, base, how) for name, how in WAYS.items()} for _ in range(given.rounds)]
    rows = {
        name: {
            "seconds": median(told[name][0] for told in rounds),
            "unet_evals": rounds[0][name][1],
            "published_over": [told["published"][0] / told[name][0] for told in rounds],
        }
        for name in WAYS
    }
    about = {"command": command_line(), "machine": machine(given.device), "versions": versions(), "m": given.m}
    write_json(given.out, about | {"pixels": base.image_size, "d": space.layout.d, "rows": rows})
    print(rows)


if __name__ == "__main__":
    main()
