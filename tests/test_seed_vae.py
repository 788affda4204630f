"""What Weights2Weights++'s code has and ours did not: its vanilla VAE, its second model, their schedules, and `vae.pt`."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import Ended
from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats.seed_vae import read_vae, write_vae
from w2wpp.lora.layout import Layout
from w2wpp.spaces.base import Space
from w2wpp.spaces.kl_schedule import kl_weight_at
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import PRESETS, VaeOptions
from w2wpp.spaces.vae_training import Critic

WIDTHS, M = (12, 8, 6), 4


def seed_network(d: int, normed: bool = False) -> nn.ModuleDict:
    """The vanilla VAE's modules by its own names, with numbers that tell them apart."""
    torch.manual_seed(0)

    def hidden(here: int, there: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(here, there), *([nn.BatchNorm1d(there)] if normed else []), nn.LeakyReLU())

    sizes = (d, *WIDTHS)
    back = sizes[::-1]
    network = nn.ModuleDict(
        {
            "encoder": nn.Sequential(*(hidden(a, b) for a, b in pairwise(sizes))),
            "fc_mu": nn.Linear(WIDTHS[-1], M),
            "fc_var": nn.Linear(WIDTHS[-1], M),
            "decoder_input": nn.Linear(M, WIDTHS[-1]),
            "decoder": nn.Sequential(*(hidden(a, b) for a, b in pairwise(back[:-1]))),
            "final_layer": nn.Sequential(nn.Linear(WIDTHS[0], d), nn.Tanh()),
        }
    )
    if normed:
        network.train()
        network["encoder"](torch.randn(16, d))
        network["decoder"](torch.randn(16, WIDTHS[-1]))
    return network.eval()


def decoded(network: nn.ModuleDict, z: Tensor) -> Tensor:
    return network["final_layer"](network["decoder"](network["decoder_input"](z))) / 10


