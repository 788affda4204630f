"""A point or a space as one of the published single files: w2wmodel.pt and vae.pt."""

from pathlib import Path
from typing import Any

from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.published import write_model
from w2wpp.exchange.formats.seed_vae import write_vae
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import load_points


def export_file(out: Path, space: str | Path, points: str | Path | None = None, identity: str = "") -> dict[str, Any]:
    """Write one point, the file's first unless named, as a w2wmodel.pt; without points the space, a vanilla VAE, as a vae.pt.

    Raises W2WError for a point that is not there, or a space that the file cannot hold.
    """
    opened = Space.from_pretrained(space)
    if points is None:
        write_vae(out, opened)
        return {"of": space, "m": opened.m}
    z, names = load_points(points, opened)
    name = identity or names[0]
    if name not in names:
        raise W2WError(f"there is no {name!r} among {len(names)} ids such as {', '.join(names[:3])}.")
    write_model(out, z[[names.index(name)]], opened)
    return {"of": name, "m": opened.m}
