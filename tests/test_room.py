"""How much is done at a time follows the memory there is, halves where there is less, and changes no result."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import write_faces
from w2wpp.adapters import group, group_training
from w2wpp.adapters.population import train_population
from w2wpp.adapters.train import AdapterOptions
from w2wpp.base import model as model_of
from w2wpp.base import room
from w2wpp.base.denoising import denoising_loss
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.memory import free_bytes, in_groups, ran_out
from w2wpp.lora.batched import initial_weights
from w2wpp.lora.layout import Layout
from w2wpp.photos.alignment import AlignedFaces

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
OPTIONS = AdapterOptions(prompt="photo of sks person", prior_prompt="photo of a person", steps=2, batch=2, prior_weight=0, lr=1e-2)


def test_groups_halve_where_memory_runs_out_and_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[tuple[int, int]] = []

    def work(s: slice) -> range:
        tried.append((s.start, s.stop))
        if s.stop - s.start > 3:
            raise torch.OutOfMemoryError("CUDA out of memory") if s.start else RuntimeError(NO_MEMORY)
        return range(s.start, s.stop)

    assert [i for part in in_groups(10, 8, work, "people") for i in part] == list(range(10))
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert capsys.readouterr().err.splitlines()[-1] == "note: memory ran out; the work goes on with 2 people at a time."


def test_one_too_many_is_an_error_and_other_errors_are_their_own() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(W2WError, match="one alone of people"):
        list(in_groups(3, 2, lambda s: fail(RuntimeError(NO_MEMORY)), "people"))
    with pytest.raises(RuntimeError, match="shape"):
        list(in_groups(3, 2, lambda s: fail(RuntimeError("shape mismatch")), "people"))
    assert ran_out(MemoryError()) and not ran_out(ValueError("out of memory"))


def test_a_real_refusal_is_known_and_free_memory_is_counted() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(refused.value)
    assert 2**24 < free_bytes() < 2**50


def test_pictures_do_not_depend_on_how_many_are_drawn_at_a_time(
    base: BaseModel, layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = initial_weights(layout) * 0.1
    draw = lambda: base.generate("photo of sks person", range(5), layout=layout, weights=weights, steps=2)  # noqa: E731
    whole = draw()
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room, "free_bytes", lambda device: 4 * 2**30)
    monkeypatch.setitem(base.__dict__, "picture_bytes", 2**30)
    assert room.pictures_at_a_time(base, 5) == 2
    assert "2 of 5 pictures at a time: one takes 1.0 GiB, and 4.0 are free" in capsys.readouterr().err
    solve, failed = BaseModel._solve, []

    def refused(self: BaseModel, noise: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(noise) > 1:
            failed.append(len(noise))
            raise RuntimeError(NO_MEMORY)
        return solve(self, noise, *rest)  # type: ignore[arg-type]

    few = draw()
    monkeypatch.setattr(model_of.BaseModel, "_solve", refused)
    halved = draw()
    assert failed == [2]
    for other in (few, halved):
        assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(whole, other, strict=True)) <= 1


def test_what_a_picture_takes_is_measured(base: BaseModel) -> None:
    if room._resident():
        with room.peak(torch.device("cpu")) as taken:
            held = torch.ones(2**25)
            import time

            time.sleep(0.05)
            del held
        assert taken[0] > 2**26
    assert room.picture_bytes(base) >= 0


def test_a_training_step_in_little_memory_is_the_same_step(pico: Path, base: BaseModel, layout: Layout) -> None:
    lean = BaseModel.load(pico, device="cpu", low_memory=True)
    draw = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(3, layout.d, generator=draw)
    latents, noise = torch.randn(2, 3, 2, *base.latent_shape, generator=draw)
    timesteps = torch.tensor([[10, 500]] * 3)
    context = base.encode_text(["photo of sks person"])[0].float()
    found, kept = [], []
    for one in (base, lean):
        weights, held = start.clone().requires_grad_(True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: (held.append(t.numel()), t)[1], lambda t: t):
            loss = denoising_loss(one, layout, weights, latents, context, timesteps, noise)
        loss.sum().backward()
        found.append((loss.detach(), weights.grad))
        kept.append(sum(held))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-9)
    assert found[0][1].abs().sum() > 0 and kept[1] < kept[0] / 2
    assert not any(module._forward_hooks for module in lean.pipeline.unet.modules())


def test_people_halve_too_and_their_adapters_stay_the_same(tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = AlignedFaces.load(write_faces(tmp_path / "faces", {f"Person_{i}": 1 for i in range(5)}))
    whole = train_population(base, faces, list(faces.people), tmp_path / "whole", OPTIONS, group=5, dtype=torch.float32)
    train = group_training.train_adapters

    def refused(base: BaseModel, layout: Layout, latents: list, *rest: object, **more: object) -> object:
        if len(latents) > 2:
            raise RuntimeError(NO_MEMORY)
        return train(base, layout, latents, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(group_training, "train_adapters", refused)
    halved = train_population(base, faces, list(faces.people), tmp_path / "halved", OPTIONS, group=5, dtype=torch.float32)
    assert halved.ids == whole.ids
    torch.testing.assert_close(halved.rows(), whole.rows(), atol=2e-5, rtol=1e-4)


def test_two_people_are_not_tried_where_one_fills_the_room(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    kept = group.kept_bytes
    monkeypatch.setattr(group, "kept_bytes", lambda *words: (tried.append(words[-1]), kept(*words))[1])
    monkeypatch.setattr(group, "ROOM", 1)
    assert group.people_at_a_time(base, OPTIONS.layout_of(base), OPTIONS) == 1 and tried == [1]
    monkeypatch.setattr(group, "kept_bytes", lambda *words: (_ for _ in ()).throw(RuntimeError(NO_MEMORY)))
    with pytest.raises(W2WError, match="--low-memory"):
        group.people_at_a_time(base, OPTIONS.layout_of(base), OPTIONS)


def test_a_base_is_loaded_in_the_precision_asked_for(pico: Path) -> None:
    half = BaseModel.load(pico, device="cpu", dtype=torch.bfloat16)
    parts = (half.pipeline.unet, half.pipeline.vae, half.pipeline.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    assert np.isfinite(half.generate("photo of sks person", [0], steps=2)[0]).all()
