"""PCA finds what scikit-learn's full SVD finds, by either solver, takes new adapters in, and holds little in memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import Ended, close
from test_spaces import BASE, LAYOUT, adapters
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces import krylov, pca, streaming
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace, Solver

decomposition = pytest.importorskip("sklearn.decomposition")

WIDE = Layout.of(nn.ModuleDict({"to_q": nn.Linear(150, 50), "to_v": nn.Linear(100, 100)}))  # 400 numbers
# How much less variance than the best a solver may keep, and the largest angle (radians) to the best subspace where the
# spectrum falls fast: where it does not, directions of nearly equal variance may turn into each other.
LOST = {"exact": 1e-5, "streaming": 1e-3}
ANGLE = {"exact": 1e-3, "streaming": 2e-2}

every_solver = pytest.mark.parametrize("solver", list(LOST))
every_spectrum = pytest.mark.parametrize("kind", ["fast", "slow", "flat"])


def spectrum(kind: str, n: int, d: int = WIDE.d, seed: int = 5) -> Tensor:
    """Rows whose principal deviations fall fast, slowly, or not at all; their units differ by coordinate."""
    draw = torch.Generator().manual_seed(5)
    falling = {"fast": 0.9 ** torch.arange(d), "slow": 1 / (1 + torch.arange(d)) ** 0.5, "flat": torch.ones(d)}[kind]
    mix = torch.linalg.qr(torch.randn(d, d, generator=draw))[0] * torch.logspace(-2, 1, d)
    return 0.1 + (torch.randn(n, d, generator=draw.manual_seed(seed)) * falling) @ mix


def fitted(weights: Tensor, m: int, solver: Solver = "auto", memory: float = 2.0) -> PcaSpace:
    return PcaSpace.fit(weights, m=m, layout=WIDE, base_id=BASE, solver=solver, memory=memory)


def standardised(weights: Tensor) -> Tensor:
    wide = weights.double()
    return (wide - wide.mean(0)) / wide.std(0)


def kept_share(space: PcaSpace, weights: Tensor) -> float:
    """The share of the standardised variance of all rows that lies in the space's span."""
    x = standardised(weights)
    span = torch.linalg.qr(space.components.double().T)[0]
    return float((x @ span).square().sum() / x.square().sum())


