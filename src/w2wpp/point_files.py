"""Files of points: `points.safetensors` holds z and ids, and says which space the points lie in."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.errors import W2WError
from w2wpp.files import read_checked, write_checked
from w2wpp.layout import Layout
from w2wpp.seeds import generator
from w2wpp.spaces.base import Space

FORMAT = "w2wpp-points-1"
PROBES = 8


def save_points(path: str | Path, z: Tensor, ids: Sequence[str], space: Space) -> None:
    """Write points z [n, m] of a space, with an id each."""
    about = {"format": FORMAT, "kind": space.kind, "base_id": space.base_id, "layout": space.layout.to_json(), "ids": json.dumps(list(ids))}
    write_checked(path, {"z": z.float(), "fingerprint": fingerprint(space)}, about)


def load_points(path: str | Path, space: Space) -> tuple[Tensor, list[str]]:
    """Read points of a space: z [n, m] float32 and their ids.

    Raises W2WError if the file is cut short or was altered, is none of points, or its points lie in another space.
    """
    tensors, about = read_checked(path, "points")
    if about.get("format") != FORMAT or not {"z", "fingerprint"} <= tensors.keys():
        raise W2WError(f"{path} holds no points ({FORMAT} was expected). Give a file that `w2w sample` or `w2w invert` made.")
    z, there = tensors["z"], tensors["fingerprint"]
    space.check(Layout.from_json(about["layout"]), about["base_id"], f"points {path}")
    if (about["kind"], z.shape[1]) != (space.kind, space.m) or not alike(there, fingerprint(space)):
        found, given = f"{about['kind']}, m = {z.shape[1]}", f"{space.kind}, m = {space.m}"
        raise W2WError(
            f"points {path} were made in another space ({found}) than the one given ({given}). Give the space they were made in."
        )
    return z, json.loads(about["ids"])


@torch.no_grad()
def fingerprint(space: Space) -> Tensor:
    """Where fixed points decode to, as [PROBES] float32: the same for a space on any device, another after a refit.

    Each number is the distance of a drawn point's weights from the mean point's, along a drawn direction.
    """
    draw = generator(0, "fingerprint")
    probes = torch.cat([torch.zeros(1, space.m), torch.randn(PROBES, space.m, generator=draw)])
    along = torch.randn(space.layout.d, generator=draw)
    weights = space.decode(probes.to(space.device)).cpu().float()
    return (weights[1:] - weights[0]) @ along


def alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-3 * float(a.abs().max()))
