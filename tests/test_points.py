"""Points on a line, and neighbours."""

import torch

from w2wpp.spaces.points import interpolate, nearest


def test_a_line_starts_and_ends_exactly_and_has_even_steps() -> None:
    draw = torch.Generator().manual_seed(0)
    z0, z1 = torch.randn(2, 5, generator=draw)
    line = interpolate(z0, z1, 7)
    assert line.shape == (7, 5)
    assert torch.equal(line[0], z0) and torch.equal(line[-1], z1)
    steps = line.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_the_nearest_come_nearest_first_and_each_point_is_its_own() -> None:
    zs = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    distances, positions = nearest(zs[:1], zs, k=3)
    assert positions.tolist() == [[0, 2, 1]]
    assert distances.tolist() == [[0.0, 1.0, 5.0]]
    far = 1e4 + zs  # where the matrix-product formula for distances loses every digit
    assert nearest(far, far)[1].flatten().tolist() == [0, 1, 2]
