"""How many people share a pass of training follows their memory, and nothing else follows that."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import write_faces
from w2wpp.adapters import group, population
from w2wpp.adapters.group import kept_bytes, people_at_a_time
from w2wpp.adapters.population import train_population
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.model import BaseModel
from w2wpp.photos.alignment import AlignedFaces

OPTIONS = AdapterOptions(prompt="photo of sks person", prior_prompt="photo of a person", steps=2, batch=2, prior_weight=0, lr=1e-2)


def test_a_pass_holds_as_many_as_fit(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float32")
    layout = OPTIONS.layout_of(base)
    a_person = kept_bytes(base, layout, OPTIONS, 2) - kept_bytes(base, layout, OPTIONS, 1)
    assert kept_bytes(base, layout, OPTIONS, 5) == pytest.approx(kept_bytes(base, layout, OPTIONS, 1) + 4 * a_person, rel=0.02)
    monkeypatch.setattr(group, "ROOM", 5 * a_person)
    assert people_at_a_time(base, layout, OPTIONS) == 5
    assert people_at_a_time(base, layout, replace(OPTIONS, batch=4)) == 2  # twice the pictures, half of the people
    monkeypatch.setenv("W2WPP_PRECISION", "bfloat16")
    assert 5 < people_at_a_time(base, layout, OPTIONS) <= 10  # numbers of half the size
    monkeypatch.setattr(group, "ROOM", 1)
    assert people_at_a_time(base, layout, OPTIONS) == 1


def test_the_adapters_do_not_depend_on_it(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float32")
    faces = AlignedFaces.load(write_faces(tmp_path / "faces", {f"Person_{i}": 1 for i in range(5)}))
    people = list(faces.people)
    layout = OPTIONS.layout_of(base)
    monkeypatch.setattr(group, "ROOM", 2 * (kept_bytes(base, layout, OPTIONS, 2) - kept_bytes(base, layout, OPTIONS, 1)))
    printed: list[str] = []
    monkeypatch.setattr(population, "track", lambda items, *words, **_: (printed.extend(words), items)[1])
    chosen = train_population(base, faces, people, tmp_path / "chosen", OPTIONS, dtype=torch.float32)
    assert "groups of 2" in printed
    given = train_population(base, faces, people, tmp_path / "given", OPTIONS, group=5, dtype=torch.float32)
    assert chosen.ids == given.ids
    torch.testing.assert_close(chosen.rows(), given.rows(), atol=2e-5, rtol=1e-4)
