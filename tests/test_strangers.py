"""Strangers' LoRA files: what each tool writes comes in with its exact product, checked by a forward pass; the rest is named."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.canonical import to_weights
from w2wpp.exchange.formats.first_generation import text_orders, unet_orders
from w2wpp.exchange.formats.kohya import write_kohya
from w2wpp.exchange.formats.lora_file import read_lora
from w2wpp.exchange.formats.peft import CONFIG, write_peft
from w2wpp.lora.batched import adapted, submodule
from w2wpp.lora.layout import Layout, layout_of, part_of, sides_of

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def denoiser(base: BaseModel) -> Denoiser:
    return Denoiser.of(base)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


@torch.no_grad()
def output(base: BaseModel, layout: Layout | None = None, weights: Tensor | None = None) -> Tensor:
    """What the UNet says of fixed noise, with the text read by the text encoder; both adapted."""
    x = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    context = base.encode_text(["photo of sks person"] * 2, layout, weights)
    if layout is None or weights is None:
        return base.pipeline.unet(x, torch.tensor([100, 700]), context).sample
    with adapted(base.pipeline.unet, layout, weights):
        return base.pipeline.unet(x, torch.tensor([100, 700]), context).sample


@contextmanager
def merged(base: BaseModel, deltas: dict[str, Tensor]) -> Iterator[None]:
    """While open, these layers' own weights are changed: what every LoRA means."""
    weights = {}
    for layer, delta in deltas.items():
        part = part_of(layer)
        weight = submodule(getattr(base.pipeline, part or "unet"), layer, part).get_parameter("weight")
        weights[layer] = (weight, weight.detach().clone())
        weight.data += delta.reshape(weight.shape)
    try:
        yield
    finally:
        for weight, before in weights.values():
            weight.data.copy_(before)


def some(denoiser: Denoiser, *endings: str) -> list[str]:
    return [layer for layer in denoiser.layers if layer.endswith(endings)]


KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight"}


def kohya_stem(layer: str) -> str:
    part = part_of(layer)
    return ("lora_te_" if part else "lora_unet_") + layer.removeprefix(f"{part}.").replace(".", "_")


def plain(denoiser: Denoiser, layer: str, r: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    """A LoRA of a layer as kohya writes it, and what it adds to the weight at alpha 3."""
    module, (inputs, outputs, kernel) = denoiser.layers[layer], sides_of(denoiser.layers[layer])
    down, up = drawn(r, inputs), drawn(outputs, r, seed=1)
    if kernel:
        down, up = down.view(r, module.in_channels, *kernel), up[:, :, None, None]
    return {"down": down, "up": up}, 3 / r * up.flatten(1) @ down.flatten(1)


def tucker(denoiser: Denoiser, layer: str) -> tuple[dict[str, Tensor], Tensor]:
    module = denoiser.layers[layer]
    down, mid, up = drawn(2, module.in_channels, 1, 1), drawn(2, 2, *module.kernel_size), drawn(module.out_channels, 2, 1, 1, seed=1)
    return {"down": down, "mid": mid, "up": up}, 1.5 * torch.einsum("oi,ijkl,jc->ockl", up[:, :, 0, 0], mid, down[:, :, 0, 0])


def loha(denoiser: Denoiser, layer: str) -> tuple[dict[str, Tensor], Tensor]:
    inputs, outputs, _ = sides_of(denoiser.layers[layer])
    parts = {f"hada_w{i}_{end}": drawn(*shape, seed=i) for i in (1, 2) for end, shape in (("a", (outputs, 2)), ("b", (2, inputs)))}
    return parts, 1.5 * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])


def lokr(denoiser: Denoiser, layer: str) -> tuple[dict[str, Tensor], Tensor]:
    inputs, outputs, _ = sides_of(denoiser.layers[layer])
    parts = {"lokr_w1": drawn(4, 4), "lokr_w2_a": drawn(outputs // 4, 2), "lokr_w2_b": drawn(2, inputs // 4, seed=1)}
    return parts, 1.5 * torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])


def dora(denoiser: Denoiser, layer: str) -> tuple[dict[str, Tensor], Tensor]:
    parts, delta = plain(denoiser, layer)
    weight = denoiser.weight(layer)
    whole = weight + delta
    m = 1.2 * weight.norm(dim=1)
    return {**parts, "dora_scale": m[:, None]}, whole * (m / whole.norm(dim=1))[:, None] - weight