@pytest.mark.parametrize("normed", [False, True])
def test_vae_pt_encodes_and_decodes_as_its_own_network(layout: Layout, tmp_path: Path, normed: bool) -> None:
    network = seed_network(layout.d, normed)
    torch.save({"model_state_dict": network.state_dict()} if normed else network.state_dict(), tmp_path / "vae.pt")
    space = read_vae(tmp_path / "vae.pt", layout, "base")
    z, weights = torch.randn(3, M), 0.05 * torch.randn(3, layout.d)
    torch.testing.assert_close(space.decode(z), decoded(network, z), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(space.encode(weights), network["fc_mu"](network["encoder"](10 * weights)), atol=1e-5, rtol=1e-4)
    spread = space.posterior(space.scaled(weights))[1]
    torch.testing.assert_close(spread, network["fc_var"](network["encoder"](10 * weights)), atol=1e-5, rtol=1e-4)
    if not normed:
        write_vae(tmp_path / "back.pt", space)
        again = torch.load(tmp_path / "back.pt", weights_only=True)
        assert again.keys() == network.state_dict().keys()
        assert all(torch.equal(again[key], value) for key, value in network.state_dict().items())


def test_no_activation_stands_after_the_latents(layout: Layout) -> None:
    """z and -z differ by a sign before the first hidden layer's successor: the first layer is linear."""
    space = VaeSpace(layout, "base", VaeOptions(m=M, widths=WIDTHS, variant="vanilla"))
    kinds = [type(module).__name__ for module in space.decoder.children()]
    assert kinds == ["Linear", "Linear", "LeakyReLU", "Linear", "LeakyReLU", "Linear"]


def test_presets_are_the_reports_and_the_scripts() -> None:
    report, script, second = (PRESETS[name] for name in ("report", "script", "second"))
    assert (report.widths, report.m, report.epochs, report.variant) == ((4096, 2048, 1024), 512, 12, "vanilla")
    assert script.widths == (2048, 1024)
    found = [round(kl_weight_at(script, epoch), 6) for epoch in range(12)]
    assert found == [0, 0, 0, 0, 0, 0.001, 0.0018, 0.0026, 0.0034, 0.0042, 0.005, 0.005]
    assert (second.m, second.adversarial_weight, second.variant) == (1024, 0.1, "second")


def test_the_second_model_sees_the_data_in_0_to_1_and_its_critic_answers_in_logits(layout: Layout, tmp_path: Path) -> None:
    weights = 0.02 * torch.randn(20, layout.d, generator=torch.Generator().manual_seed(1)) + 0.01
    options = VaeOptions(m=3, widths=(8,), variant="second", epochs=2, batch=8, warmup_epochs=0, kl_weight=0.1, adversarial_weight=0.1)
    space = VaeSpace.fit(weights, options, layout=layout, base_id="base")
    x = space.scaled(weights)
    assert x.min() == pytest.approx(0, abs=1e-6) and x.max() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(
        space.decode_scaled(torch.zeros(1, 3)) / space.options.scale + space.options.shift, space.decode(torch.zeros(1, 3))
    )
    critic = Critic.of(space)
    log2 = torch.log(torch.tensor(2.0))
    before = [critic.learn(x, 1 - x) for _ in range(30)]
    assert before[0] == pytest.approx(float(2 * log2), rel=0.3) and before[-1] < before[0]
    assert float(critic.suspicion(1 - x)) > float(critic.suspicion(x))
    space.save(tmp_path / "second.safetensors")
    again = Space.load(tmp_path / "second.safetensors")
    assert isinstance(again, VaeSpace) and again.options == space.options
    assert all(torch.equal(tensor, space.state_dict()[name]) for name, tensor in again.state_dict().items())
    # Not to the last bit: that hangs on where in memory the weights lie.
    torch.testing.assert_close(again.decode(torch.ones(1, 3)), space.decode(torch.ones(1, 3)))
    assert len(space.history["critic"]["train"]) == 2


def test_vae_pt_through_the_command(w2w: Callable[..., Ended], pico: Path, layout: Layout, dataset: Path, tmp_path: Path) -> None:
    common = ("--runs", tmp_path / "runs", "--json")
    network = seed_network(layout.d)
    torch.save(network.state_dict(), tmp_path / "vae.pt")
    found = w2w("import", tmp_path / "vae.pt", "--out", tmp_path / "vae.safetensors", "--base", pico, *common).json()
    assert (found["kind"], found["m"]) == ("vae", M)
    w2w("export", "--space", tmp_path / "vae.safetensors", "--format", "vae", "--out", tmp_path / "back.pt", *common).json()
    assert torch.equal(torch.load(tmp_path / "back.pt", weights_only=True)["fc_mu.bias"], network["fc_mu"].bias)
    fitted = tmp_path / "fitted.safetensors"
    w2w("fit", "vae", dataset, "--preset", "script", "--m", 3, "--widths", "8,6", "--epochs", 1, "--out", fitted, *common).json()
    space = Space.load(fitted)
    assert isinstance(space, VaeSpace)
    assert (space.options.variant, space.options.schedule, space.options.widths) == ("vanilla", "ramp", (8, 6))
    ended = w2w("export", "--space", fitted, "--format", "kohya", "--out", tmp_path / "x.safetensors", *common)
    assert ended.code == 2


def test_what_is_no_vanilla_vae_is_one_line(layout: Layout, tmp_path: Path) -> None:
    state = seed_network(layout.d).state_dict()
    torch.save({key: value for key, value in state.items() if "fc_var" not in key}, tmp_path / "vae.pt")
    with pytest.raises(W2WError, match="lacks 'fc_var"):
        read_vae(tmp_path / "vae.pt", layout, "base")
    torch.save(seed_network(7).state_dict(), tmp_path / "vae.pt")
    with pytest.raises(W2WError, match="VAE of 7 weights"):
        read_vae(tmp_path / "vae.pt", layout, "base")
    with pytest.raises(W2WError, match="vanilla VAE of weights x 10"):
        write_vae(tmp_path / "out.pt", VaeSpace(layout, "base", VaeOptions(m=3, widths=(4,))))
