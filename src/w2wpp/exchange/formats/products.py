"""From the tensors that a file holds for one layer to the two thin factors of what it adds to the layer's weight.

LoRA (Hu et al. 2021), its convolutions (LoCon, with `lora_mid` or without), LoHa (Hyeon-Woo et al. 2022) and LoKr (Yeh et
al. 2023) are exact: the Hadamard product of two products of ranks r and s is one of rank r s, and so is the Kronecker
product. DoRA (Liu et al. 2024) rescales the base's own weight, so that its difference has full rank.
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator

Factors = tuple[Tensor, Tensor]  # down [r, in] and up [out, r], float32
ROLES = {
    "LoHa": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "LoKr": set(),
    "LoRA": {"down", "up"},
}


def kind_of(roles: set[str]) -> str:
    """LoRA, LoHa or LoKr, by the roles of a layer's tensors; DoRA for a LoRA with magnitudes. "" for none of them."""
    return _kind(frozenset(roles))


@lru_cache
def _kind(roles: frozenset[str]) -> str:
    if any(role.startswith("hada") for role in roles):
        return "LoHa"
    if any(role.startswith("lokr") for role in roles):
        return "LoKr"
    return ("DoRA" if "magnitude" in roles else "LoRA") if roles & {"down", "up"} else ""


