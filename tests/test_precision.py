"""Products are taken in the precision that the processor is fast in, wherever they are large, and one place says which."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from machine import machine
from w2wpp.adapters.train import AdapterOptions, train_adapters
from w2wpp.base.build import build_pipeline
from w2wpp.base.model import BaseModel
from w2wpp.base.train_autoencoder import AutoencoderOptions, train_autoencoder
from w2wpp.common.errors import W2WError
from w2wpp.common.precision import cpu_has_bfloat16, fast_dtype, fast_products
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace

both = pytest.mark.parametrize("precision", ["float32", "bfloat16"])
SLOW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
WIDE = Layout.of(nn.ModuleDict({"to_q": nn.Linear(300, 300, device="meta")}))


class Products(TorchDispatchMode):
    """Notes the precisions of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in ("aten.mm", "aten.addmm", "aten.bmm", "aten.convolution")):
            self.seen |= {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()}
        return function(*args, **(kwargs or {}))


@contextmanager
def products_in(precision: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("W2WPP_PRECISION", precision)
    with Products() as products:
        yield
    assert torch.bfloat16 in products.seen if precision == "bfloat16" else products.seen == {torch.float32}


@both
def test_the_base_predicts_and_draws_in_it(precision: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with products_in(precision, monkeypatch):
        base.generate("photo of a person", [0], steps=1)


@both
def test_adapters_are_trained_in_it(precision: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    options = AdapterOptions(prompt="photo of sks person", prior_prompt="photo of a person", steps=1, prior_weight=0)
    latents = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    with products_in(precision, monkeypatch):
        train_adapters(base, options.layout_of(base), [latents], ["Ada"], options)


@both
def test_the_autoencoder_is_trained_in_it(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_optimizer")
    from conftest import PICO

    vae = build_pipeline(PICO, names=("Ada Lovelace",)).vae
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with products_in(precision, monkeypatch):
        train_autoencoder(vae, pixels, replace(AutoencoderOptions(), steps=1, batch=2), tmp_path / "checkpoint", lambda row: None)


@both
def test_principal_components_are_found_in_it(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(40, WIDE.d, generator=torch.Generator().manual_seed(0))
    with products_in(precision, monkeypatch):
        PcaSpace.fit(weights, m=3, layout=WIDE, base_id="0" * 16, solver="streaming")


def test_networks_of_another_precision_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "bfloat16")
    with fast_products("cpu", torch.float64):
        assert (torch.ones(2, 2, dtype=torch.float64) @ torch.ones(2, 2, dtype=torch.float64)).dtype == torch.float64


def test_it_is_what_the_environment_says_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float8")
    with pytest.raises(W2WError, match="'float8'; float32 or bfloat16 was expected"):
        fast_dtype()


@pytest.mark.parametrize(("told", "answer"), [({}, "True"), ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "False"), (SLOW, "False")])
def test_the_answer_is_a_fact_of_the_processor_as_torch_may_use_it(told: dict[str, str], answer: str) -> None:
    if not told and not (cpu_has_bfloat16() or SLOW.items() <= os.environ.items()):
        pytest.skip("this processor has no bfloat16")
    if not {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()):
        answer = "False"
    code = "from w2wpp.common.precision import cpu_has_bfloat16; print(cpu_has_bfloat16())"
    environment = {key: value for key, value in os.environ.items() if key not in SLOW} | told
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer


def test_figures_name_the_processors_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2WPP_PRECISION", "float32")
    about = machine()
    assert about["products"] == "float32"
    assert about["features"].endswith("with bfloat16" if cpu_has_bfloat16() else "without bfloat16")
