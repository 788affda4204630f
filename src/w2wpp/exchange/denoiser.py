"""The parts of a pipeline that adapters sit in: a UNet or a transformer, and text encoders, of any pipeline that diffusers can load.

Importing and exporting need no more than its layers' names and shapes, and to know whose weights it has. What draws,
trains or inverts needs a `BaseModel`, which is a Stable Diffusion 1.x or 2.x.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.base.identity import DENOISERS, identity
from w2wpp.base.loading import load_part, not_loaded, pipeline_folder
from w2wpp.base.model import BaseModel
from w2wpp.common.assets import TINY_FACES
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import quiet_loading
from w2wpp.exchange.names import Names, spellings
from w2wpp.lora.layout import TEXT_ENCODERS, part_of, sides_of


@dataclass
class Denoiser:
    """A frozen denoiser and where it came from; text encoders by their configuration alone, without numbers."""

    module: Any  # a torch module with a diffusers configuration
    source: str
    part: str = "unet"  # as the pipeline calls it: unet or transformer
    folder: Path | None = None  # where the pipeline's files lie, if all of them do
    text_encoders: Mapping[str, nn.Module] = field(default_factory=dict)  # by the pipeline's names

    @classmethod
    def load(cls, source: str | Path = "tiny-faces") -> "Denoiser":
        """Load the denoiser of `tiny-faces` (embedded), of a pipeline folder or of a hub id, in half precision.

        Half of float32 keeps its `id`. Raises W2WError if the source is no pipeline, or has neither part, or is a hub id
        that is neither in the cache nor to be had without a network.
        """
        diffusers = import_module("diffusers")
        local = str(source) == TINY_FACES or Path(source).is_dir()
        folder = pipeline_folder(source) if local else None  # of a hub id the denoiser alone is fetched
        try:
            described = diffusers.DiffusionPipeline.load_config(str(folder or source))
            part = next((name for name in DENOISERS if (described.get(name) or [None, None])[1]), None)
            if part is None:
                raise ValueError(f"{described.get('_class_name')} has neither a unet nor a transformer.")
            with quiet_loading():
                module = load_part(folder or source, described, part, torch.float16)
                named = [name for name in TEXT_ENCODERS if (described.get(name) or [None, None])[1]]
                text_encoders = {name: _skeleton(str(folder or source), name, described[name][1]) for name in named}
        except Exception as error:  # diffusers raises OSError, ValueError, EnvironmentError and its hub's own
            raise not_loaded(source, error) from error
        return cls(module.requires_grad_(False).eval(), str(source), part, folder, text_encoders)

    @classmethod
    def of(cls, base: BaseModel) -> "Denoiser":
        """The denoiser of a base model that is loaded already."""
        return cls(base.pipeline.unet, base.source, folder=base.folder, text_encoders={"text_encoder": base.pipeline.text_encoder})

    @cached_property
    def id(self) -> str:
        """Which base this is; a `BaseModel` of the same files has the same, or says more."""
        return identity(self.module, self.folder)

    @property
    def is_xl(self) -> bool:
        """Whether this is a UNet of Stable Diffusion XL, whose files kohya names otherwise."""
        return getattr(self.module, "config", {}).get("addition_embed_type") == "text_time"

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """Every linear layer and convolution by the name that layouts use: the denoiser's plain, `text_encoder.<layer>` of others."""
        found = {name: module for name, module in self.module.named_modules() if sides_of(module)}
        for part, encoder in self.text_encoders.items():
            plain = "CLIP" in type(encoder).__name__ and not hasattr(encoder, "text_model")  # transformers 5
            for name, module in encoder.named_modules():
                if sides_of(module):
                    found[f"{part}.{'text_model.' if plain else ''}{name}"] = module
        return found

    @cached_property
    def own_names(self) -> dict[str, str]:
        """What the text encoders' own classes call the layers that layouts name."""
        found = {}
        for layer in self.layers:
            if (part := part_of(layer)) and part in self.text_encoders:
                name = layer.removeprefix(f"{part}.")
                found[layer] = name if hasattr(self.text_encoders[part], "text_model") else name.removeprefix("text_model.")
        return found

    @cached_property
    def names(self) -> Names:
        """How other tools spell these layers."""
        return spellings(self.layers, type(self.module).__name__, getattr(self.module, "config", {}).get("layers_per_block"), xl=self.is_xl)

    def weight(self, layer: str) -> Tensor:
        """The base's own weight of a layer, [out, in] float32, a convolution's laid flat. Raises W2WError for a text encoder's."""
        weight = self.layers[layer].get_parameter("weight")
        if weight.is_meta:
            raise W2WError(f"the numbers of {layer} of {self.source} are not loaded, and DoRA needs them. Use --drop-text-encoder.")
        return weight.detach().float().flatten(1)


def _skeleton(path: str, name: str, kind: str) -> nn.Module:
    """A text encoder of a pipeline, its layers without their numbers."""
    transformers = import_module("transformers")
    model = getattr(transformers, kind)
    with torch.device("meta"):
        return model(model.config_class.from_pretrained(path, subfolder=name))
