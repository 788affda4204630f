"""Rows of table 1 against each other, person by person: a paired test says more than two means with their errors."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import ttest_rel

BASELINE = "pca"  # the space that the others are held against
COMPARED = ("id_other", "id_input")


def compared(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with `against`: its differences to the rows of PCA at its m, by their methods.

    Means over the people whom both rows scored, with standard error and the p of a two-sided paired t-test.
    """
    found = []
    for row in rows:
        others = [other for other in rows if row["m"] and other is not row and (other["space"], other["m"]) == (BASELINE, row["m"])]
        against = {other["method"]: {score: paired(row, other, score) for score in COMPARED} for other in others}
        found.append({**row, **({"against": against} if against else {})})
    return found


def paired(row: Mapping[str, Any], other: Mapping[str, Any], score: str) -> dict[str, Any]:
    """The difference `row` - `other` of one score: {"difference", "se", "p", "n"}; None where there are too few people."""
    theirs = {person["person"]: person[score] for person in other["people"]}
    pairs = [(p[score], theirs.get(p["person"])) for p in row["people"]]
    both = [(mine, their) for mine, their in pairs if mine is not None and their is not None]
    differences = [mine - their for mine, their in both]
    n = len(differences)
    if n < 2:
        return {"difference": differences[0] if n else None, "se": None, "p": None, "n": n}
    p = float(ttest_rel([mine for mine, _ in both], [their for _, their in both]).pvalue)
    return {"difference": fmean(differences), "se": stdev(differences) / math.sqrt(n), "p": p if math.isfinite(p) else None, "n": n}
