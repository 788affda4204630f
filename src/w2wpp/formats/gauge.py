"""Bring a LoRA to one rank and one gauge, so that equal products have equal vectors.

A product B A is the same for B G and G^-1 A, whatever the invertible G. Here G is fixed by the singular value
decomposition: B = U sqrt(S), A = sqrt(S) V', singular values falling, and of each row of A the number that is largest
in size is positive. (With two equal singular values a rotation stays free; trained adapters have none.)
"""

import torch
from torch import Tensor

from w2wpp.formats.lora_file import Lora
from w2wpp.layout import Layout


def to_weights(lora: Lora, layout: Layout) -> tuple[Tensor, float]:
    """One adapter as a row of `layout`: weights [d] float32, and the relative error of its products.

    The products of all layers are refactored to the layout's rank and scale; the error is the Frobenius norm of what a
    smaller rank leaves out over that of everything, 0 where the rank suffices. A layer that the adapter does not adapt
    gets zeros, which is what it means.
    """
    matrices: dict[str, Tensor] = {}
    left_out, everything = 0.0, 0.0
    shapes = {m.name: m.shape for m in layout.matrices}
    for layer in layout.modules:
        names = (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        if layer not in lora.down:
            matrices |= {name: torch.zeros(shapes[name]) for name in names}
            continue
        a, b, values = canonical(lora.down[layer], lora.up[layer] * lora.scale[layer], layout.rank)
        left_out += float(values[layout.rank :].square().sum())
        everything += float(values.square().sum())
        matrices[names[0]], matrices[names[1]] = a / layout.scale**0.5, b / layout.scale**0.5
    return layout.flatten(matrices), (left_out / everything) ** 0.5 if everything else 0.0


def canonical(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors [r, in] and [out, r] of any rank -> the canonical ones of rank `rank`, and all singular values.

    Through two thin QR decompositions: the product [out, in] is never formed. Computed in float64.
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    a = root[:, None] * (q_down @ v[:kept].T).T
    b = (q_up @ u[:, :kept]) * root
    largest = a.gather(1, a.abs().argmax(1, keepdim=True)).squeeze(1)
    signs = torch.where(largest < 0, -1.0, 1.0).double()
    a, b = a * signs[:, None], b * signs
    if kept < rank:
        a = torch.cat([a, a.new_zeros(rank - kept, a.shape[1])])
        b = torch.cat([b, b.new_zeros(b.shape[0], rank - kept)], dim=1)
    return a.float(), b.float(), values
