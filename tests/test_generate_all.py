"""`w2w generate --all` draws every model of a dataset or of a file of points, and resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ended
from w2wpp.fleet import pictures_of_all

W2w = Callable[..., Ended]


def pictures(out: Path) -> dict[str, bytes]:
    """Every picture of a folder, by its path there."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_all_are_drawn_and_a_run_that_was_cut_short_resumes_to_the_same_bytes(
    w2w: W2w, dataset: Path, pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_of_all, "TOGETHER", 6)  # three models
    common = ["--n", 2, "--solver-steps", 2, "--base", pico, "--device", "cpu", "--runs", tmp_path / "runs", "--json"]
    words, out = ["generate", "--all", "--dataset", dataset, *common], tmp_path / "out"
    told = w2w(*words, "--out", out).json()
    assert (told["models"], told["drawn"]) == (10, 10)
    whole = pictures(out)
    assert {f"pictures/person-{i}/{seed}.png" for i in range(10) for seed in (0, 1)} <= whole.keys()
    (out / "pictures" / "person-4" / "1.png").unlink()
    assert w2w(*words, "--out", out).json()["drawn"] == 3 and pictures(out) == whole
    assert w2w(*words, "--out", out).json()["drawn"] == 0
    other = w2w(*words, "--out", out, "--guidance", 1)
    assert other.code == 2 and "other models or words" in other.err
    assert pictures(out) == whole

    alone = w2w("generate", "--dataset", dataset, "--id", "person-4", *common, "--out", tmp_path / "alone").json()
    assert Path(alone["sheet"]).parent.joinpath("pictures", "person-4", "0.png").exists()
    space = tmp_path / "pca.safetensors"
    w2w("fit", "pca", dataset, "--m", 3, "--out", space, "--runs", tmp_path / "runs")
    w2w("sample", space, "--n", 4, "--pictures", 1, *common[2:], "--out", tmp_path / "drawn").json()
    of_points = [
        "generate",
        "--all",
        "--points",
        tmp_path / "drawn" / "points.safetensors",
        "--space",
        space,
        *common,
        "--out",
        tmp_path / "points",
    ]
    assert w2w(*of_points).json()["models"] == 4
    assert len(list((tmp_path / "points" / "pictures").rglob("*.png"))) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--all"], "Give one of the two"),
        (["--all", "--dataset", "tiny-faces", "--points", "x"], "Give one of the two"),
        (["--all", "--dataset", "tiny-faces", "--id", "a"], "--id was given with --all"),
        (["--all", "--dataset", "tiny-faces", "--overwrite"], "--overwrite was given with --all"),
        (["--dataset", "tiny-faces", "--ray", "auto"], "--ray was given without --all"),
        (["--all", "--dataset", "tiny-faces", "--space", "tiny-faces"], "without a point in it. Give --points"),
    ],
)
def test_what_does_not_go_with_all_is_one_line(w2w: W2w, words: list[str], said: str, tmp_path: Path) -> None:
    refused = w2w("generate", *words, "--runs", tmp_path / "runs")
    assert refused.code == 2 and said in refused.err and not (tmp_path / "runs").exists()
