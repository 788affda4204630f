"""Adam within half of its memory: the steps of Adam, resumed as Adam, taken where Adam would not fit."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from w2wpp.common import memory
from w2wpp.spaces import lean_adam, vae_training
from w2wpp.spaces.lean_adam import LeanAdam, bytes_needed
from w2wpp.spaces.networks import layers
from w2wpp.spaces.vae import VaeSpace

from test_spaces import ALIVE, BASE, LAYOUT, SMALL, adapters  # isort: skip

TOLERANCE = 0.02  # of the squared error that a training ends with, and of the way that its parameters went


def trained(net: nn.Module, lean: "torch.dtype | None", steps: int) -> list[Tensor]:
    """The parameters of a copy of `net` after steps of Adam, or of LeanAdam with moments of a dtype."""
    net = copy.deepcopy(net)
    parameters = list(net.parameters())
    optimiser = LeanAdam(parameters, 1e-2, moments=lean) if lean else torch.optim.Adam(parameters, lr=1e-2)
    for step in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        (net(x) - x.flip(1)).square().mean().backward()
        if isinstance(optimiser, torch.optim.Adam):
            optimiser.step()
            optimiser.zero_grad()
        assert all(p.grad is None for p in parameters)
    return [p.detach() for p in parameters]


def test_its_steps_are_those_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_adam, "PIECE", 50)  # fewer than a layer has
    torch.manual_seed(0)
    net = layers((6, 32, 6))
    plain = trained(net, None, 60)
    torch.testing.assert_close(trained(net, torch.float32, 60), plain, rtol=1e-5, atol=1e-6)
    went = sum(float((p - q.detach()).square().sum()) for p, q in zip(plain, net.parameters(), strict=True)) ** 0.5
    off = sum(float((p - q).square().sum()) for p, q in zip(plain, trained(net, torch.bfloat16, 60), strict=True)) ** 0.5
    assert 0 < off < TOLERANCE * went


def test_rounding_at_random_loses_nothing_on_average() -> None:
    x = torch.tensor([1.001, -0.3333, 3e-7, 0.0, 1.0])
    noise = lean_adam._noise(20_000, torch.Generator().manual_seed(0)) & 0xFFFF
    rounded = torch.stack([lean_adam._rounded(x[i].expand(20_000).contiguous(), noise).float() for i in range(len(x))])
    torch.testing.assert_close(rounded.mean(1), x, rtol=1e-4, atol=1e-12)
    assert len(rounded[0].unique()) == 2 and len(rounded[4].unique()) == 1


def test_a_vae_in_little_memory_ends_where_adams_does(tmp_path: Path) -> None:
    weights = adapters(80)
    fits = [VaeSpace.fit(weights, ALIVE, layout=LAYOUT, base_id=BASE, device="cpu", low_memory=low) for low in (False, True)]
    plain, lean = (fit.history["test"]["recon"] for fit in fits)
    assert lean == pytest.approx(plain, rel=TOLERANCE)
    assert plain < fits[0].history["recon"]["train"][0] / 2  # both have learned something
    z = fits[1].encode(weights).requires_grad_(True)
    before = copy.deepcopy(fits[1].state_dict())
    fits[1].decode(z).sum().backward()  # takes no step any more
    assert all(torch.equal(value, before[name]) for name, value in fits[1].state_dict().items())


@pytest.mark.parametrize("variant", ["plain", "residual-adversarial"])
def test_resuming_equals_training_unbroken(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(SMALL, variant=variant)

    def fit(checkpoint: Path | None, low_memory: bool = True) -> VaeSpace:
        return VaeSpace.fit(adapters(), options, layout=LAYOUT, base_id=BASE, device="cpu", checkpoint=checkpoint, low_memory=low_memory)

    whole = fit(None)
    save = vae_training.save_checkpoint

    def stop(path: Path, parts: dict, step: int) -> None:
        save(path, parts, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(vae_training, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "state.pt")
    monkeypatch.undo()
    resumed = fit(tmp_path / "state.pt")
    assert resumed.history == whole.history
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    monkeypatch.setattr(vae_training, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "other.pt")
    monkeypatch.undo()
    went_on = fit(tmp_path / "other.pt", low_memory=False)  # the machine has more memory now
    assert went_on.history["test"]["recon"] == pytest.approx(whole.history["test"]["recon"], rel=TOLERANCE)


def test_it_is_taken_where_adam_would_not_fit_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    space = VaeSpace(LAYOUT, BASE, SMALL)
    plain, lean = bytes_needed(list(space.parameters()))
    assert lean < plain / 2
    monkeypatch.setattr(vae_training, "free_bytes", lambda device: plain)
    assert isinstance(vae_training._optimiser(space, None), torch.optim.Adam)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(vae_training, "free_bytes", lambda device: plain - 1)
    assert isinstance(vae_training._optimiser(space, None), LeanAdam)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "bfloat16" in told
    assert isinstance(vae_training._optimiser(space, False), torch.optim.Adam)


def test_the_seeds_vae_at_its_size_needs_less_than_12_gib() -> None:
    with torch.device("meta"):
        halves = layers((99_648, 4096, 2048, 1024, 1024)), layers((512, 1024, 2048, 4096, 99_648))
    parameters = [p for half in halves for p in half.parameters()]
    own = 4 * sum(p.numel() for p in parameters)
    plain, lean = bytes_needed(parameters)
    assert (own + plain) / memory.GIB > 12 and (own + lean) / memory.GIB < 8
