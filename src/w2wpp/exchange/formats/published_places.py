"""Where the published files of Weights2Weights lie: which belong together, below, beside and above the folder that was named."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from w2wpp.common.errors import W2WError

Part = Literal["all", "space", "people", "dogs"]
TABLES = {"people": "all_weights.pt", "dogs": "dog_weights.pt"}
DIMENSIONS, IDENTITIES, DOGS = "weight_dimensions.pt", "identity_df.pt", "dog_labels.pt"
LABELS, LAYOUT = "labels.csv", "layout.json"  # beside the table where w2w wrote it
MEAN, STD, V, PROJECTIONS = "mean.pt", "std.pt", "V.pt", "proj_1000pc.pt"
SPACE = (MEAN, STD, V, PROJECTIONS)
PUBLISHED_BASE = "stablediffusionapi/realistic-vision-v51"  # what the published adapters were trained on
BELOW = (".", "files", "weights_datasets/identities", "identities", "weights_datasets/dogs", "dogs")
BESIDE = (".", "..", "../..", "files", "../files", "../../files", "weights_datasets", "../weights_datasets")


@dataclass(frozen=True)
class Places:
    """Published files that belong together; None for what is not there or was not asked for."""

    dimensions: Path
    table: Path | None  # to be imported
    labels: Path | None  # labels.csv, identity_df.pt or dog_labels.pt, of the rows of the table and of the projections
    space: Path | None  # the folder of V.pt and its companions
    layout: Path | None  # layout.json of `w2w export`
    all_weights: Path | None  # also where it is not to be imported: what the space was fitted to
    left: tuple[str, ...] = ()  # tables that are there and need an import of their own

    @property
    def ours(self) -> bool:
        """Whether `w2w export` wrote these files."""
        return self.layout is not None


def is_published(source: str | Path) -> bool:
    """Whether published files lie in a folder or where the published root has them below it."""
    return any((Path(source) / place / name).is_file() for place in BELOW for name in (V, *TABLES.values()))


def find_published(source: str | Path, part: Part = "all", *, table_elsewhere: bool = False) -> Places:
    """Find what belongs together, from the published root, `files`, `weights_datasets`, `identities` or `dogs`.

    part: all is the people's table and the space, or the dogs where nothing else is there; else that part alone.
    table_elsewhere: the table is read from somewhere else, and only its companions lie here.
    Raises W2WError if that part is not there, or nothing says what the columns are.
    """
    source = Path(source)
    tables = {who: _first(source, BELOW, name) for who, name in TABLES.items()}
    v = _first(source, BELOW, V)
    wanted = {
        "all": tables["people"] or (None if v else tables["dogs"]),
        "space": None,
        "people": tables["people"],
        "dogs": tables["dogs"],
    }
    table, space = wanted[part], v.parent if v and part in ("all", "space") else None
    if not (table or space or table_elsewhere):
        names = {"space": V, **TABLES}.get(part, V)
        raise W2WError(f"{source} has no {names}, neither in it nor below it. Name the folder of the published files, or another --part.")
    within = source / "weights_datasets" / ("dogs" if part == "dogs" else "identities")
    home = table.parent if table else space or (within if within.is_dir() else source)
    dimensions = _first(home, BESIDE, DIMENSIONS) or _first(source, BESIDE, DIMENSIONS)
    if dimensions is None:
        raise W2WError(f"there is no {DIMENSIONS} beside or above {home}, which says what the columns are. Download it as well.")
    dogs = table.name == TABLES["dogs"] if table else part == "dogs"
    labels = _first(home, (".",), LABELS) or (_first(home, (".",), DOGS) if dogs else _first(home, BESIDE, IDENTITIES))
    near = ("../weights_datasets/identities", "weights_datasets/identities", ".")
    left = [str(path.relative_to(source)) for path in tables.values() if path and path != table and part == "all" and table]
    return Places(
        dimensions,
        table,
        labels,
        space,
        _first(home, (".",), LAYOUT),
        tables["people"] or _first(source, near, TABLES["people"]),
        tuple(left),
    )


def _first(folder: Path, places: tuple[str, ...], name: str) -> Path | None:
    return next((path for place in places if (path := folder / place / name).is_file()), None)
