"""The published space: `mean.pt`, `std.pt` [d], `V.pt` [d, components] and `proj_1000pc.pt` [n, 1000] as a PcaSpace.

An adapter of raw coefficients p is (p V^T) std + mean, with std as it is: some of its entries are negative. The space keeps
|std|, and their sign in the columns of its components, so that nothing that is decoded changes.
"""

from pathlib import Path

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.dataset.shards import rows_within
from w2wpp.exchange.formats.published_places import MEAN, PROJECTIONS, SPACE, STD, Places, V
from w2wpp.exchange.formats.torch_files import TableFile, load_plain
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace


def read_space(
    places: Places, table: TableFile | None, base_id: str, layout: Layout, order: Tensor, m: int | None, memory: float = 2.0
) -> tuple[PcaSpace, Tensor | None]:
    """The space of the first m components, as many as there are projections unless given, and the points of the projections.

    table: the adapters [n, d] that the space was fitted to, in the files' order of columns: from them follow the deviations of
    components that the projections lack; there are then no points. memory: GiB that its rows may take at a time.
    Raises W2WError if a file is missing, was altered or does not fit, or these deviations cannot be known.
    """
    folder = places.space
    assert folder is not None
    missing = [name for name in SPACE if not (folder / name).exists()]
    if missing:
        raise W2WError(f"{folder} has V.pt and lacks {', '.join(missing)}. Download the rest, or take V.pt away.")
    mean, std, projected = (read_tensor(folder / name).float() for name in (MEAN, STD, PROJECTIONS))
    mean, std, v = mean.flatten(), std.flatten(), TableFile.open(folder / V, either_order=True)
    rows, width = (v.d, v.n) if v.transposed else (v.n, v.d)
    known = projected.shape[1] if projected.dim() == 2 else 0
    if not (len(mean) == len(std) == rows == layout.d and 0 < known <= width and len(projected) > 1):
        shapes = [list(tensor.shape) for tensor in (mean, std)]
        expected = f"[{layout.d}] twice, [{layout.d}, k >= m], [n, m]"
        raise W2WError(f"{folder}: {', '.join(SPACE)} have shapes {shapes}, [{rows}, {width}], {list(projected.shape)}; {expected}.")
    m = known if m is None else m
    if not 1 <= m <= width:
        raise W2WError(f"m = {m} is not possible: {folder / V} holds {width} components. Choose 1 to {width}.")
    space = PcaSpace(layout, base_id, m)
    mean, std = mean[order], std[order]
    space.components = read_components(v, order, m).mul_(std.sign())
    space.scale = torch.where(std == 0, torch.ones(()), std.abs())
    kept = projected[:, :m]
    spread, centre = torch.std_mean(kept, 0)
    if m > known:
        if table is None:
            raise W2WError(
                f"{folder} has the deviations of {known} components only; those of {m} follow from all_weights.pt. "
                f"Put it beside, as it was published, or choose --m {known} or less."
            )
        more = _moments(table, order, mean, space.scale, space.components[known:], memory)
        spread, centre = torch.cat([spread, more[0]]), torch.cat([centre, more[1]])
    if not (spread > 0).all():
        raise W2WError(f"{folder}: a column of {PROJECTIONS} never varies. Download it again, or choose a lower --m.")
    space.spread, space.centre = spread, centre
    space.mean = mean + (centre @ space.components) * space.scale
    space.explained_variance_ratio = spread.square() / int((std != 0).sum())
    return space.frozen(), space.from_raw(kept) if m <= known else None


def read_components(v: TableFile, order: Tensor, m: int) -> Tensor:
    """The first m components [m, d] of V [d, components], in the layout's order of columns: cut first, and read by blocks."""
    d = v.d if v.transposed else v.n
    out = torch.empty(m, d)
    step = max(1, 2**25 // v.d)
    if v.transposed:
        for at in track(range(0, m, step), "read V.pt", "blocks"):
            out[at : at + step] = v.rows(at, min(at + step, m))[:, order]
    else:
        place = torch.empty_like(order)
        place[order] = torch.arange(d)  # where a row of V goes
        for at in track(range(0, d, step), "read V.pt", "blocks"):
            block = v.rows(at, min(at + step, d))[:, :m]
            out[:, place[at : at + len(block)]] = block.T.float()
    if not all(torch.isfinite(row).all() for row in out):
        raise W2WError(f"{v.path} does not hold finite numbers only. Download it again.")
    return out


def _moments(table: TableFile, order: Tensor, mean: Tensor, scale: Tensor, components: Tensor, memory: float) -> tuple[Tensor, Tensor]:
    """Deviation and mean [k] of each row's coefficients of components [k, d], in one pass over the table."""
    sums = torch.zeros(2, len(components), dtype=torch.float64)
    step = min(1024, rows_within(memory, table.d))
    for at in track(range(0, table.n, step), "deviations of further components", "groups of adapters"):
        block = table.rows(at, min(at + step, table.n))[:, order].float()
        found = (((block - mean) / scale) @ components.T).double()
        sums += torch.stack([found.sum(0), found.square().sum(0)])
    centre = sums[0] / table.n
    variance = (sums[1] - table.n * centre.square()).clamp_min(0) / max(1, table.n - 1)
    return variance.sqrt().float(), centre.float()


def read_tensor(path: Path) -> Tensor:
    """The one tensor in a .pt file. Raises W2WError if it holds anything else, or numbers that are not finite."""
    found = load_plain(path)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not all(torch.isfinite(part).all() for part in found.split(4096)):
        raise W2WError(f"{path} does not hold one tensor of finite numbers. Download it again.")
    return found.detach()
