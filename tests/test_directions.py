"""Directions that a space offers by itself: principal ones, and those of attributes that its points tell."""

from pathlib import Path

import torch

from w2wpp.base.model import BaseModel
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.edits import encode_rows, telling_directions
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.points import principal_directions


def test_principal_directions_are_the_planted_ones_with_their_deviations() -> None:
    draw = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw))[0]
    deviations = torch.tensor([5.0, 3.0, 1.0, 0.1, 0.1, 0.1])
    z = torch.randn(4000, 6, generator=draw) * deviations @ turn.T + 7
    found = principal_directions(z, 3)
    assert found.shape == (3, 6)
    torch.testing.assert_close(found.norm(dim=1), deviations[:3], rtol=0.05, atol=0)
    assert (torch.nn.functional.cosine_similarity(found, turn.T[:3]).abs() > 0.99).all()
    torch.testing.assert_close(principal_directions(z.flip(0), 3), found, atol=1e-3, rtol=1e-3)  # and not their opposites
    assert principal_directions(z[:3], 3).shape == (0, 6)


def test_attributes_that_points_tell_have_a_direction_and_others_none(base: BaseModel, layout: Layout, tmp_path: Path) -> None:
    n, draw = 60, torch.Generator().manual_seed(0)
    told, guessed = torch.arange(n) % 2, torch.randint(2, (n,), generator=draw)
    weights = 0.02 * torch.randn(n, layout.d, generator=draw)
    weights[:, :200] += 0.1 * told[:, None]
    labels = [
        {"person": f"p{i}", "told": int(told[i]), "opposite": 1 - int(told[i]), "guessed": int(guessed[i]), "always": 1} for i in range(n)
    ]
    data = WeightDataset.create(tmp_path / "dataset", layout, base.id)
    data.append(weights, [f"p{i}" for i in range(n)], labels)
    space = PcaSpace.fit(data, m=4)
    z = encode_rows(space, data)
    found = telling_directions(space, data, z)
    assert list(found) == ["told"] and found["told"].correlation > 0.9
    assert telling_directions(space, data, z, most=0) == {}
