"""Paired differences between rows of table 1."""

import pytest

from w2wpp.evaluation.paired import compared, paired


def row(method: str, space: str | None, m: int | None, scores: dict[str, float | None]) -> dict[str, object]:
    people = [{"person": person, "id_other": score, "id_input": score} for person, score in scores.items()]
    return {"method": method, "space": space, "m": m, "people": people}


PCA = row("inversion, published", "pca", 32, {"Ada": 0.1, "Grace": 0.3, "Ida": 0.2, "Unseen": None})
VAE = row("encoder", "vae", 32, {"Ida": 0.3, "Ada": 0.2, "Grace": 0.5, "Other": 0.9})


def test_differences_are_between_the_same_people() -> None:
    found = paired(VAE, PCA, "id_other")
    assert found["n"] == 3
    assert found["difference"] == pytest.approx(0.4 / 3)
    assert found["se"] == pytest.approx(0.1 / 3)
    assert found["p"] == pytest.approx(0.0572, abs=1e-3)  # t = 4 with 2 degrees of freedom


def test_rows_are_held_against_pca_of_their_own_m() -> None:
    other_m, base = row("inversion, published", "pca", 128, {"Ada": 0.1}), row("base", None, None, {"Ada": 0.1})
    rows = compared([base, PCA, other_m, VAE])
    assert [set(found.get("against", {})) for found in rows] == [set(), set(), set(), {"inversion, published"}]
    assert compared([base, other_m, row("encoder", "vae", 128, {"Ada": 0.4})])[2]["against"]["inversion, published"]["id_other"] == {
        "difference": pytest.approx(0.3),
        "se": None,
        "p": None,
        "n": 1,
    }
