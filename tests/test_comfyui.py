"""The node pack keeps the contract of ComfyUI's nodes, on a stub of the host."""

import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from w2wpp.base.model import BaseModel
from w2wpp.dataset.weights import WeightDataset
from w2wpp.lora.layout import Layout
from w2wpp.spaces.pca import PcaSpace

PACK = Path(__file__).parents[1] / "comfyui"
HOST_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "IMAGE", "MODEL", "W2W_SPACE", "W2W_POINT"}


@pytest.fixture(scope="module")
def pack() -> Any:
    """The pack, loaded as the host loads it: a folder, by its path, without a package of its own."""
    spec = importlib.util.spec_from_file_location("w2w_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["w2w_nodes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def space(pack: Any, pico: Path, base: BaseModel, layout: Layout, tmp_path: Path) -> Any:
    """A space that the first node loaded, over a dataset in which half of the people smile."""
    data = WeightDataset.create(tmp_path / "dataset", layout, base.id)
    weights, smiling = 0.02 * torch.randn(16, layout.d, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    weights[:, :200] += 0.1 * smiling[:, None]
    data.append(weights, [f"p{i}" for i in range(16)], [{"person": f"p{i}", "smiling": int(s)} for i, s in enumerate(smiling)])
    PcaSpace.fit(data, m=4).save(tmp_path / "space.safetensors")
    return run(pack, "W2WLoadSpace", space=str(tmp_path / "space.safetensors"), base=str(pico))


def run(pack: Any, name: str, **given: Any) -> Any:
    """A node's one output."""
    node = pack.NODE_CLASS_MAPPINGS[name]
    (out,) = getattr(node(), node.FUNCTION)(**given)
    return out


def test_every_node_keeps_the_hosts_contract(pack: Any) -> None:
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in pack.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        named = {**inputs["required"], **inputs.get("optional", {})}
        assert {kind for kind, *_ in named.values()} <= HOST_TYPES and set(node.RETURN_TYPES) <= HOST_TYPES
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and node.CATEGORY == "w2wpp"
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert set(named) == set(parameters) - {"self"}
        assert all(parameters[name].default is not inspect.Parameter.empty for name in inputs.get("optional", {}))


def test_points_are_those_of_the_library(pack: Any, space: Any, tmp_path: Path) -> None:
    z = run(pack, "W2WSample", space=space, seed=7)
    assert torch.equal(z, space.space.sample(1, seed=7))
    edited = run(pack, "W2WEdit", space=space, point=z, attribute="smiling", strength=2.0, dataset=str(tmp_path / "dataset"))
    assert edited.shape == z.shape and not torch.equal(edited, z)


def test_a_photo_is_inverted(pack: Any, space: Any) -> None:
    photo = torch.from_numpy(np.random.default_rng(0).random((1, 16, 16, 3), np.float32))
    z = run(pack, "W2WInvert", space=space, photo=photo, steps=2, seed=0, align=False)
    assert z.shape == (1, 4) and z.any()


def test_the_model_gets_the_persons_matrices(pack: Any, space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comfy, sd, utils = (types.ModuleType(name) for name in ("comfy", "comfy.sd", "comfy.utils"))
    utils.load_torch_file = lambda path, safe_load: load_file(path)  # type: ignore[attr-defined]
    sd.load_lora_for_models = lambda model, clip, lora, strength, clip_strength: ((model, lora, strength), clip)  # type: ignore[attr-defined]
    comfy.sd, comfy.utils = sd, utils  # type: ignore[attr-defined]
    for module in (comfy, sd, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    z = run(pack, "W2WSample", space=space, seed=1)
    model, lora, strength = run(pack, "W2WApplyToModel", model="the host's", space=space, point=z, strength=0.5)
    downs = [value for key, value in lora.items() if "lora_down" in key]
    assert model == "the host's" and strength == 0.5 and len(downs) == len(space.space.layout.modules)
