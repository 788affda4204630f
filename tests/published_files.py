"""A folder in exactly the published layout of Weights2Weights, small, for a base of our own: what its code writes and reads.

python tests/published_files.py FOLDER [--base tiny-faces]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.exchange.denoiser import Denoiser
from w2wpp.lora.layout import Layout

ATTRIBUTES = ("Male", "Young", "Bald", "Smiling")  # four of the forty
N, DOGS, COMPONENTS, PROJECTED = 24, 5, 12, 6


def write_published_files(root: Path, layout: Layout, seed: int = 0, column_major: bool = False) -> dict[str, Tensor]:
    """Write the folder; returns its tensors. std.pt has negative entries and one that is 0; rows 2i and 2i + 1 are one person.

    column_major: V.pt as a transposed view, as a decomposition returns it.
    """
    files, people, dogs = root / "files", root / "weights_datasets" / "identities", root / "weights_datasets" / "dogs"
    for folder in (files, people, dogs):
        folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    male = torch.tensor([1.0, 1.0, -1.0, -1.0] * (N // 4))
    weights = 0.01 * torch.randn(N, layout.d, generator=draw) + 0.01 * male[:, None] * torch.randn(layout.d, generator=draw)
    weights[:, 5] = 0.02  # never varies
    mean, std = weights.mean(0), weights.std(0)
    std = std * torch.where(torch.rand(layout.d, generator=draw) < 0.3, -1.0, 1.0)
    std[5] = 0
    standard = (weights - mean) / torch.where(std == 0, torch.ones(()), std)
    v = torch.linalg.svd(standard, full_matrices=False)[2][:COMPONENTS].T
    projected = standard @ v[:, :PROJECTED]
    dimensions = {f"base_model.model.{m.name}": [torch.Size([m.shape[0] * m.shape[1]]), torch.Size(m.shape)] for m in layout.matrices}
    attributes = {"Male": male, **{name: torch.randn(N, generator=draw).sign() for name in ATTRIBUTES[1:]}}
    frame = identity_frame(attributes)
    written: dict[Path, Any] = {
        files / "V.pt": v.T.contiguous().T if column_major else v.contiguous(),
        files / "mean.pt": mean,
        files / "std.pt": std,
        files / "proj_1000pc.pt": projected,
        files / "pinverse_1000pc.pt": torch.linalg.pinv(projected),
        files / "identity_df.pt": frame,
        files / "weight_dimensions.pt": dimensions,
        root / "weights_datasets" / "weight_dimensions.pt": dimensions,
        people / "all_weights.pt": weights,
        people / "identity_df.pt": frame,
        dogs / "dog_weights.pt": weights[:DOGS],
        dogs / "dog_labels.pt": [f"breed {i}" for i in range(DOGS)],
        root / "w2wmodel.pt": projected[3:4].to(torch.bfloat16),
    }
    for path, value in written.items():
        torch.save(value, path)
    (files / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 27, "target_modules": ["to_q", "to_v"]}')
    return {"weights": weights, "mean": mean, "std": std, "v": v, "projected": projected, **attributes}


def identity_frame(attributes: dict[str, Tensor]) -> Any:
    """The data frame of attributes, as pandas was when the files were published."""
    import pandas

    with pandas.option_context("future.infer_string", False):
        names = [f"{i}.jpg" for i in range(N)]
        columns = {"file": names, "identity": [1000 + i // 2 for i in range(N)]}
        return pandas.DataFrame({**columns, **{k: v.int().numpy() for k, v in attributes.items()}}, index=names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="tiny-faces")
    given = parser.parse_args()
    write_published_files(given.folder, Layout.of(Denoiser.load(given.base).module))
