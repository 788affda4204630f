"""The part of a pipeline that adapters sit in: a UNet or a transformer, of any pipeline that diffusers can load.

Importing and exporting need no more than its layers' names and shapes, and to know whose weights it has. What draws,
trains or inverts needs a `BaseModel`, which is a Stable Diffusion 1.x or 2.x.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from w2wpp.base_model import TINY_FACES, BaseModel, identity
from w2wpp.errors import W2WError

PARTS = ("unet", "transformer")


@dataclass
class Denoiser:
    """A frozen denoiser and where it came from."""

    module: Any  # a torch module with a diffusers configuration
    source: str
    part: str = "unet"  # as the pipeline calls it: unet or transformer

    @classmethod
    def load(cls, source: str | Path = "tiny-faces") -> "Denoiser":
        """Load the denoiser of `tiny-faces` (embedded), of a pipeline folder or of a hub id, in half precision.

        Half of float32 keeps its `id`. Raises W2WError if the source is no pipeline, or has neither part.
        """
        path = TINY_FACES if str(source) == "tiny-faces" else source
        diffusers = import_module("diffusers")
        try:
            described = diffusers.DiffusionPipeline.load_config(str(path))
            part = next((name for name in PARTS if (described.get(name) or [None, None])[1]), None)
            if part is None:
                raise ValueError(f"{described.get('_class_name')} has neither a unet nor a transformer.")
            module = getattr(diffusers, described[part][1]).from_pretrained(str(path), subfolder=part, torch_dtype=torch.float16)
        except Exception as error:  # diffusers raises OSError, ValueError, EnvironmentError and its hub's own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise W2WError(f"base model {source} does not load: {reason} Give a pipeline folder or a hub id.") from error
        return cls(module.requires_grad_(False).eval(), str(source), part)

    @classmethod
    def of(cls, base: BaseModel) -> "Denoiser":
        """The denoiser of a base model that is loaded already."""
        return cls(base.pipeline.unet, base.source)

    @cached_property
    def id(self) -> str:
        """Which base this is; a `BaseModel` of the same weights has the same."""
        return identity(self.module)

    @property
    def is_xl(self) -> bool:
        """Whether this is a UNet of Stable Diffusion XL, whose files kohya names otherwise."""
        return self.module.config.get("addition_embed_type") == "text_time"