def missing(roles: set[str]) -> set[str]:
    """The roles that a layer's tensors lack to make a product."""
    kind = kind_of(roles)
    if kind == "LoKr":
        return {f"lokr_w{i}" for i in (1, 2) if f"lokr_w{i}" not in roles and not {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= roles}
    return ROLES["LoRA" if kind == "DoRA" else kind] - roles if kind else set()


def rank_of(roles: Mapping[str, tuple[int, ...]]) -> int:
    """The rank that alpha is divided by, by the shapes of a layer's tensors; 0 for a LoKr whose two parts are whole."""
    kind = kind_of(set(roles))
    if kind == "LoHa":
        return roles["hada_w1_b"][0]
    if kind == "LoKr":
        return next((roles[name][0] for name in ("lokr_w2_b", "lokr_w1_b") if name in roles), 0)
    return roles["down"][0]


def inner_rank(roles: Mapping[str, tuple[int, ...]], sides: tuple[int, int]) -> int:
    """The rank that the product of a layer can have, by the shapes of its tensors. sides: inputs and outputs of the layer."""
    kind, most = kind_of(set(roles)), min(sides)
    if kind == "LoHa":
        return min(most, roles["hada_w1_b"][0] * roles["hada_w2_b"][0])
    if kind == "LoKr":
        parts = (roles[f"lokr_w{i}_b"][0] if f"lokr_w{i}_b" in roles else min(_flat(roles[f"lokr_w{i}"])) for i in (1, 2))
        return min(most, math.prod(parts))
    return most if kind == "DoRA" else roles["down"][0]


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def product_shape(roles: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Inputs and outputs that a layer's tensors are for, a convolution's kernel among the inputs. Raises ValueError if they do not fit."""
    kind = kind_of(set(roles))
    if kind == "LoHa":
        widths = [_matrix(roles, f"hada_w{i}", f"hada_t{i}") for i in (1, 2)]
        if widths[0] != widths[1]:
            raise ValueError(f"halves of {widths[0]} and {widths[1]}")
        return widths[0]
    if kind == "LoKr":
        (b, a), (d, c) = _matrix(roles, "lokr_w1"), _matrix(roles, "lokr_w2", "lokr_t2")
        return b * d, a * c
    down, up = roles["down"], roles["up"]
    inner = roles["mid"] if "mid" in roles else (down[0], down[0], 1, 1)
    if not len(down) == len(up) in (2, 4) or inner[1] != down[0] or inner[0] != up[1] or 0 in down + up or up[2:] not in ((), (1, 1)):
        raise ValueError(f"shapes {list(down)} and {list(up)}")
    return math.prod(down[1:]) * math.prod(inner[2:]), up[0]


def _matrix(roles: Mapping[str, tuple[int, ...]], name: str, core: str = "") -> tuple[int, int]:
    """Width and height of one part of LoHa or LoKr, whole or in two factors, with the core of a convolution or without."""
    if name in roles:
        return math.prod(roles[name][1:]), roles[name][0]
    a, b = roles[f"{name}_a"], roles[f"{name}_b"]
    if core in roles:
        kernel = roles[core]
        if len(kernel) != 4 or len(a) != 2 or len(b) != 2 or (kernel[0], kernel[1]) != (a[0], b[0]):
            raise ValueError(f"shapes {list(a)}, {list(b)}, {list(kernel)}")
        return b[1] * kernel[2] * kernel[3], a[1]
    if len(a) != 2 or len(b) not in (2, 4) or a[1] != b[0] or not a[1]:
        raise ValueError(f"shapes {list(a)} and {list(b)}")
    return math.prod(b[1:]), a[0]


def factors_of(tensors: Mapping[str, Tensor], weight: Tensor | None, scale: float, most: int) -> tuple[Factors, float, float]:
    """The factors of a layer's product, their scale, and what they leave out: the square of a Frobenius norm, 0 for nothing.

    weight: the base's own [out, in], for DoRA. most: the largest rank of what is no plain LoRA.
    """
    kind = kind_of(set(tensors))
    if kind == "LoRA":
        return _plain(tensors), scale, 0.0
    if kind == "DoRA":
        if weight is None:
            raise W2WError("DoRA needs the base's own weights.")
        down, up = _plain(tensors)
        factors, left = reduced(*_dora(weight, (up @ down) * scale, tensors["magnitude"]), most)
        return factors, 1.0, left
    if kind == "LoHa":
        (d1, u1), (d2, u2) = (_part(tensors, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
        up = (u1[:, :, None] * u2[:, None, :]).flatten(1)  # the columns' products, pair by pair
        down = (d1[:, None] * d2[None]).flatten(0, 1)
    else:
        (d1, u1), (d2, u2) = _part(tensors, "lokr_w1"), _part(tensors, "lokr_w2", "lokr_t2")
        up, down = torch.kron(u1.contiguous(), u2.contiguous()), torch.kron(d1.contiguous(), d2.contiguous())
    factors, left = reduced(down, up, most)
    return factors, scale, left * scale**2


def _plain(tensors: Mapping[str, Tensor]) -> Factors:
    down, up = tensors["down"], tensors["up"].flatten(1)
    if "mid" in tensors:  # [r, r, kh, kw] between two convolutions of 1x1
        down = torch.einsum("ijkl,jc->ickl", tensors["mid"], down.flatten(1))
    return down.flatten(1), up


def _part(tensors: Mapping[str, Tensor], name: str, core: str = "") -> Factors:
    """One part of LoHa or LoKr as two factors; a whole one beside the identity."""
    if name in tensors:
        whole = tensors[name].flatten(1)
        eye = torch.eye(min(whole.shape))
        return (eye, whole) if whole.shape[0] >= whole.shape[1] else (whole, eye)
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core in tensors:
        return torch.einsum("ijkl,jc->ickl", tensors[core], b).flatten(1), a.T
    return b.flatten(1), a


def _dora(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Factors:
    """m (W + D) / |W + D| - W, where the norm is of each output or, in LyCORIS' older files, of each input."""
    merged, m = weight + delta, magnitude.flatten()
    by_output = magnitude.shape[0] == len(weight) or magnitude.numel() == len(weight)
    if by_output:
        scaled = merged * (m / merged.norm(dim=1).clamp_min(1e-12))[:, None]
    elif weight.shape[1] % m.numel() == 0:  # a convolution's inputs have a kernel each
        grouped = merged.unflatten(1, (m.numel(), -1))
        scaled = (grouped * (m / grouped.flatten(2).norm(dim=(0, 2)).clamp_min(1e-12))[None, :, None]).flatten(1)
    else:
        raise W2WError(f"magnitudes {list(magnitude.shape)} for a layer {list(weight.shape)}.")
    whole = scaled - weight
    eye = torch.eye(min(whole.shape))
    return (eye, whole) if whole.shape[0] >= whole.shape[1] else (whole, eye)


def reduced(down: Tensor, up: Tensor, most: int) -> tuple[Factors, float]:
    """The best factors of rank `most` at most for up @ down, and the square of what they leave out (Eckart and Young 1936).

    Exact where the product has no more than some hundreds of rows, else by subspace iteration (Halko et al. 2011, algorithm 4.4).
    """
    if down.shape[0] <= most:
        return (down, up), 0.0
    if down.shape[0] < min(up.shape[0], down.shape[1]):
        q_up, r_up = torch.linalg.qr(up.double())
        q_down, r_down = torch.linalg.qr(down.double().T)
        u, values, v = torch.linalg.svd(r_up @ r_down.T)
        u, v = q_up @ u[:, :most], (q_down @ v[:most].T).T
    else:
        whole = (up @ down).double()
        if min(whole.shape) <= 400:
            u, values, v = torch.linalg.svd(whole, full_matrices=False)
            u, v = u[:, :most], v[:most]
        else:
            q = torch.randn(whole.shape[1], most + 16, generator=generator(0, "range"), dtype=torch.float64)
            for _ in range(6):
                q = torch.linalg.qr(whole.T @ (whole @ q))[0]
            u, values, v = torch.linalg.svd(whole @ q, full_matrices=False)
            u, v = u[:, :most], (v @ q.T)[:most]
            left = max(0.0, float(whole.square().sum() - values[:most].square().sum()))
            root = values[:most].sqrt()
            return ((root[:, None] * v).float(), (u * root).float()), left
    root = values[:most].sqrt()
    return ((root[:, None] * v).float(), (u * root).float()), float(values[most:].square().sum())
