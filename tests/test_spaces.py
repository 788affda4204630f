"""Every space keeps the same promises; each kind also does what its paper says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import close
from w2wpp.common.errors import W2WError
from w2wpp.common.files import write_tensors
from w2wpp.dataset.split import split_by_person
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.collapse import collapse
from w2wpp.lora.layout import Layout
from w2wpp.spaces import vae_training
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.base import FORMAT, REGISTRY, Space
from w2wpp.spaces.kl_schedule import kl_weight_at
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

LAYOUT = Layout.of(nn.ModuleDict({"to_q": nn.Linear(9, 7), "to_v": nn.Linear(8, 8)}))
OTHER = Layout.of(nn.ModuleDict({"to_q": nn.Linear(9, 7), "to_k": nn.Linear(8, 8)}), targets=("to_q", "to_k"))
BASE = "0123456789abcdef"
M = 3
SMALL = VaeOptions(m=M, widths=(16, 8), epochs=3, batch=8, lr=1e-3, warmup_epochs=1)

ALIVE = replace(SMALL, epochs=25, warmup_epochs=25, widths=(64,), lr=1e-2, batch=32)  # no KL: an autoencoder that learns

Fit = Callable[[Tensor], Space]
# A row a kind; variants of a kind have rows of their own.
FITS: dict[str, Fit] = {
    "pca": lambda weights: PcaSpace.fit(weights, m=M, layout=LAYOUT, base_id=BASE),
    "vae": lambda weights: VaeSpace.fit(weights, SMALL, layout=LAYOUT, base_id=BASE, device="cpu"),
    "vae residual-adversarial": lambda weights: VaeSpace.fit(
        weights, replace(SMALL, variant="residual-adversarial"), layout=LAYOUT, base_id=BASE, device="cpu"
    ),
    "anchored-vae": lambda weights: AnchoredVaeSpace.fit(
        weights, AnchoredOptions(m=M, components=6, hidden=8, steps=20), layout=LAYOUT, base_id=BASE, device="cpu"
    ),
}
every_space = pytest.mark.parametrize("fit", FITS.values(), ids=FITS.keys())


def adapters(n: int = 40, seed: int = 0) -> Tensor:
    """Adapters [n, d] that vary mostly in five directions, with two coordinates that never vary."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(5, LAYOUT.d, generator=draw)
    weights = 0.02 * torch.randn(n, 5, generator=draw) @ directions + 0.002 * torch.randn(n, LAYOUT.d, generator=draw)
    weights[:, 2], weights[:, 5] = 0.0, 0.1
    return weights + 0.01 * torch.randn(LAYOUT.d, generator=draw) * (weights.std(0) > 1e-6)


def test_every_registered_kind_is_tested() -> None:
    assert {name.split()[0] for name in FITS} == set(REGISTRY)


@every_space
def test_points_and_adapters_have_their_shapes_and_are_numbers(fit: Fit) -> None:
    weights = adapters()
    space = fit(weights)
    z = space.encode(weights)
    decoded = space.decode(z)
    assert (space.m, space.layout, space.base_id) == (M, LAYOUT, BASE)
    assert z.shape == (40, M) and decoded.shape == weights.shape
    assert z.dtype == decoded.dtype == torch.float32
    assert torch.isfinite(z).all() and torch.isfinite(decoded).all()
    assert not z.requires_grad and not decoded.requires_grad


@every_space
def test_decoding_is_differentiable_and_row_by_row(fit: Fit) -> None:
    space = fit(adapters())
    z = space.sample(4).requires_grad_()
    decoded = space.decode(z)
    decoded[1].square().sum().backward()
    assert z.grad is not None and z.grad[1].abs().sum() > 0 and z.grad[[0, 2, 3]].abs().sum() == 0
    torch.testing.assert_close(space.decode(z[1:2]), decoded[1:2])


@every_space
def test_a_drawn_point_depends_on_its_seed_and_number_alone(fit: Fit) -> None:
    space = fit(adapters())
    assert torch.equal(space.sample(5, seed=1)[:2], space.sample(2, seed=1))
    assert not torch.equal(space.sample(2, seed=1), space.sample(2, seed=2))
    many = space.sample(2000)
    assert many.mean(0).abs().max() < 0.1 and (many.std(0) - 1).abs().max() < 0.1


@every_space
def test_fitting_again_gives_the_same_space_and_leaves_the_global_generator_alone(fit: Fit) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fit(adapters())
    assert torch.equal(torch.rand(1), expected)
    torch.testing.assert_close(fit(adapters()).state_dict(), first.state_dict(), rtol=1e-5, atol=1e-6)


