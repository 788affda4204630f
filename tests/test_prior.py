"""Every prior keeps the same promises; the flow also learns what it is told."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Ended, close
from prior_scores import kid, nearest_distance, prdc, two_sample_auc
from test_spaces import FITS, adapters
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.common.seeds import generator
from w2wpp.dataset.weights import WeightDataset
from w2wpp.prior.base import REGISTRY, Prior, fit_prior
from w2wpp.prior.conditions import Asked, parsed_where
from w2wpp.prior.examples import Examples
from w2wpp.prior.flow import FlowOptions, FlowPrior
from w2wpp.prior.rows import NoisyRowsPrior
from w2wpp.spaces.base import Space

every_prior = pytest.mark.parametrize("kind", REGISTRY)
QUICK = FlowOptions(hidden=64, blocks=2, steps=500, batch=128, lr=4e-3, every=25)


@pytest.fixture(scope="module")
def space() -> Space:
    return FITS["pca"](adapters())  # m = 3


def examples(n: int = 200, described: bool = False) -> Examples:
    """Two clusters, 6 apart: men at +3 in the first latent, women at -3; a description that is the point itself."""
    draw = generator(0, "examples")
    man = torch.arange(n) % 2
    z = 0.5 * torch.randn(n, 3, generator=draw)
    z[:, 0] += 6 * man - 3
    ids = [f"person-{i}" for i in range(n)]
    return Examples(z, ids, list(ids), [{"man": int(m)} for m in man], z.clone() if described else None)


def few_steps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("w2wpp.prior.flow.FlowOptions", partial(FlowOptions, hidden=8, steps=20))


@pytest.fixture(scope="module")
def fitted(space: Space) -> dict[str, Prior]:
    """A prior of each kind, fitted to few points, the flow by few steps."""
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        return {kind: fit_prior(space, examples(40), kind, attributes=["man"] if kind == "flow" else []) for kind in REGISTRY}


def flow(given: Examples, attributes: Sequence[str] = ("man",), **changed: object) -> FlowPrior:
    train, held_out = given.split()
    return FlowPrior.fit(train, held_out, attributes=attributes, options=replace(QUICK, **changed))  # type: ignore[arg-type]


@every_prior
def test_a_point_depends_on_its_seed_and_number_alone(kind: str, fitted: dict[str, Prior]) -> None:
    prior = fitted[kind]
    many = prior.sample(14, seed=1)
    assert many.shape == (14, 3) and many.dtype == torch.float32 and torch.isfinite(many).all()
    assert close(prior.sample(1, seed=1, first=12)[0], many[12])
    assert not torch.allclose(prior.sample(14, seed=2), many)


@every_prior
def test_a_saved_prior_draws_the_same_and_refuses_another_space(kind: str, fitted: dict[str, Prior], space: Space, tmp_path: Path) -> None:
    prior = fitted[kind]
    prior.save(tmp_path / "prior.safetensors")
    torch.manual_seed(5)
    loaded = Prior.load(tmp_path / "prior.safetensors")
    assert torch.initial_seed() == 5 and type(loaded) is type(prior)
    assert close(loaded.sample(4), prior.sample(4))
    assert (loaded.people, loaded.history) == (prior.people, prior.history)
    loaded.check(space)
    with pytest.raises(W2WError, match="another space"):
        loaded.check(FITS["pca"](adapters(seed=1)))


def test_a_file_of_something_else_is_no_prior(fitted: dict[str, Prior], space: Space, tmp_path: Path) -> None:
    space.save(tmp_path / "space.safetensors")
    with pytest.raises(W2WError, match="holds no prior"):
        Prior.load(tmp_path / "space.safetensors")
    fitted["flow"].save(tmp_path / "prior.safetensors")
    whole = (tmp_path / "prior.safetensors").read_bytes()
    (tmp_path / "prior.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(W2WError, match="cut short"):
        Prior.load(tmp_path / "prior.safetensors")


def test_the_gaussian_is_what_the_space_samples(fitted: dict[str, Prior], space: Space) -> None:
    assert torch.equal(fitted["gaussian"].sample(5, seed=3), space.sample(5, seed=3))


def test_latents_in_which_all_points_have_one_value_keep_it(space: Space, tmp_path: Path) -> None:
    given = examples(40, described=True)
    given.z[:, 1] = 0.25 + 1e-6 * torch.randn(40, generator=generator(0, "nearly one value"))
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        for kind in REGISTRY:
            prior = fit_prior(space, given, kind)
            prior.save(tmp_path / f"{kind}.safetensors")
            for some in (prior, Prior.load(tmp_path / f"{kind}.safetensors")):
                some.check(space)
                z = some.sample(6)
                assert z.shape == (6, 3) and z[:, [0, 2]].std(0).min() > 0.1
                assert (z[:, 1] - 0.25).abs().max() > 0.1 if kind == "gaussian" else (z[:, 1] - 0.25).abs().max() < 1e-5
    assert fit_prior(space, given, "flow").sample(1, asked=Asked(like=given.z[0])).shape == (1, 3)


def test_a_prior_without_word_of_still_latents_is_about_all_of_them(fitted: dict[str, Prior], tmp_path: Path) -> None:
    fitted["mixture"].save(tmp_path / "now.safetensors")
    tensors, about = read_checked(tmp_path / "now.safetensors", "prior")
    early = {name: tensor for name, tensor in tensors.items() if name not in ("varying", "centre")}
    write_checked(tmp_path / "early.safetensors", early, {key: about[key] for key in ("format", "kind", "config", "people", "history")})
    assert close(Prior.load(tmp_path / "early.safetensors").sample(3), fitted["mixture"].sample(3))


def test_latents_that_do_not_add_up_are_refused(fitted: dict[str, Prior], tmp_path: Path) -> None:
    fitted["mixture"].save(tmp_path / "now.safetensors")
    tensors, about = read_checked(tmp_path / "now.safetensors", "prior")
    for changed in (
        {"varying": torch.tensor([True, True, False])},
        {"varying": torch.ones(5, dtype=torch.bool), "centre": torch.zeros(5)},
        {"varying": torch.ones(3)},
        {"varying": torch.tensor(True), "centre": torch.tensor(0.0)},
        {"centre": torch.zeros(2)},
        {"centre": torch.zeros(3, dtype=torch.float64)},
        {"space": tensors["space"].double()},
        {"means": tensors["means"].double()},
        {"weights": -tensors["weights"]},
    ):
        write_checked(tmp_path / "odd.safetensors", {**tensors, **changed}, about)
        with pytest.raises(W2WError, match="does not hold what its header says"):
            Prior.load(tmp_path / "odd.safetensors")
    for kind, name, value in (("mean-of-two", "person", 5), ("noisy-rows", "z", 0)):
        fitted[kind].save(tmp_path / "now.safetensors")
        tensors, about = read_checked(tmp_path / "now.safetensors", "prior")
        changed = {name: tensors[name] + value} if value else {name: tensors[name][:0]}
        config = {"config": about["config"] if value else '{"n": 0, "m": 3}'}
        write_checked(tmp_path / "odd.safetensors", {**tensors, **changed}, {**about, **config})
        with pytest.raises(W2WError, match="its numbers are none of this kind"):
            Prior.load(tmp_path / "odd.safetensors")


def test_a_factor_is_about_the_mean_of_the_points(space: Space) -> None:
    given = examples(40)
    given.z[:] += torch.tensor([0.0, 5.0, 0.0])
    given.z[:, 2] = 3.25
    for kind in ("mixture", "noisy-rows", "mean-of-two"):
        prior = fit_prior(space, given, kind)
        whole, half, none = (prior.sample(50, factor=factor) for factor in (1.0, 0.5, 0.0))
        assert close(half, (whole + none) / 2) and (none[:, 2] - 3.25).abs().max() < 1e-6
        assert none.std(0).max() < 1e-6 and abs(none[0, 1] - 5) < 0.3


def test_one_latent_alone_may_vary(space: Space) -> None:
    given = examples(40)
    given.z[:, 1:] = 2.0
    for kind in ("mixture", "noisy-rows", "mean-of-two"):
        assert fit_prior(space, given, kind).sample(3)[:, 1:].tolist() == [[2.0, 2.0]] * 3


NONSENSE = [("people", "5"), ("people", '[1, "x"]'), ("people", "[[" * 5000), ("labels", '{"a": 1}'), ("labels", "[1]")]


@pytest.mark.parametrize(("what", "said"), NONSENSE)
def test_points_that_say_nonsense_of_people_are_refused(what: str, said: str, space: Space, tmp_path: Path) -> None:
    examples(12).save(tmp_path / "points.safetensors", space)
    tensors, about = read_checked(tmp_path / "points.safetensors", "points")
    write_checked(tmp_path / "odd.safetensors", tensors, {**about, what: said})
    with pytest.raises(W2WError, match="do not say whose they are"):
        Examples.load(tmp_path / "odd.safetensors", space)


def test_the_mixture_finds_two_clusters_and_one_gaussian_does_not(space: Space) -> None:
    prior = fit_prior(space, examples(), "mixture")
    assert prior.history["components"] >= 2
    assert (prior.sample(200)[:, 0].abs() > 1.2).float().mean() > 0.97


def test_rows_with_noise_lie_near_rows_and_means_between_two(space: Space) -> None:
    given = examples()
    noisy, means = (fit_prior(space, given, kind) for kind in ("noisy-rows", "mean-of-two"))
    assert isinstance(noisy, NoisyRowsPrior)
    away = torch.cdist(noisy.sample(200), given.z).amin(1)
    assert 0 < away.mean() < 4 * noisy.noise.norm()
    assert (means.sample(200)[:, 0].abs() < 1.5).float().mean() > 0.3  # a man and a woman in half of the cases


def test_the_flow_learns_two_clusters() -> None:
    drawn = flow(examples(), attributes=()).sample(200)[:, 0]
    assert (drawn.abs() > 1.2).float().mean() > 0.85  # of one Gaussian, of deviation 3, a third lies between


def test_the_flow_draws_the_cluster_that_is_asked() -> None:
    learned = flow(examples())
    for man, sign in ((1, 1), (0, -1)):
        asked = learned.sample(100, asked=Asked({"man": man}))[:, 0]
        assert (sign * asked > 0).float().mean() > 0.97


def test_the_flow_draws_near_the_point_that_a_description_names() -> None:
    learned = flow(examples(described=True))
    near, far = learned.sample(50, asked=Asked(like=torch.tensor([3.0, 0, 0]))), learned.sample(50)
    assert (near[:, 0] - 3).abs().mean() < 0.5 * (far[:, 0] - 3).abs().mean()


def test_held_out_people_stop_the_training_of_the_flow() -> None:
    draw = generator(0, "noise")
    z, ids = torch.randn(40, 3, generator=draw), [f"person-{i}" for i in range(40)]
    noise = Examples(z, ids, list(ids), [{"man": i % 2} for i in range(40)])  # nothing to learn but rows by heart
    history = flow(noise, steps=2000, patience=3).history["plain"]
    assert history["stopped_at"] < 2000
    assert history["stopped_at"] - history["kept_step"] == 3 * QUICK.every
    assert history["held_out"][history["step"].index(history["kept_step"])] == min(history["held_out"])


def test_all_points_of_a_person_are_held_out_together() -> None:
    given = examples(100)
    pairs = replace(given, people=[f"person-{i // 2}" for i in range(100)])
    train, held_out = pairs.split()
    assert len(held_out) == 10 and not set(train.people) & set(held_out.people)
    with pytest.raises(W2WError, match="too few"):
        replace(given, people=["one"] * 100).split()


@every_prior
def test_what_a_prior_does_not_know_is_refused(kind: str, fitted: dict[str, Prior], space: Space) -> None:
    prior = fitted[kind]
    with pytest.raises(W2WError, match="knows no"):
        prior.sample(1, asked=Asked({"smiling": 1}))
    with pytest.raises(W2WError, match="knows no"):
        prior.sample(1, asked=Asked(like=torch.zeros(128)))
    if kind != "flow":
        with pytest.raises(W2WError, match="knows no conditions"):
            fit_prior(space, examples(60), kind, attributes=["man"])


def test_attributes_that_cannot_be_learned_are_named(space: Space) -> None:
    with pytest.raises(W2WError, match="no attribute 'beard'; the labels have man"):
        fit_prior(space, examples(60), "flow", attributes=["beard"])
    given = examples(60)
    same = replace(given, labels=[{"man": 1} for _ in given.ids])
    with pytest.raises(W2WError, match="always 1"):
        fit_prior(space, same, "flow", attributes=["man"])


def test_examples_come_back_from_their_file_and_any_points_can_be_read(space: Space, tmp_path: Path) -> None:
    given = examples(20, described=True)
    given.save(tmp_path / "points.safetensors", space)
    back = Examples.load(tmp_path / "points.safetensors", space)
    assert (back.ids, back.people, back.labels) == (given.ids, given.people, given.labels)
    assert torch.equal(back.z, given.z) and back.described is not None and torch.equal(back.described, given.z)
    with pytest.raises(W2WError, match="another space"):
        Examples.load(tmp_path / "points.safetensors", FITS["pca"](adapters(seed=1)))


@pytest.mark.parametrize("text", ["", "smiling", "smiling=", "=1", "smiling=yes", "smiling=nan", "smiling=1e39", "man=1,man=0", "man=1,"])
def test_a_where_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(W2WError, match="--where"):
        parsed_where(text)
    assert parsed_where("smiling=1, man=0.5") == {"smiling": 1, "man": 0.5}


def test_a_prior_is_fitted_and_drawn_from_by_commands(
    w2w: Callable[..., Ended], pico: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    monkeypatch.chdir(tmp_path)
    w2w("fit", "pca", dataset, "--m", 3, "--out", "pca.safetensors", "--json").json()
    examples(40).save("points.safetensors", Space.load("pca.safetensors"))
    made = w2w(
        "fit", "prior", "pca.safetensors", "--points", "points.safetensors", "--attribute", "man", "--out", "p.safetensors", "--json"
    )
    assert (made.json()["kind"], made.json()["people"]) == ("flow", 40)
    draw = ["sample", "pca.safetensors", "--base", pico, "--n", 2, "--pictures", 1, "--solver-steps", 2, "--json"]
    w2w(*draw, "--prior", "p.safetensors", "--where", "man=1", "--out", "men").json()
    w2w(*draw, "--out", "plain").json()
    men, plain = (Examples.load(f"{name}/points.safetensors", Space.load("pca.safetensors")).z for name in ("men", "plain"))
    assert torch.equal(plain, Space.load("pca.safetensors").sample(2))
    assert close(men, Prior.load("p.safetensors").sample(2, asked=Asked({"man": 1})))
    for words, told in (
        (["--where", "man=1"], "Give --prior"),
        (["--prior", "p.safetensors", "--where", "beard=1"], "no attribute 'beard'"),
        (["--prior", "points.safetensors"], "holds no prior"),
        (["--prior", "p.safetensors", "--where", "man=1e38"], "not numbers"),
    ):
        ended = w2w(*draw, *words, "--out", "refused")
        assert ended.code == 2 and told in ended.err and ended.err.count("\n") <= 2
        assert not Path("refused").exists()


def test_a_dataset_is_read_by_its_weights_where_there_is_no_encoder(
    w2w: Callable[..., Ended], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    w2w("fit", "pca", dataset, "--m", 3, "--out", "pca.safetensors", "--json").json()
    fit = ["fit", "prior", "pca.safetensors", "--kind", "mixture", "--json"]
    w2w(*fit, "--dataset", dataset, "--keep-points", "kept.safetensors", "--out", "p.safetensors").json()
    space = Space.load("pca.safetensors")
    data = WeightDataset.load(dataset)
    assert close(Examples.load("kept.safetensors", space).z, space.encode(data.rows(range(10))))
    for read in ("pca.safetensors", dataset / "dataset.json", "p.safetensors"):
        before = Path(read).read_bytes()
        ended = w2w(*fit, "--dataset", dataset, "--keep-points", read, "--out", "p.safetensors")
        assert ended.code == 2 and "another --keep-points" in ended.err and Path(read).read_bytes() == before
    for words in ([], ["--dataset", dataset, "--points", "kept.safetensors"]):
        ended = w2w(*fit, *words, "--out", "none.safetensors")
        assert ended.code == 2 and "one source" in ended.err


def test_scores_of_faces_tell_copies_and_strangers_from_people_alike() -> None:
    draw = np.random.default_rng(0)
    people = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in draw.normal(size=(3, 200, 16)) + np.eye(16)[0] * 3]
    strangers = -people[2]
    alike, apart = prdc(people[0], people[1]), prdc(strangers, people[1])
    assert alike["precision"] > 0.9 and alike["coverage"] > 0.9 and apart["precision"] < 0.1 and apart["coverage"] < 0.1
    assert abs(kid(people[0], people[1])) < 0.1 * kid(strangers, people[1])
    z = torch.randn(300, 4, generator=generator(0, "scores"))
    assert nearest_distance(z[:100] + 0.01, z) < 0.1 * nearest_distance(z[:100], z[100:])
    assert two_sample_auc(z[:100], z[100:200]) < 0.65 and two_sample_auc(3 * z[:100], z[100:200]) > 0.8
