"""The published files of Weights2Weights, as its code writes and uses them: table, names, attributes and space."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.published import import_published
from w2wpp.exchange.formats.seed_vae import read_vae
from w2wpp.exchange.formats.torch_files import TableFile
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import load_points

N, M = 12, 4


@pytest.fixture
def published(layout: Layout, tmp_path: Path) -> dict[str, Tensor]:
    """A folder `files` with all that was published, made as the original made it, its columns in an order of their own."""
    folder = tmp_path / "files"
    folder.mkdir()
    matrices = list(reversed(layout.matrices))
    weights = torch.randn(N, layout.d, generator=torch.Generator().manual_seed(0))
    columns = torch.cat([torch.arange(layout.d)[layout.slices[m.name]] for m in matrices])
    table = weights[:, columns]
    mean, std = table.mean(0), table.std(0)
    v = torch.linalg.svd((table - mean) / std, full_matrices=False)[2].T
    projected = ((table - mean) / std) @ v[:, :M] + 0.3  # not centred, which sampling has to follow
    dimensions = {
        f"base_model.model.{m.name.replace('.weight', '.identity1.weight')}": [(m.shape[0] * m.shape[1],), m.shape] for m in matrices
    }
    files = {"all_weights": table, "weight_dimensions": dimensions, "mean": mean, "std": std, "V": v, "proj_1000pc": projected}
    for name, value in files.items():
        torch.save(value, folder / f"{name}.pt")
    return {"weights": weights, "columns": columns, "mean": mean, "std": std, "v": v, "projected": projected}


def test_the_space_decodes_as_the_original_does(
    w2w: Callable[..., Ended], pico: Path, published: dict[str, Tensor], tmp_path: Path
) -> None:
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    found = w2w("import", tmp_path / "files", "--out", tmp_path / "out", *common).json()
    assert found["imported"] == N and found["m"] == M
    assert torch.equal(WeightDataset.load(tmp_path / "out").rows(), published["weights"])
    space = Space.load(tmp_path / "out" / "space.safetensors")
    z, ids = load_points(tmp_path / "out" / "points.safetensors", space)
    assert ids == WeightDataset.load(tmp_path / "out").ids
    # `unproject` of the original, in its order of columns.
    theirs = (published["projected"] @ published["v"][:, :M].T) * published["std"] + published["mean"]
    torch.testing.assert_close(space.decode(z)[:, published["columns"]], theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(space.encode(space.decode(z)), z, atol=1e-3, rtol=0)
    # `sample_weights` draws each coefficient with its own mean and deviation: the prior of our space.
    torch.testing.assert_close(z.mean(0), torch.zeros(M), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(M))


def test_identities_and_attributes_come_from_the_data_frame(base: BaseModel, published: dict[str, Tensor], tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    names = [f"celeb{i}/train" for i in range(N)]
    with pandas.option_context("future.infer_string", False):  # as pandas was when the file was published
        frame = pandas.DataFrame({"Male": [1.0, -1.0] * (N // 2), "Age": range(N), "Name": ["Zoë"] * N}, index=names)
    torch.save(frame, tmp_path / "files" / "identity_df.pt")
    import_published(Denoiser.of(base), tmp_path / "files", tmp_path / "out", memory=0.001)
    data = WeightDataset.load(tmp_path / "out")
    assert data.ids == names and data.labels[3] == {"Male": -1.0, "Age": 3, "Name": "Zoë"}
    torch.save(frame.iloc[:-1], tmp_path / "files" / "identity_df.pt")
    with pytest.raises(W2WError, match=f"names {N - 1} identities for {N} rows"):
        import_published(Denoiser.of(base), tmp_path / "files", tmp_path / "again")
    assert not (tmp_path / "again").exists()


class Evil:
    """A pickle that would leave a file behind if it were run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["identity_df", "all_weights", "weight_dimensions", "mean", "std", "V", "proj_1000pc"])
def test_no_file_runs_code(base: BaseModel, published: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    torch.save(Evil(mark), tmp_path / "files" / f"{name}.pt")
    with pytest.raises(W2WError, match=f"{name}.pt"):
        import_published(Denoiser.of(base), tmp_path / "files", tmp_path / "out")
    assert not mark.exists()


def test_a_space_that_does_not_fit_is_one_line(base: BaseModel, published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(published["v"][:-1], tmp_path / "files" / "V.pt")
    with pytest.raises(W2WError, match="have shapes"):
        import_published(Denoiser.of(base), tmp_path / "files", tmp_path / "out")
    (tmp_path / "files" / "std.pt").unlink()
    with pytest.raises(W2WError, match=r"lacks std\.pt"):
        import_published(Denoiser.of(base), tmp_path / "files", tmp_path / "out")


@pytest.mark.parametrize("cut", ["another name", "too few"])
def test_a_table_without_its_numbers_is_one_line(tmp_path: Path, cut: str) -> None:
    torch.save(torch.zeros(4, 5), tmp_path / "whole.pt")
    with ZipFile(tmp_path / "whole.pt") as whole, ZipFile(tmp_path / "cut.pt", "w") as made:
        for name in whole.namelist():
            data = whole.read(name)
            if name.endswith("/data/0"):
                name, data = (f"{name}0", data) if cut == "another name" else (name, data[:40])
            made.writestr(name, data)
    with pytest.raises(W2WError, match=r"cut\.pt"):
        TableFile.open(tmp_path / "cut.pt")


def test_a_vae_whose_layers_do_not_fit_is_one_line(layout: Layout, tmp_path: Path) -> None:
    state = {f"{name}.{part}": torch.zeros(3, 3) for name in ("fc_mu", "fc_var", "decoder_input") for part in ("weight", "bias")}
    torch.save({**state, "final_layer.0.weight": torch.zeros(3, 3), "final_layer.0.bias": torch.zeros(3)}, tmp_path / "vae.pt")
    with pytest.raises(W2WError, match=r"vae\.pt"):
        read_vae(tmp_path / "vae.pt", layout, "")
