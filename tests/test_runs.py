"""Run folders: numbered, complete, and honest about runs that did not end well."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from w2wpp.common.errors import W2WError
from w2wpp.common.runs import finish, new_run, newest, read_results


@dataclass
class Options:
    widths: tuple[int, ...] = (8, 4)
    lr: float = 1e-4


def test_folders_are_numbered_and_hold_the_resolved_options(tmp_path: Path) -> None:
    first = new_run(tmp_path, "fit-pca", {"m": 4})
    second = new_run(tmp_path, "fit-vae", {"out": Path("a/b"), "seed": 3, "options": Options()})
    assert [first.name, second.name] == ["0001-fit-pca", "0002-fit-vae"]
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert config["options"] == {"out": "a/b", "seed": 3, "options": {"widths": [8, 4], "lr": 1e-4}}
    assert {"w2wpp", "torch", "diffusers"} <= set(config["versions"])


def test_runs_started_together_never_share_a_number(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda i: new_run(tmp_path, f"verb-{i % 3}", {}), range(24)))
    assert len({folder.name[:4] for folder in folders}) == 24


def test_only_a_finished_run_has_results(tmp_path: Path) -> None:
    done = new_run(tmp_path, "demo", {})
    finish(done, {"score": 0.5, "file": Path("x.png")})
    new_run(tmp_path, "demo", {})
    assert newest(tmp_path, "demo") == done
    assert read_results(done) == {"score": 0.5, "file": "x.png"}
    assert "finished" in (done / "log.txt").read_text()
    with pytest.raises(W2WError, match="no finished run of evaluate"):
        newest(tmp_path, "evaluate")


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(W2WError, match="cannot make a run folder"):
        new_run(tmp_path / "file", "demo", {})
