"""Edits: planted directions, strengths in standard deviations, attributes that stay, composition, delayed injection."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import edit_scores
import edits
from conftest import Ended
from w2wpp.base.drawing import edited_rows, picture_rows
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space
from w2wpp.spaces.edits import (
    Direction,
    attribute_directions,
    attributes,
    compose,
    cross_validated,
    debias,
    decoded_scale,
    edit,
    fit_direction,
    read_labels,
    ridge_weights,
)
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.point_files import load_points, save_points

N, M = 400, 12
PEOPLE = [f"person-{i // 2}" for i in range(N)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def z() -> Tensor:
    return draw(N, M).float()


@pytest.fixture(scope="module")
def three(z: Tensor) -> list[Direction]:
    """Three attributes whose directions are not at right angles."""
    planted = draw(3, M, seed=1) + draw(1, M, seed=2)
    return [
        fit_direction(name, z, z.double() @ w + draw(N, seed=3 + i), PEOPLE) for i, (name, w) in enumerate(zip("abc", planted, strict=True))
    ]


def predicted(direction: Direction, z: Tensor) -> Tensor:
    """The attribute's score in its standard deviations, up to a constant."""
    return z.double() @ direction.gradient


def test_a_planted_direction_is_found_and_its_labels_predicted(z: Tensor) -> None:
    w = draw(M, seed=1)
    found = fit_direction("planted", z, z.double() @ w + 0.1 * draw(N, seed=2), PEOPLE)
    assert torch.cosine_similarity(found.gradient, w, dim=0) > 0.999
    assert found.correlation > 0.99 and found.auc is None and found.n == N
    two_valued = fit_direction("sign", z, (z.double() @ w > 0).double(), PEOPLE)
    assert two_valued.auc is not None and two_valued.auc > 0.95
    noise = fit_direction("noise", z, draw(N, seed=9), PEOPLE)
    assert abs(noise.correlation) < 0.3


def test_rows_without_a_value_are_left_out(z: Tensor) -> None:
    scores = z.double() @ draw(M, seed=1)
    half = torch.arange(N) % 4 < 2
    whole = fit_direction("a", z[half], scores[half], [person for person, kept in zip(PEOPLE, half, strict=True) if kept])
    found = fit_direction("a", z, torch.where(half, scores, torch.nan), PEOPLE)
    assert found.n == N // 2
    torch.testing.assert_close(found.gradient * found.sd, whole.gradient * whole.sd)


