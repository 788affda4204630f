"""Diagnosis of a VAE: the threshold where its answer is known, and how alike the faces of its samples are."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import collapse_vae as bench
from conftest import Ended
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.collapse import collapse, kept_directions
from w2wpp.evaluation.distinctness import likeness_of
from w2wpp.lora.layout import Layout, Matrix
from w2wpp.spaces.networks import kl_divergence
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

M, D = 4, 12
LAYOUT = Layout((Matrix("layer.lora_A.weight", (1, D - 2)), Matrix("layer.lora_B.weight", (2, 1))), 1, 1.0, ("layer",))
VARIANCES = torch.tensor([0.04, 0.02, 0.01, 0.0002, 0.0001])  # of five directions, in x10 units
LINEAR = VaeOptions(m=M, widths=(), lr=2e-2, epochs=60, batch=128, warmup_epochs=0)


def adapters(n: int = 4000, seed: int = 0) -> torch.Tensor:
    """Adapters [n, D] around a mean that is not 0, whose principal directions have VARIANCES in x10 units, and no other spread."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(D, len(VARIANCES), generator=draw)).Q
    points = torch.randn(n, len(VARIANCES), generator=draw)
    points = (points - points.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T  # exactly white
    return 0.02 + (points * VARIANCES.sqrt()) @ directions.T / 10


def weight_for(threshold: float) -> float:
    return 2 * M * threshold / D


def at_optimum(weights: torch.Tensor, threshold: float) -> VaeSpace:
    """The linear VAE of Lucas et al. 2019, eq. 9: W = U (L - s^2)^(1/2), encoder W^T / l, posterior variance s^2 / l."""
    space = VaeSpace(LAYOUT, "", replace(LINEAR, kl_weight=weight_for(threshold)))
    x = space.scaled(weights)
    _, deviations, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    variances = deviations.square()[:M] / len(x)
    loading = (variances - threshold).clamp_min(0).sqrt()  # [M]; 0 is collapse
    encoder, decoder = space.encoder[-1], space.decoder[-1]
    with torch.no_grad():
        for parameter in space.parameters():
            parameter.zero_()
        encoder.weight[:M] = (loading / variances)[:, None] * directions[:M]
        encoder.bias[:M] = -encoder.weight[:M] @ x.mean(0)
        encoder.bias[M:] = torch.where(loading > 0, threshold / variances, 1.0).log()
        decoder.weight.copy_((loading[:, None] * directions[:M]).T)
        decoder.bias.copy_(x.mean(0))
    return space


@torch.no_grad()
def expected_loss(space: VaeSpace, x: torch.Tensor) -> float:
    """The published loss, the mean over posterior samples in closed form while tanh is linear."""
    mean, log_variance = space.posterior(x)
    noise = log_variance.exp() @ space.decoder[-1].weight.square().sum(0)
    recon = (space.decoder(mean) - x).square().mean() + noise.mean() / D
    return float(recon + space.options.kl_weight * kl_divergence(mean, log_variance).mean())


@pytest.mark.parametrize(("threshold", "kept"), [(0.1, 0), (0.03, 1), (0.002, 3)])
def test_what_the_threshold_foretells_is_what_the_best_linear_vae_has(threshold: float, kept: int) -> None:
    small = 0.01  # so that tanh is linear
    weights, threshold = small * adapters(), small**2 * threshold
    space = at_optimum(weights, threshold)
    found = collapse(space, weights)
    assert found["collapse_threshold"] == pytest.approx(threshold)
    assert found["directions_above"] == found["directions_kept"] == found["active_units"] == kept
    assert found["kl_per_unit"]["mean"] == pytest.approx(found["linear_optimum"]["kl_per_unit"], rel=1e-2, abs=1e-6)
    assert found["decoded_spread_ratio"] == pytest.approx(found["linear_optimum"]["decoded_spread_ratio"], rel=1e-2, abs=1e-6)
    above = small**2 * VARIANCES[:kept].double()
    assert found["linear_optimum"]["kl_per_unit"] == pytest.approx(float((above / threshold).log().sum()) / 2 / M, rel=1e-2)
    # It is the optimum: from there every way is up.
    x = space.scaled(weights)
    best = expected_loss(space, x)
    for seed in range(10):
        near = copy.deepcopy(space)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in near.parameters():
                parameter += 0.03 * parameter.abs().max().clamp_min(small) * torch.randn(parameter.shape, generator=draw)
        assert expected_loss(near, x) > best


@pytest.mark.parametrize(("threshold", "kept"), [(0.1, 0), (0.002, 3)])
def test_a_trained_linear_vae_keeps_the_directions_above_the_threshold(threshold: float, kept: int) -> None:
    weights = adapters()
    space = VaeSpace.fit(weights, replace(LINEAR, kl_weight=weight_for(threshold)), layout=LAYOUT, device="cpu")
    found = collapse(space, weights)
    assert found["active_units"] == found["directions_kept"] == kept
    largest = 0.5 * math.log(VARIANCES[0] / threshold) if kept else 0.0
    assert found["kl_per_unit"]["max"] == pytest.approx(largest, rel=0.15, abs=0.01)


def test_no_more_than_m_directions_are_kept_and_all_of_them_without_a_kl() -> None:
    found = kept_directions(VARIANCES, D, 2, 0.0)
    assert (found["directions_above"], found["directions_kept"]) == (5, 2)
    assert found["linear_optimum"]["kl_per_unit"] is None
    assert found["linear_optimum"]["decoded_spread_ratio"] == pytest.approx(float(VARIANCES[:2].sum() / VARIANCES.sum()))
    assert found["spectrum"] == pytest.approx({"1": 0.04, "2": 0.02, "4": 0.0002})


def test_likeness_tells_one_face_from_many_and_counts_what_is_missing() -> None:
    a, b, c = np.eye(3)
    alike = likeness_of([[a, b], [a, b], [a, None]])
    assert (alike["between"], alike["within"]) == (1.0, 0.0)
    assert (alike["models"], alike["pictures"], alike["missed"]) == (3, 6, 1)
    different = likeness_of([[a, a], [b, b], [c, c]])
    assert (different["between"], different["within"]) == (0.0, 1.0)
    assert likeness_of([[a], [None]])["between"] is None


def test_fit_vae_draws_only_when_asked(w2w: Callable[..., Ended], tmp_path: Path, pico: Path, dataset: Path) -> None:
    words = ["fit", "vae", dataset, "--m", 3, "--widths", "8", "--epochs", 1, "--device", "cpu", "--runs", tmp_path / "runs", "--json"]
    assert "likeness" not in w2w(*words).json()
    found = w2w(*words, "--pictures", 2, "--base", pico).json()["likeness"]
    assert found["drawn"]["pictures"] == 32 and found["training"]["pictures"] == 20  # of the ten people there are
    ended = w2w(*words, "--pictures", 2)  # the embedded base, of which these adapters are not
    assert ended.code == 2 and "belongs to base" in ended.err


def test_the_benchmark_trains_the_published_vae_as_the_package_does(dataset: Path) -> None:
    data = WeightDataset.load(dataset)
    options = VaeOptions(m=3, widths=(8,), epochs=3, batch=4, warmup_epochs=1)
    adapters = bench.Adapters.of(data)
    space = VaeSpace.fit(data, options, device="cpu")
    trained, _ = bench.train(adapters, bench.Recipe("as published", options))
    torch.testing.assert_close(trained.state_dict(), {**trained.state_dict(), **space.state_dict()})
    torch.testing.assert_close(trained.decode(trained.encode(data.rows())), space.decode(space.encode(data.rows())))


@pytest.mark.parametrize(
    "remedy", [{"standardised": True}, {"equal_matrices": True}, {"learned_sigma": True}, {"free_bits": 0.5}, {"tanh": False}]
)
def test_each_remedy_of_the_benchmark_trains_and_is_measured(dataset: Path, remedy: dict) -> None:
    data = WeightDataset.load(dataset)
    recipe = bench.Recipe("one", VaeOptions(m=3, widths=(8,), epochs=2, batch=4, warmup_epochs=0), **remedy)
    space, curve = bench.train(bench.Adapters.of(data), recipe)
    assert space.decode(space.encode(data.rows())).isfinite().all()
    assert len(curve) == 2
    assert collapse(space, data.rows())["collapse_threshold"] >= 0
