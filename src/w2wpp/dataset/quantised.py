"""Rows in 8 bits: whole numbers from -127 to 127, times a scale of each matrix of each row."""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 127  # the largest number; -128 is left out, so that the range is the same both ways


def quantised(weights: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Weights [n, d] of matrices of `widths` numbers -> int8 [n, d] and float32 scales [n, matrices]; `restored` is the inverse.

    The largest number of a matrix is kept to float32's precision, and no number is off by more than half a scale.
    """
    parts = weights.float().split(list(widths), 1)
    scales = torch.stack([part.abs().amax(1) for part in parts], 1) / MOST
    # A matrix of zeros, or of numbers too small for a scale in float32, is kept as zeros.
    whole = [torch.where(scale > 0, part / scale, 0.0) for part, scale in zip(parts, scales[..., None].unbind(1), strict=True)]
    return torch.cat(whole, 1).round_().clamp_(-MOST, MOST).to(torch.int8), scales


def restored(numbers: Tensor, scales: Tensor, widths: Tensor, first: int = 0) -> Tensor:
    """Columns of rows [k, width] int8, from column `first` on, with the rows' scales [k, matrices] -> float32 [k, width]."""
    matrix = torch.repeat_interleave(torch.arange(len(widths)), widths)[first : first + numbers.shape[1]]
    return numbers.float() * scales[:, matrix]
