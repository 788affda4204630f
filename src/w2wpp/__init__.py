"""Weights2Weights++: a space of personal diffusion adapters that you can sample, interpolate and invert photos into."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `w2w --help` does not wait for torch.
_HOMES = {
    "AdapterOptions": "adapters",
    "AlignedFaces": "alignment",
    "BaseModel": "base_model",
    "InversionOptions": "inversion.gradient",
    "Layout": "layout",
    "PcaSpace": "spaces.pca",
    "VaeOptions": "spaces.vae",
    "VaeSpace": "spaces.vae",
    "W2WError": "errors",
    "WeightDataset": "weights",
    "id_score": "evaluate",
    "interpolate": "points",
    "invert": "inversion.gradient",
    "load_space": "spaces.base",
    "nearest": "points",
    "read_peft": "formats.peft",
    "train_adapters": "adapters",
    "write_peft": "formats.peft",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