CASES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "kohya's default, 1x1 convolutions and the text encoder": (plain, ("to_q", "to_out.0", "proj_in", "proj_out", "fc1", "q_proj")),
    "LoCon": (plain, ("conv1", "conv", "conv_shortcut", "time_emb_proj")),
    "LoCon with lora_mid": (tucker, ("conv1", "conv2")),
    "LoHa": (loha, ("to_q", "conv1")),
    "LoKr": (lokr, ("to_q", "to_v", "q_proj")),
    "DoRA": (dora, ("to_q", "proj_in")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_each_kind_comes_in_exactly(base: BaseModel, denoiser: Denoiser, tmp_path: Path, case: str) -> None:
    make, endings = CASES[case]
    tensors: dict[str, Tensor] = {}
    deltas = {}
    for layer in some(denoiser, *(f".{ending}" for ending in endings)):
        parts, deltas[layer] = make(denoiser, layer)
        tensors |= {f"{kohya_stem(layer)}{KOHYA.get(role, '.' + role)}": tensor.contiguous() for role, tensor in parts.items()}
        tensors[f"{kohya_stem(layer)}.alpha"] = torch.tensor(3.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", denoiser)
    layout = layout_of(denoiser.layers, set(lora.down), lora.rank, float(lora.rank))
    row, error = to_weights(lora, layout)
    assert set(layout.modules) == set(deltas) and error < 1e-4
    assert Layout.from_json(layout.to_json()) == layout
    with merged(base, deltas):
        wanted = output(base)
    assert (wanted - output(base)).abs().max() > 1e-2
    torch.testing.assert_close(output(base, layout, row[None]), wanted, atol=2e-4, rtol=0)
    two = output(base, layout, torch.stack([torch.zeros_like(row), row]))  # two adapters in one batch
    torch.testing.assert_close(two, torch.stack([output(base)[0], wanted[1]]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
def test_export_gives_back_convolutions_and_the_text_encoder(
    w2w: Command, base: BaseModel, denoiser: Denoiser, pico: Path, tmp_path: Path, form: str
) -> None:
    tensors: dict[str, Tensor] = {}
    # diffusers knows kohya's text encoder by its out_proj.
    for layer in some(denoiser, ".to_q", ".proj_in", ".conv1", ".fc1", ".q_proj", ".out_proj"):
        parts, _ = plain(denoiser, layer)
        tensors |= {f"{kohya_stem(layer)}{KOHYA[role]}": tensor.contiguous() for role, tensor in parts.items()}
    save_file(tensors, tmp_path / "in.safetensors")
    common = ("--base", pico, "--runs", tmp_path / "runs", "--json")
    w2w("import", tmp_path / "in.safetensors", "--out", tmp_path / "data", *common).json()
    data = WeightDataset.load(tmp_path / "data")
    out = tmp_path / ("out" if form == "peft" else "out.safetensors")
    w2w("export", "--dataset", tmp_path / "data", "--format", form, "--out", out, *common).json()
    again = read_lora(out, denoiser)
    torch.testing.assert_close(to_weights(again, data.layout)[0], data.rows()[0], atol=1e-5, rtol=1e-4)
    if form == "kohya":
        from safetensors import safe_open

        with safe_open(out, "pt") as file:
            about = file.metadata()
        assert {"ss_base_model_version", "ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash"} <= set(about)
    if form != "peft":  # diffusers itself computes the same
        pipeline = StableDiffusionPipeline.from_pretrained(pico, dtype=torch.float32, safety_checker=None)
        pipeline.text_encoder.float()
        pipeline.load_lora_weights(tmp_path, weight_name=out.name)
        theirs = BaseModel(pipeline, "pico", torch.device("cpu"), torch.float32)
        torch.testing.assert_close(output(theirs), output(base, data.layout, data.rows()), atol=2e-4, rtol=0)


def test_the_first_generation_is_counted_as_it_was(base: BaseModel, denoiser: Denoiser, tmp_path: Path) -> None:
    tensors, deltas = {}, {}
    for part, order in (("unet", unet_orders(denoiser.layers)[0]), ("text_encoder", text_orders(denoiser.layers)[0])):
        for i, layer in enumerate(order):
            parts, delta = plain(denoiser, layer)
            tensors |= {f"{part}:{i}:{role}": tensor for role, tensor in parts.items()}
            deltas[layer] = delta / 1.5  # its scale is 1
    first = [layer.split("blocks.0.", 2)[-1] for layer in unet_orders(denoiser.layers)[0][:9]]
    assert first[4] == "ff.net.0.proj" and first[5] == "attn2.to_q"  # diffusers of 2022 had the network between the attentions
    tensors["<s1>"] = drawn(1, 16)
    save_file(tensors, tmp_path / "old.safetensors")
    lora = read_lora(tmp_path / "old.safetensors", denoiser)
    layout = layout_of(denoiser.layers, set(lora.down), 2, 2.0)
    with merged(base, deltas):
        wanted = output(base)
    torch.testing.assert_close(output(base, layout, to_weights(lora, layout)[0][None]), wanted, atol=2e-4, rtol=0)


def test_a_folder_of_pefts_own_example_comes_in(base: BaseModel, pico: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pico, dtype=torch.float32, safety_checker=None)
    pipeline.text_encoder.float()
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "use_rslora": True, "init_lora_weights": False}
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"proj_in": 5}}
    torch.manual_seed(3)
    unet = get_peft_model(pipeline.unet, LoraConfig(target_modules=r".*attn\d\.to_q|.*proj_in|.*conv1", **options, **patterns))
    text = get_peft_model(pipeline.text_encoder, LoraConfig(target_modules=["fc1", "q_proj"], **options))
    unet.save_pretrained(tmp_path / "me" / "unet")
    text.save_pretrained(tmp_path / "me" / "text_encoder")
    theirs = output(BaseModel(pipeline, "pico", torch.device("cpu"), torch.float32))
    lora = read_lora(tmp_path / "me", denoiser)
    layout = layout_of(denoiser.layers, set(lora.down), 4, 4.0)
    torch.testing.assert_close(output(base, layout, to_weights(lora, layout)[0][None]), theirs, atol=5e-4, rtol=0)


def test_a_scale_is_never_guessed(w2w: Command, pico: Path, layout: Layout, denoiser: Denoiser, tmp_path: Path) -> None:
    tensors = {f"base_model.model.{m.name}": drawn(*m.shape) for m in layout.matrices}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(W2WError, match=r"adapter_config.json alone, and none lies beside it: put it there, or give --alpha"):
        read_lora(tmp_path / "adapter_model.safetensors", denoiser)
    assert set(read_lora(tmp_path / "adapter_model.safetensors", denoiser, alpha=16.0).scale.values()) == {16.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 16, "target_modules": ".*to_q"}))
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert set(read_lora(path, denoiser).scale.values()) == {16.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 16, "use_rslora": "false"}))
    with pytest.raises(W2WError, match="use_rslora is 'false'; true or false was expected"):
        read_lora(tmp_path, denoiser)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 16, "rank_pattern": {"(?i)to_q": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(W2WError, match="unusable rank_pattern"):
        read_lora(tmp_path, denoiser)


def bad_files(folder: Path, denoiser: Denoiser, layout: Layout) -> dict[str, str]:
    """Files that cannot be rows, and a word of what each is."""
    good = {f"unet.{m.name}": drawn(*m.shape) for m in layout.matrices}
    folder.mkdir()
    save_file(good, folder / "good.safetensors")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "page.safetensors").write_text("<!DOCTYPE html><html>Sign in</html>")
    save_file({"emb_params": drawn(2, 16)}, folder / "inversion.safetensors")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": drawn(4, 4)}, folder / "checkpoint.safetensors")
    save_file({key: value * float("nan") for key, value in good.items()}, folder / "nan.safetensors")
    save_file({key: value * ("lora_A" in key) for key, value in good.items()}, folder / "zero.safetensors")
    header = b'{"x": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 0]}}'
    (folder / "endless.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / os.fsdecode(b"latin-\xe9.safetensors")).write_bytes(whole)
    write_peft(folder / "slow", layout, drawn(layout.d), "tiny-faces")
    config = json.loads((folder / "slow" / CONFIG).read_text())
    (folder / "slow" / CONFIG).write_text(json.dumps({**config, "rank_pattern": {"(([a-z_.0-9]+)+)+!": 1}}))
    xl = {f"unet.down_blocks.9.attn2.to_k.lora_{end}.weight": drawn(*shape) for end, shape in (("A", (2, 2048)), ("B", (640, 2)))}
    save_file({**xl, "unet.x.oft_blocks": drawn(2, 2)}, folder / "xl.safetensors")
    return {
        "cut": "was cut short",
        "pointer": "Git LFS pointer",
        "page": "web page",
        "inversion": "textual inversion",
        "checkpoint": "full checkpoint",
        "nan": "not finite",
        "endless": "header is damaged",
        "pipe": "a pipe",
        "slow": "take for ever",
        "latin-\\xe9": "no UTF-8",
        "xl": "OFT.*made for Stable Diffusion XL: --base stabilityai",
    }


def test_one_bad_file_never_stops_the_others(w2w: Command, pico: Path, denoiser: Denoiser, layout: Layout, tmp_path: Path) -> None:
    wanted = bad_files(tmp_path / "in", denoiser, layout)
    common = ("--base", pico, "--runs", tmp_path / "runs")
    found = w2w("import", tmp_path / "in", "--out", tmp_path / "data", *common, "--json").json()
    assert (found["imported"], found["skipped"]) == (2, len(wanted))
    table = {row["file"].removesuffix(".safetensors"): row for row in found["files"]}
    for name, why in wanted.items():
        assert table[name]["became"] == "skipped"
        assert re.search(why, table[name]["note"]), table[name]
    assert "zero" in table["zero"]["note"] and table["zero"]["became"] == "imported"
    assert WeightDataset.load(tmp_path / "data").ids == ["good", "zero"]
    strict = w2w("import", tmp_path / "in", "--strict", "--out", tmp_path / "no", *common)
    assert strict.code == 2 and not (tmp_path / "no").exists()
    shown = w2w("import", tmp_path / "in", "--out", tmp_path / "again", *common)
    assert "pointer.safetensors" in shown.err and "git lfs pull" in shown.err


def test_each_layout_becomes_a_dataset(w2w: Command, pico: Path, denoiser: Denoiser, layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, endings in (("a", ("lora_A", "lora_B")), ("b", ("lora_A", "lora_B")), ("thin", ("to_q",))):
        tensors = {f"unet.{m.name}": drawn(*m.shape) for m in layout.matrices if any(ending in m.name for ending in endings)}
        save_file(tensors, tmp_path / "in" / f"{name}.safetensors")
    words = ("import", tmp_path / "in", "--out", tmp_path / "data", "--base", pico, "--runs", tmp_path / "runs", "--json")
    found = w2w(*words).json()
    folders = [Path(info["folder"]) for info in found["datasets"]]
    assert [WeightDataset.load(folder).ids for folder in folders] == [["a", "b"], ["thin"]]
    assert w2w(*words).json()["already_there"] == 3  # again: each finds its dataset
    one = w2w(*words[:3], tmp_path / "one", *words[4:], "--strict").json()
    assert one["n"] == 3


def test_an_offline_hub_id_says_that_the_network_is_absent(w2w: Command, layout: Layout, tmp_path: Path) -> None:
    save_file({f"unet.{m.name}": drawn(*m.shape) for m in layout.matrices}, tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    words = ("import", tmp_path / "a.safetensors", "--out", tmp_path / "data", "--runs", tmp_path / "runs")
    ended = w2w(*words, "--base", "nobody/no-such-model")
    assert ended.code == 2 and "network is absent" in ended.err
    found = w2w(*words)
    assert found.code == 2 and "Stable Diffusion 1.5" in found.err and "network is absent" in found.err


def test_integers_and_strange_alphas(denoiser: Denoiser, tmp_path: Path) -> None:
    layer = some(denoiser, ".to_q")[0]
    parts, delta = plain(denoiser, layer)
    tensors = {f"{kohya_stem(layer)}{KOHYA[role]}": tensor for role, tensor in parts.items()}
    path = tmp_path / "lora.safetensors"
    save_file({**tensors, f"{kohya_stem(layer)}.alpha": torch.tensor(3)}, path)
    lora = read_lora(path, denoiser)
    torch.testing.assert_close(lora.scale[layer] * lora.up[layer] @ lora.down[layer], delta)
    for alpha in (torch.tensor(-1.0), torch.ones(2)):
        save_file({**load_file(path), f"{kohya_stem(layer)}.alpha": alpha}, path)
        with pytest.raises(W2WError, match="one number above 0"):
            read_lora(path, denoiser)


def test_flux_goes_to_kohyas_fused_names_and_back(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    sizes: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "in_channels": 4}
    widths = {"joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4)}
    flux = Denoiser(FluxTransformer2DModel(**sizes, **widths), "flux", "transformer")
    targets = ("to_q", "to_v", "add_k_proj", "proj_mlp", "proj_out", "x_embedder", "to_add_out")  # some of what is fused, not all
    layout = Layout.of(flux.module, rank=2, alpha=3.0, targets=targets)
    matrices = layout.unflatten(weights := drawn(layout.d))
    outputs = {layer: sides_of(module)[1] for layer, module in flux.layers.items()}
    write_kohya(tmp_path / "flux.safetensors", layout, weights, flux.names.original, outputs=outputs)
    lora = read_lora(tmp_path / "flux.safetensors", flux)
    theirs = {key: value for key, value in load_file(tmp_path / "flux.safetensors").items() if "_double_" in key}
    theirs = _convert_kohya_flux_lora_to_diffusers(theirs)
    for layer, down in lora.down.items():
        product = lora.scale[layer] * lora.up[layer] @ down
        known = layer in layout.modules
        wanted = 1.5 * matrices[f"{layer}.lora_B.weight"] @ matrices[f"{layer}.lora_A.weight"] if known else torch.zeros_like(product)
        torch.testing.assert_close(product, wanted)
        if layer.startswith("transformer_blocks"):
            a, b = (theirs[f"transformer.{layer}.lora_{end}.weight"] for end in "AB")
            torch.testing.assert_close(b @ a, wanted)
    assert set(layout.modules) <= set(lora.down)