@every_space
def test_a_saved_space_decodes_to_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    space = fit(adapters())
    space.save(tmp_path / "space.safetensors")
    torch.manual_seed(5)
    loaded = Space.load(tmp_path / "space.safetensors")
    assert torch.initial_seed() == 5 and type(loaded) is type(space)
    z = space.sample(6)
    assert close(loaded.decode(z), space.decode(z))
    assert close(loaded.encode(adapters()), space.encode(adapters()))
    assert (loaded.m, loaded.layout, loaded.base_id, loaded.config()) == (M, LAYOUT, BASE, space.config())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@every_space
def test_another_layout_base_or_width_is_refused_in_one_line(fit: Fit, tmp_path: Path) -> None:
    fit(adapters()).save(tmp_path / "space.safetensors")
    space = Space.load(tmp_path / "space.safetensors")
    space.check(LAYOUT, BASE, "adapters/0042")
    for layout, base_id, named in ((OTHER, BASE, "to_k"), (LAYOUT, "f" * 16, "f" * 16)):
        with pytest.raises(W2WError, match=named) as error:
            space.check(layout, base_id, "adapters/0042")
        assert "space.safetensors" in str(error.value) and "adapters/0042" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(W2WError, match=f"expects {LAYOUT.d} weights"):
        space.encode(torch.zeros(1, LAYOUT.d + 1))


@every_space
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_refused(fit: Fit, bad: float) -> None:
    weights = adapters()
    space = fit(weights)
    weights[7, 1] = bad
    for use in (fit, space.encode):
        with pytest.raises(W2WError, match="row 7"):
            use(weights)


@every_space
def test_more_dimensions_than_adapters_can_span_are_refused(fit: Fit) -> None:
    with pytest.raises(W2WError, match=r"m = 3 .* 3 adapters .* 2 directions"):
        fit(adapters(M))