@every_solver
@every_spectrum
@pytest.mark.parametrize("n", [300, 900])  # fewer than d, and more
def test_every_solver_agrees_with_the_full_svd_of_scikit_learn(solver: Solver, kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, m = spectrum(kind, n), 12
    reference = decomposition.PCA(m, svd_solver="full").fit(standardised(weights).numpy())
    best = float(reference.explained_variance_ratio_.sum())
    monkeypatch.setattr(streaming, "CHUNK", 20 * WIDE.d)  # several pieces of everything
    monkeypatch.setattr(pca, "COLUMNS", 130)
    for memory in (2.0, 0.002):  # held in memory; read again on every pass, and the basis made smaller on the way
        space = fitted(weights, m, solver, memory)
        torch.testing.assert_close(space.mean, weights.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(space.scale, weights.std(0), atol=0, rtol=1e-5)
        told = float(space.explained_variance_ratio.double().sum())
        assert abs(told - kept_share(space, weights)) < 5e-5 * best  # it says what it keeps
        assert -1e-5 < 1 - told / best < LOST[solver]
        np.testing.assert_allclose(space.components @ space.components.T, np.eye(m), atol=2e-5)
        if kind == "fast" or solver == "exact":
            np.testing.assert_allclose(space.spread.square(), reference.explained_variance_, rtol=2 * LOST[solver])
            cosines = torch.linalg.svdvals(space.components.double() @ torch.from_numpy(reference.components_).T)
            assert torch.arccos(cosines.clamp_max(1)).max() < ANGLE[solver]


def test_streaming_is_as_good_where_the_processor_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = spectrum("slow", 900)
    exact = fitted(weights, 12, "exact")
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv("W2WPP_PRECISION", dtype)
        lost = 1 - kept_share(fitted(weights, 12, "streaming"), weights) / kept_share(exact, weights)
        assert -1e-6 < lost < LOST["streaming"]


def test_the_solver_is_chosen_by_size_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = spectrum("fast", 300)
    exact, streamed = (fitted(weights, 4, solver).components for solver in ("exact", "streaming"))
    assert torch.equal(fitted(weights, 4).components, exact)
    assert torch.equal(fitted(weights, 4, memory=0.002).components, fitted(weights, 4, "streaming", 0.002).components)
    monkeypatch.setattr(pca, "SMALL", 100)
    assert torch.equal(fitted(weights, 4).components, streamed)
    assert torch.equal(fitted(weights, 80).components, fitted(weights, 80, "exact").components)  # most of what there is
    with pytest.raises(W2WError, match="Raise it"):
        fitted(weights, 4, memory=1e-6)


@every_solver
def test_numbers_that_are_none_are_refused_by_every_solver(solver: Solver, tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "data", WIDE, BASE)
    data.append(spectrum("fast", 20), [str(i) for i in range(20)])
    with (tmp_path / "data" / "shards" / "000000.safetensors").open("r+b") as shard:
        shard.seek(-4 * WIDE.d - 4, 2)  # the last number of the last row but one
        shard.write(b"\x00\x00\xc0\x7f")
    with pytest.raises(W2WError, match="row 18 of 20"):
        PcaSpace.fit(data, m=3, solver=solver)
    with pytest.raises(W2WError, match="row 18 of 20"):
        fitted(data.rows(range(10)), 3).update(data.rows())


@every_solver
def test_adapters_that_are_alike_are_refused(solver: Solver) -> None:
    for alike, spanned in ((spectrum("slow", 3).repeat(4, 1), 2), (spectrum("slow", 1).repeat(12, 1), 0)):
        with pytest.raises(W2WError, match=f"span only {spanned} directions"):
            fitted(alike, 5, solver)


@every_solver
def test_fewer_components_are_taken_where_that_is_allowed(solver: Solver) -> None:
    for alike, spanned in ((spectrum("slow", 3).repeat(4, 1), 2), (spectrum("slow", 5).repeat(4, 1), 4)):
        space = PcaSpace.fit(alike, m=10, layout=WIDE, base_id=BASE, solver=solver, at_most=True)
        assert space.m == spanned == len(space.components) == len(space.spread)
        torch.testing.assert_close(space.decode(space.encode(alike)), alike, atol=ANGLE[solver], rtol=ANGLE[solver])
    with pytest.raises(W2WError, match="span only 0 directions"):
        PcaSpace.fit(spectrum("slow", 1).repeat(12, 1), m=5, layout=WIDE, base_id=BASE, solver=solver, at_most=True)


@pytest.mark.parametrize(("memory", "size"), [(2.0, 64), (0.007, 32)])
def test_little_memory_means_small_blocks_and_the_same_components(memory: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, sizes = spectrum("slow", 900), []
    extend = krylov._Basis.extend
    monkeypatch.setattr(krylov._Basis, "extend", lambda self, fresh, blocks: (sizes.append(len(fresh)), extend(self, fresh, blocks))[1])
    space = fitted(weights, 140, "streaming", memory)
    assert max(sizes) == size
    best = fitted(weights, 140, "exact").explained_variance_ratio.sum()
    assert space.explained_variance_ratio.sum() >= (1 - LOST["streaming"]) * best
    with pytest.raises(W2WError, match="GiB while fitting"):
        fitted(weights, 140, "streaming", 0.003)


@every_solver
def test_an_update_is_a_new_fit_where_nothing_was_left_out(solver: Solver) -> None:
    weights = torch.cat([spectrum("slow", 30), 5 - 4 * spectrum("flat", 50, seed=6)])  # what comes has other units
    weights[:30, 7] = 0.25  # never varied before
    weights[:, 9] = 0.5  # and never does
    old = fitted(weights[:30], 29)
    updated = old.update(weights[30:], m=20, solver=solver)
    again = fitted(weights, 20, "exact")
    assert (updated.m, updated.n) == (20, 80)
    for name, rtol in (("mean", 1e-5), ("scale", 1e-5), ("spread", 1e-3)):
        torch.testing.assert_close(getattr(updated, name), getattr(again, name), rtol=rtol, atol=1e-6)
    assert updated.scale[9] == 1 and not updated.components[:, 9].any()
    cosines = torch.linalg.svdvals(updated.components @ again.components.T)
    assert torch.arccos(cosines.clamp_max(1)).max() < ANGLE["streaming"]


@every_spectrum
def test_many_updates_keep_nearly_what_a_new_fit_keeps(kind: str) -> None:
    weights = spectrum(kind, 900)
    space = fitted(weights[:600], 60)
    for start in range(600, 900, 100):
        space = space.update(weights[start : start + 100])
    again = fitted(weights, 60, "exact")
    torch.testing.assert_close(space.mean, again.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(space.scale, again.scale, rtol=1e-5, atol=0)
    kept, best = kept_share(space, weights), kept_share(again, weights)
    assert 1 - kept / best < {"fast": 1e-5, "slow": 0.01, "flat": 0.12}[kind]
    told = float(space.explained_variance_ratio.sum())
    assert told < kept + 1e-5  # a lower bound: what the old space left out is not counted
    assert told > {"fast": 1 - 1e-4, "slow": 0.95, "flat": 0.7}[kind] * kept


def test_an_update_of_a_dataset_takes_what_was_appended(tmp_path: Path, w2w: Callable[..., Ended]) -> None:
    weights = spectrum("fast", 60)
    data = WeightDataset.create(tmp_path / "data", WIDE, BASE)
    data.append(weights[:40], [str(i) for i in range(40)])
    common = ("--runs", tmp_path / "runs", "--json")
    w2w("fit", "pca", tmp_path / "data", "--m", 20, "--out", tmp_path / "old.safetensors", *common).json()
    nothing = w2w("fit", "pca", tmp_path / "data", "--update", tmp_path / "old.safetensors", *common)
    assert nothing.code == 2 and "data has 40" in nothing.err
    data.append(weights[40:], [str(i) for i in range(40, 60)])
    told = w2w("fit", "pca", tmp_path / "data", "--update", tmp_path / "old.safetensors", "--out", tmp_path / "new.safetensors", *common)
    assert told.json()["m"] == 20 and told.json()["n"] == 60
    updated, expected = Space.load(tmp_path / "new.safetensors"), fitted(weights[:40], 20).update(weights[40:])
    torch.testing.assert_close(updated.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)
    other = WeightDataset.create(tmp_path / "other", WIDE, BASE)
    other.append(weights, [f"other {i}" for i in range(60)])
    assert isinstance(updated, PcaSpace)
    for space in (updated, PcaSpace(WIDE, BASE, 3)):
        with pytest.raises(W2WError, match=r"efit with `w2w fit pca`"):
            space.update(other)


def test_components_in_bfloat16_take_half_the_space(tmp_path: Path) -> None:
    weights = spectrum("slow", 300)
    full = fitted(weights, 50)
    half = PcaSpace.fit(weights, m=50, layout=WIDE, base_id=BASE, dtype=torch.bfloat16)
    for name, space in (("full", full), ("half", half)):
        space.save(tmp_path / f"{name}.safetensors")
    loaded = Space.load(tmp_path / "half.safetensors")
    assert isinstance(loaded, PcaSpace) and loaded.components.dtype == torch.bfloat16
    saved = (tmp_path / "full.safetensors").stat().st_size - (tmp_path / "half.safetensors").stat().st_size
    assert abs(saved - 2 * 50 * WIDE.d) < 100
    z = full.sample(6).requires_grad_()
    decoded, exact = loaded.decode(z), full.decode(z)
    assert decoded.dtype == torch.float32
    assert ((decoded - exact) / full.scale).norm() < 0.004 * ((exact - full.mean) / full.scale).norm()
    assert torch.equal(decoded, half.decode(z))
    torch.testing.assert_close(loaded.encode(decoded), z, atol=0.05, rtol=0)
    decoded.square().sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all() and z.grad.any()
    assert loaded.update(spectrum("slow", 20, seed=7)).components.dtype == torch.bfloat16


def test_pca_points_of_the_fitted_adapters_are_standard_and_apart() -> None:
    weights = adapters()
    z = PcaSpace.fit(weights, m=8, layout=LAYOUT, base_id=BASE).encode(weights)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(8), atol=1e-3, rtol=0)


def test_pca_with_every_component_loses_nothing_even_where_nothing_varies() -> None:
    weights = adapters(12)
    space = PcaSpace.fit(weights, m=11, layout=LAYOUT, base_id=BASE)
    torch.testing.assert_close(space.decode(space.encode(weights)), weights, atol=1e-6, rtol=1e-4)
    assert float(space.explained_variance_ratio.sum()) == pytest.approx(1, abs=1e-4)
    drawn = space.decode(space.sample(5))
    assert torch.equal(drawn[:, 2], torch.zeros(5)) and torch.equal(drawn[:, 5], weights[:5, 5])


def test_pca_cut_to_fewer_components_is_the_fit_at_that_m(tmp_path: Path) -> None:
    weights = adapters()
    large, small = (PcaSpace.fit(weights, m=m, layout=LAYOUT, base_id=BASE) for m in (6, 2))
    cut = large.truncate(2)
    torch.testing.assert_close(cut.state_dict(), small.state_dict())
    cut.save(tmp_path / "cut.safetensors")
    assert close(Space.load(tmp_path / "cut.safetensors").decode(cut.sample(2)), cut.decode(cut.sample(2)))
    with pytest.raises(W2WError, match="has 6 components"):
        large.truncate(7)