def test_ridge_is_the_closed_form_and_held_out_people_are_whole() -> None:
    x, s, ridge = draw(30, 4), draw(30, seed=1), torch.tensor([0.3], dtype=torch.float64)
    centred, target = x - x.mean(0), s - s.mean()
    exact = torch.linalg.solve(centred.T @ centred + 0.3 * 30 * torch.eye(4, dtype=torch.float64), centred.T @ target)
    torch.testing.assert_close(ridge_weights(x, s, ridge)[0], exact)
    # A person's two rows are alike and their label is chance: whoever saw one would know the other.
    alike, chance = draw(60, 40).repeat_interleave(2, 0), draw(60, seed=1).repeat_interleave(2)
    guessed = cross_validated(alike, chance, [str(i // 2) for i in range(120)])[1]
    assert torch.corrcoef(torch.stack([guessed, chance]))[0, 1] < 0.5


def test_the_scale_lets_the_ridge_turn_a_direction() -> None:
    z, w = draw(60, 40), torch.zeros(40, dtype=torch.float64)
    w[:4] = 1
    scores = z @ w + draw(60, seed=1)
    scale = torch.where(w > 0, 1.0, 0.01)
    people = [str(i) for i in range(60)]
    plain, scaled = (fit_direction("a", z, scores, people, s) for s in (None, scale))
    assert torch.cosine_similarity(scaled.gradient, w, dim=0) > torch.cosine_similarity(plain.gradient, w, dim=0)


def test_strength_is_in_standard_deviations_of_the_predicted_score(z: Tensor, three: list[Direction]) -> None:
    for direction in three:
        torch.testing.assert_close(predicted(direction, z).std(), torch.tensor(1.0, dtype=torch.float64))
        moved = edit(z, [direction], [-1.5])
        assert moved.dtype == z.dtype and moved.shape == z.shape
        torch.testing.assert_close(
            predicted(direction, moved) - predicted(direction, z), torch.full((N,), -1.5).double(), atol=1e-5, rtol=0
        )
    assert torch.equal(edit(z, three, [0, 0, 0]), z)


def test_debias_moves_the_attribute_and_no_other(z: Tensor, three: list[Direction]) -> None:
    a, b, c = three
    kept = debias(a, [b, c])
    change = edit(z, [kept], [2]) - z
    assert abs(predicted(b, edit(z, [a], [2]) - z)).max() > 0.1  # it would have moved
    for direction, by in ((a, 2.0), (b, 0.0), (c, 0.0)):
        torch.testing.assert_close(predicted(direction, change), torch.full((N,), by).double(), atol=1e-4, rtol=0)
    assert kept.step.norm() > a.step.norm()
    assert debias(a, []) is a


def test_composed_edits_move_each_score_by_its_own_strength_in_any_order(z: Tensor, three: list[Direction]) -> None:
    a, b, c = three
    strengths = {"a": 2.0, "b": -1.0, "c": 0.5}
    step = compose(three, list(strengths.values()))
    for direction in three:
        assert float(predicted(direction, step)) == pytest.approx(strengths[direction.name])
    torch.testing.assert_close(compose([c, a, b], [0.5, 2.0, -1.0]), step)
    torch.testing.assert_close(edit(z, [b, c, a], [-1.0, 0.5, 2.0]), edit(z, three, [2.0, -1.0, 0.5]))
    # One debiased against c leaves c alone beside another that is edited too.
    together = compose([debias(a, [c]), debias(b, [c])], [2.0, -1.0])
    assert [float(predicted(d, together)) for d in three] == pytest.approx([2.0, -1.0, 0.0], abs=1e-6)


def test_what_cannot_be_told_apart_is_refused(three: list[Direction]) -> None:
    with pytest.raises(W2WError, match="cannot be told apart"):
        compose([three[0], three[0]], [1, -1])
    with pytest.raises(W2WError, match="cannot be told from a"):
        debias(three[0], [three[0]])


def test_labels_become_attributes() -> None:
    rows = [
        {"gender": "man", "smiling": 1.0, "beard": "yes", "half": "", "person": "a"},
        {"gender": "woman", "smiling": 0.25, "beard": "no", "half": "b", "person": "b"},
        {"gender": "person", "beard": "", "person": "c"},
    ]
    found = attributes(rows)
    assert set(found) == {"man", "woman", "smiling", "beard"}
    nan = float("nan")
    for name, scores in {"man": [1, 0, nan], "woman": [0, 1, nan], "smiling": [1, 0.25, nan], "beard": [1, 0, nan]}.items():
        torch.testing.assert_close(found[name], torch.tensor(scores, dtype=torch.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,beard\na,1\n", "`id` or `person`"),
        ("id\nperson-0\n", "`id` or `person`"),
        ("", "it is empty"),
        ("id,beard\nnobody,1\n", "names nobody"),
        ("id,beard\nperson-0,1\nperson-0,0\n", "twice"),
    ],
)
def test_a_csv_that_is_none_of_labels(tmp_path: Path, dataset: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(W2WError, match=words):
        read_labels(tmp_path / "labels.csv", WeightDataset.load(dataset))


def test_attributes_that_cannot_be_fitted(tmp_path: Path, dataset: Path, z: Tensor) -> None:
    data = WeightDataset.load(dataset)
    space = PcaSpace.fit(data, m=4)
    (tmp_path / "labels.csv").write_text("person,same,few\n" + "".join(f"person-{i},1,{i if i < 3 else ''}\n" for i in range(10)))
    labels = read_labels(tmp_path / "labels.csv", data)
    for name, words in {"same": "is 1 in all 10", "few": "3 rows of 3 people", "hat": "few, same"}.items():
        with pytest.raises(W2WError, match=words):
            attribute_directions(space, data, [name], labels)
    with pytest.raises(W2WError, match="no attribute 'man'"):
        attribute_directions(space, data, ["man"])
    with pytest.raises(W2WError, match="of 4 people"):
        fit_direction("few", z, z[:, 0], [f"person-{i % 4}" for i in range(N)])


def test_the_decoded_scale_of_pca_is_its_spread(dataset: Path) -> None:
    space = PcaSpace.fit(WeightDataset.load(dataset), m=4)
    scale = decoded_scale(space)
    expected = (space.spread[:, None] * space.components * space.scale).norm(dim=1)
    torch.testing.assert_close(scale, expected / expected.square().mean().sqrt(), rtol=1e-3, atol=0)


def test_a_delayed_edit_is_the_original_before_and_the_edited_model_after(base: BaseModel, layout: Layout) -> None:
    original, edited = 0.3 * torch.randn(2, 2, layout.d, generator=torch.Generator().manual_seed(0))
    prompt, seeds = "photo of a person", [3, 4]

    def at(share: float) -> list[list[np.ndarray]]:
        return edited_rows(base, layout, original, edited, prompt, seeds, inject_at=share, steps=6)

    upper, lower = (picture_rows(base, layout, weights, prompt, seeds, steps=6) for weights in (original, edited))
    assert np.array_equal(at(1), lower) and np.array_equal(at(0), upper)
    halfway = np.array(at(0.6))
    assert not np.array_equal(halfway, lower) and not np.array_equal(halfway, upper)
    with pytest.raises(W2WError, match="share from 0"):
        at(1.5)


def test_balanced_accuracy_is_one_for_perfect_scores_and_half_for_a_constant() -> None:
    labels = torch.tensor([0.0, 0, 0, 1])
    assert edit_scores.balanced_accuracy(labels, labels) == 1
    assert edit_scores.balanced_accuracy(1 - labels, labels) == 0
    assert edit_scores.balanced_accuracy(torch.ones(4), labels) == edit_scores.balanced_accuracy(torch.zeros(4), labels) == 0.5
    assert edit_scores.balanced_accuracy(torch.tensor([0.0, 0, 1, 1]), labels) == pytest.approx((2 / 3 + 1) / 2)


def test_the_classifier_finds_a_planted_attribute_and_its_scores_are_0_and_1_at_the_labels_means() -> None:
    labels = torch.tensor([1.0, 0]).repeat(30)
    faces = draw(60, 2, 512).numpy()
    faces[:, :, 0] += 8 * labels.numpy()[:, None]
    faces[3, 1] = np.nan  # no face found
    found = edit_scores.Classifier.fit(faces, labels, [f"person-{i}" for i in range(60)])
    assert found.n == 119 and found.accuracy > 0.9 and found.auc > 0.95
    fresh = draw(60, 2, 512, seed=1).numpy()
    fresh[:, :, 0] += 8 * labels.numpy()[:, None]
    pictures = edit_scores.Drawn(np.zeros((60, 2, 1, 1, 3), np.uint8), fresh)
    report = found.report(pictures, pictures, labels)
    assert report["accuracy_scored_people"] > 0.9 and report["auc_scored_people"] == report["auc_scored_people_unencoded"]
    means = [float(found(fresh)[labels == label].mean()) for label in (0, 1)]
    assert means == pytest.approx([0, 1], abs=0.2)


def test_the_floors_tell_people_from_image_seeds() -> None:
    def unit(*at: int) -> np.ndarray:
        return sum(np.eye(512)[i] for i in at) / len(at) ** 0.5

    # Half of a picture's embedding is its person (0 to 2), half its image seed (10 + 2 i + j).
    shown = np.array([[unit(i, 10 + 2 * i + j) for j in range(2)] for i in range(3)])
    beside = np.array([[unit((i + 1) % 3, 10 + 2 * i + j) for j in range(2)] for i in range(3)])
    blank = np.zeros((3, 2, 1, 1, 3), np.uint8)
    own = np.array([unit(i) for i in range(3)])
    row = edit_scores.floors(edit_scores.Drawn(blank, shown), edit_scores.Drawn(blank, beside), {}, own)
    expected = {"same_person_other_seed": 0.5, "other_people_same_seed": 0.5, "other_people_other_seed": 0, "photos": 0.5**0.5}
    for name, score in {**expected, "photos_other_people": 0}.items():
        assert row[f"id_{name}"] == pytest.approx(score)


def test_the_people_scored_are_no_others_and_each_seed_is_their_own() -> None:
    people = [f"person-{i // 2}" for i in range(40)]
    man = torch.tensor([float("nan"), 1, 0, 1]).repeat_interleave(2).repeat(5)
    test, train = edits.balanced(people, man, (4, 6), 0)
    assert [float(man[i]) for i in test] == [1, 1, 0, 0] and [float(man[i]) for i in train] == [1] * 3 + [0] * 3
    assert not {people[i] for i in test} & {people[i] for i in train} and all(i % 2 == 0 for i in test + train)
    with pytest.raises(W2WError, match="Ask for fewer"):
        edits.balanced(people, man, (4, 40), 0)
    assert len({seed for person in people for seed in edits.image_seeds(0, person, 3)}) == 60


def test_edit_from_the_command_line(w2w: Callable[..., Ended], tmp_path: Path, pico: Path, dataset: Path) -> None:
    data = WeightDataset.load(dataset)
    space = PcaSpace.fit(data, m=4)
    space.save(tmp_path / "space.safetensors")
    z = space.sample(2)
    save_points(tmp_path / "points.safetensors", z, ["x", "y"], space)
    points = space.encode(data.rows())
    lines = [f"{name},{float(points[i, 0])},{'yes' if points[i, 1] > 0 else 'no'}" for i, name in enumerate(data.ids)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,age,hat", *lines]))
    words = ["edit", tmp_path / "space.safetensors", "--points", tmp_path / "points.safetensors", "--base", pico, "--dataset", dataset]
    words += ["--labels", tmp_path / "labels.csv", "--solver-steps", 2, "--pictures", 2, "--device", "cpu", "--runs", tmp_path / "runs"]
    ended = w2w(*words, "--attribute", "age=2", "--debias", "hat", "--inject-at", 0.7, "--id", "y", "--json").json()
    assert ended["points"] == ["y-edited"]
    assert ended["attributes"]["age"]["strength"] == 2 and ended["attributes"]["hat"]["strength"] == 0
    assert Path(ended["sheet"]).is_file()
    edited, _ = load_points(Path(ended["out"]) / "points.safetensors", Space.load(tmp_path / "space.safetensors"))
    age, hat = attribute_directions(space, data, ["age", "hat"], read_labels(tmp_path / "labels.csv", data))
    change = edited - z[1:]
    assert float(predicted(age, change)) == pytest.approx(2, abs=1e-4)
    assert float(predicted(hat, change)) == pytest.approx(0, abs=1e-4)

    for bad, said in (("smiling", "NAME=STRENGTH"), ("age=nan", "NAME=STRENGTH"), ("beard=1", "'beard'; the labels have age, hat")):
        refused = w2w(*words, "--attribute", bad)
        assert refused.code == 2 and refused.err.count("error: ") == 1 and said in refused.err
    assert "twice" in w2w(*words, "--attribute", "age=1", "--attribute", "age=2").err
    assert "'nobody'" in w2w(*words, "--attribute", "age=1", "--id", "nobody").err