@every_space
@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_a_file_cut_short_is_refused_in_one_line(fit: Fit, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "space.safetensors"
    fit(adapters()).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(W2WError, match=r"space\.safetensors") as error:
        Space.load(path)
    assert "\n" not in str(error.value)


@every_space
def test_a_file_whose_header_lies_is_refused(fit: Fit, tmp_path: Path) -> None:
    space, path = fit(adapters()), tmp_path / "space.safetensors"
    header = {"format": FORMAT, "kind": space.kind, "layout": OTHER.to_json(), "base_id": BASE, "config": json.dumps(space.config())}
    tensors = space.state_dict()
    lies = [
        (tensors, {**header, "kind": "spline"}, "is no space"),
        (tensors, {}, "is no space"),
        (tensors, {**header, "config": "{}"}, "does not hold"),
        (dict(list(tensors.items())[1:]), header, "does not hold"),
    ]
    for found, told, message in lies:
        write_tensors(path, found, told)
        with pytest.raises(W2WError, match=message):
            Space.load(path)
    with pytest.raises(W2WError, match="cannot read"):
        Space.load(tmp_path / "nowhere.safetensors")


def test_a_dataset_fits_like_its_weights(tmp_path: Path) -> None:
    data = WeightDataset.create(tmp_path / "data", LAYOUT, BASE)
    for i in range(4):
        data.append(adapters()[10 * i : 10 * i + 10], [str(k) for k in range(10 * i, 10 * i + 10)])
    assert torch.equal(PcaSpace.fit(data, m=M).components, FITS["pca"](adapters()).state_dict()["components"])
    space = VaeSpace.fit(data, SMALL, device="cpu")
    torch.testing.assert_close(space.state_dict(), FITS["vae"](adapters()).state_dict())


def test_vae_has_the_published_layers() -> None:
    space = VaeSpace(LAYOUT, BASE, VaeOptions(m=4, widths=(32, 16, 8)))
    shapes = [tuple(p.shape) for p in space.parameters() if p.dim() == 2]
    d = LAYOUT.d
    assert shapes == [(32, d), (16, 32), (8, 16), (8, 8), (8, 4), (16, 8), (32, 16), (d, 32)]
    assert {type(module).__name__ for module in space.encoder} == {"Linear", "LeakyReLU"}
    # x 10 then tanh: what it decodes is in the adapters' own units, and never beyond 0.1.
    assert space.decode(1000 * space.sample(3)).abs().max() <= 0.1


def test_vae_learns_and_writes_reconstruction_and_kl_apart() -> None:
    space = VaeSpace.fit(adapters(200), ALIVE, layout=LAYOUT, base_id=BASE, device="cpu")
    history = space.history
    for name in ("recon", "kl"):
        assert len(history[name]["train"]) == len(history[name]["val"]) == ALIVE.epochs
        assert history["test"][name] > 0
    assert history["recon"]["train"][-1] < 0.5 * history["recon"]["train"][0]
    assert history["recon"]["val"][-1] < 0.5 * history["recon"]["val"][0]
    assert history["kl_weight"] == [0.0] * ALIVE.epochs
    json.dumps(history)
    # What it reports is the squared error in x10 units, though of posterior samples: their mean is about as good.
    fresh = adapters(200)
    error = (10 * (space.decode(space.encode(fresh)) - fresh)).square().mean()
    assert error < 1.5 * history["recon"]["train"][-1]


def test_kl_weight_rises_after_the_warm_up_or_in_cycles() -> None:
    steps = VaeOptions(epochs=12, warmup_epochs=3, kl_weight=0.006)
    assert [round(kl_weight_at(steps, epoch), 6) for epoch in range(12)] == [0, 0, 0, 0.002, 0.004, *[0.006] * 7]
    assert kl_weight_at(steps, 3.9) == kl_weight_at(steps, 3)
    cyclical = replace(steps, schedule="cyclical")  # four cycles of three epochs
    told = {0: 0, 0.75: 0.003, 1.5: 0.006, 2.9: 0.006, 3: 0, 3.75: 0.003, 11.9: 0.006}
    assert {epoch: round(kl_weight_at(cyclical, epoch), 6) for epoch in told} == told


def test_the_split_is_seeded_80_10_10_and_never_parts_a_person() -> None:
    people = [f"p{i}" for i in range(50)] * 2
    split = split_by_person(people, seed=0)
    assert {name: len(rows) for name, rows in split.items()} == {"train": 80, "val": 10, "test": 10}
    assert sorted(torch.cat(list(split.values())).tolist()) == list(range(100))
    for rows in split.values():
        assert {(i + 50) % 100 for i in rows.tolist()} == set(rows.tolist())
    assert torch.equal(split["val"], split_by_person(people, seed=0)["val"])
    assert not torch.equal(split["val"], split_by_person(people, seed=1)["val"])


@pytest.mark.parametrize("variant", ["plain", "residual-adversarial"])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, weights, path = replace(SMALL, variant=variant, schedule="cyclical"), adapters(), tmp_path / "vae.pt"

    def fit(checkpoint: Path | None, given: VaeOptions = options) -> tuple[VaeSpace, dict]:
        space = VaeSpace.fit(weights, given, layout=LAYOUT, base_id=BASE, device="cpu", checkpoint=checkpoint)
        return space, space.history

    unbroken, told = fit(None)
    original = vae_training.train_epoch

    def killed_in_the_third(*args):  # type: ignore[no-untyped-def]
        if args[-1] == 2:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(vae_training, "train_epoch", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            fit(path)
    resumed, history = fit(path)
    assert history == told
    torch.testing.assert_close(resumed.state_dict(), unbroken.state_dict(), rtol=0, atol=0)
    with pytest.raises(W2WError, match="another options"):
        fit(path, replace(options, lr=0.5))


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(W2WError, match="diverged"):
        VaeSpace.fit(adapters(), replace(SMALL, lr=1e30), layout=LAYOUT, base_id=BASE, device="cpu")


def test_unknown_schedules_and_variants_are_refused() -> None:
    for wrong in ({"schedule": "sideways"}, {"variant": "quantum"}):
        with pytest.raises(W2WError, match=next(iter(wrong.values()))):
            VaeOptions(**wrong)  # type: ignore[arg-type]


def test_collapse_is_told_from_life() -> None:
    weights = adapters(200)
    dead_options = replace(ALIVE, kl_weight=1000.0, warmup_epochs=0)
    alive, dead = (
        collapse(VaeSpace.fit(weights, options, layout=LAYOUT, base_id=BASE, device="cpu"), weights) for options in (ALIVE, dead_options)
    )
    assert alive["active_units"] > 0 and dead["active_units"] == 0
    assert alive["decoded_spread_ratio"] > 0.5 > 0.05 > dead["decoded_spread_ratio"]
    assert alive["kl_per_unit"]["mean"] > dead["kl_per_unit"]["max"]
    assert dead["directions_above"] == 0 and dead["collapse_threshold"] > dead["largest_variance"]
    json.dumps([alive, dead])


def test_collapse_counts_directions_by_the_published_weighting() -> None:
    # Three directions with a standard deviation of 0.5, 0.2 and 0.01 in x10 units.
    draw = torch.Generator().manual_seed(0)
    weights = torch.zeros(2000, LAYOUT.d)
    weights[:, :3] = torch.randn(2000, 3, generator=draw) * torch.tensor([0.05, 0.02, 0.001])
    beta = 2 * M * 0.1 / LAYOUT.d  # so that sigma^2 = 0.1: between the first two variances, 0.25 and 0.04
    space = VaeSpace(LAYOUT, BASE, replace(SMALL, kl_weight=beta)).frozen()
    found = collapse(space, weights)
    assert found["collapse_threshold"] == pytest.approx(0.1)
    assert found["directions_above"] == 1
    assert found["largest_variance"] == pytest.approx(0.25, rel=0.1)
