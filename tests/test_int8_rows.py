import torch

from w2wpp.dataset.quantised import quantised, restored
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.streaming import Table


def made(folder, layout, n=10):
    dataset = WeightDataset.create(folder, layout, "base")
    weights = 0.02 * torch.randn(n, layout.d, generator=torch.Generator().manual_seed(0))
    weights[0, layout.slices[layout.matrices[0].name]] = 0
    dataset.append(weights[:4], [f"row {i}" for i in range(4)], dtype=torch.int8)
    dataset.append(weights[4:], [f"row {i}" for i in range(4, n)], dtype=torch.int8)
    return WeightDataset.load(folder), weights


def test_no_number_is_off_by_more_than_half_a_scale(layout):
    weights = torch.randn(3, layout.d, generator=torch.Generator().manual_seed(1))
    widths = torch.tensor([m.shape[0] * m.shape[1] for m in layout.matrices])
    numbers, scales = quantised(weights, widths.tolist())
    half = torch.repeat_interleave(scales, widths, 1) / 2
    assert ((restored(numbers, scales, widths) - weights).abs() <= half * 1.001).all()
    again, same = quantised(restored(numbers, scales, widths), widths.tolist())
    assert torch.equal(again, numbers) and torch.allclose(same, scales)


def test_rows_of_int8_are_read_whole_by_columns_and_in_any_order(tmp_path, layout):
    dataset, weights = made(tmp_path / "small", layout)
    assert dataset.dtypes == {"int8"} and dataset.info()["bytes"] < weights.numel() * 1.5
    rows = dataset.rows()
    assert (rows - weights).abs().max() < 0.001
    assert not rows[0, layout.slices[layout.matrices[0].name]].any()
    assert torch.equal(dataset.rows([7, 2, 2]), rows[[7, 2, 2]])
    assert torch.equal(dataset.columns(5, 300, [9, 0, 1, 2]), rows[[9, 0, 1, 2], 5:300])
    assert torch.equal(dataset.columns(3, 8, dtype=torch.float16), rows[:, 3:8].half())
    assert torch.equal(Table.of(dataset).rows(2, 6), rows[2:6])


def test_damage_to_numbers_or_scales_names_the_row(tmp_path, layout):
    dataset, _ = made(tmp_path / "small", layout)
    dataset.verify()
    path = tmp_path / "small" / "shards" / "000001.safetensors"
    whole = path.read_bytes()
    for place in (-1, len(whole) - 6 * layout.d - 1):  # the last number of the last row; the last scale, where scales stand first
        broken = bytearray(whole)
        broken[place] ^= 64
        path.write_bytes(bytes(broken))
        assert dataset._damaged_rows(1) == ["row 9"]


def test_select_changes_the_precision(tmp_path, layout, w2w):
    _, weights = made(tmp_path / "small", layout)
    whole = WeightDataset.create(tmp_path / "whole", layout, "base")
    whole.append(weights, [f"row {i}" for i in range(len(weights))], [{"split": "train"} for _ in weights])
    ended = w2w("dataset", "select", tmp_path / "whole", "--where", "split=train", "--dtype", "int8", "--out", tmp_path / "copy")
    assert ended.code == 0, ended.err
    copy = WeightDataset.load(tmp_path / "copy")
    assert copy.dtypes == {"int8"} and (copy.rows() - weights).abs().max() < 0.001
