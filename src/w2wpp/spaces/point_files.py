"""Files of points: `points.safetensors` holds z and ids, and says which space the points lie in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.common.seeds import generator
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space

FORMAT = "w2wpp-points-1"
PROBES = 8


def save_points(
    path: str | Path,
    z: Tensor,
    ids: Sequence[str],
    space: Space,
    beside: Mapping[str, Tensor] | None = None,
    known: Mapping[str, str] | None = None,
) -> None:
    """Write points z [n, m] of a space, with one id per point; beside, known: tensors and words that `load_points` passes over."""
    about = {"format": FORMAT, "kind": space.kind, "base_id": space.base_id, "layout": space.layout.to_json(), "ids": json.dumps(list(ids))}
    write_checked(path, {**(beside or {}), "z": z.float(), "fingerprint": fingerprint(space)}, {**(known or {}), **about})


def load_points(path: str | Path, space: Space) -> tuple[Tensor, list[str]]:
    """Read points of a space: z [n, m] float32 and their ids.

    Raises W2WError if the file is cut short or was altered, is none of points, or its points lie in another space.
    """
    tensors, about = read_checked(path, "points")
    if about.get("format") != FORMAT or not {"z", "fingerprint"} <= tensors.keys():
        raise W2WError(f"{path} holds no points ({FORMAT} was expected). Give a file that `w2w sample` or `w2w invert` made.")
    z, there = tensors["z"], tensors["fingerprint"]
    try:
        ids, kind, base_id, layout = json.loads(about["ids"]), about["kind"], about["base_id"], Layout.from_json(about["layout"])
    except (KeyError, TypeError, ValueError, W2WError) as error:
        raise W2WError(f"points {path} do not say what they are ({error!r}). Make them again with `w2w sample` or `w2w invert`.") from error
    named = isinstance(ids, list) and all(isinstance(name, str) for name in ids)
    if z.dim() != 2 or there.shape != (PROBES,) or not named or len(set(ids)) != len(z) or len(ids) != len(z):
        found = f"z {list(z.shape)}, fingerprint {list(there.shape)}, {len(ids) if named else 'no'} ids"
        raise W2WError(f"points {path} hold {found}; z [n, m], fingerprint [{PROBES}] and n different ids were expected. Make them again.")
    z, there = z.float(), there.float()
    space.check(layout, base_id, f"points {path}")
    if (kind, z.shape[1]) != (space.kind, space.m) or not alike(there, fingerprint(space)):
        found, given = f"{kind}, m = {z.shape[1]}", f"{space.kind}, m = {space.m}"
        raise W2WError(
            f"points {path} were made in another space ({found}) than the one given ({given}). Give the space they were made in."
        )
    return z, ids


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
    return a.shape == b.shape and a.numel() > 0 and torch.allclose(a, b, rtol=0, atol=1e-3 * float(a.abs().max()))
