"""ComfyUI nodes over the functions of w2wpp: load a space, sample, edit, invert a photo, apply a person to a model.

A point travels between nodes as W2W_POINT, a tensor z [1, m]; a space with its base as W2W_SPACE. Torch and w2wpp are imported
when a node runs, so that the host starts without waiting for them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

Inputs = dict[str, dict[str, tuple[Any, ...]]]
SEED = ("INT", {"default": 0, "min": 0, "max": 2**62 - 1})


@dataclass
class LoadedSpace:
    """A space, and the name of its base, which is loaded when a node draws or inverts."""

    space: Any
    source: str
    base: str


class W2WNode:
    """What all nodes share."""

    FUNCTION: ClassVar[str] = "run"
    CATEGORY: ClassVar[str] = "w2wpp"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("W2W_POINT",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("point",)


class LoadSpace(W2WNode):
    """Load a space: a file, a folder, a hub id, or tiny-faces."""

    RETURN_TYPES = ("W2W_SPACE",)
    RETURN_NAMES = ("space",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"space": ("STRING", {"default": "tiny-faces"}), "base": ("STRING", {"default": "tiny-faces"})}}

    def run(self, space: str, base: str) -> tuple[LoadedSpace]:
        import w2wpp as w2w

        return (LoadedSpace(w2w.Space.from_pretrained(space), space, base),)


class Sample(W2WNode):
    """Draw a person who does not exist."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"space": ("W2W_SPACE",), "seed": SEED}}

    def run(self, space: LoadedSpace, seed: int) -> tuple[Any]:
        return (space.space.sample(1, seed=seed),)


class Edit(W2WNode):
    """Move a person along one attribute of a dataset's labels."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        strength = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.1})
        required = {"space": ("W2W_SPACE",), "point": ("W2W_POINT",), "attribute": ("STRING", {"default": "smiling"}), "strength": strength}
        return {
            "required": {**required, "dataset": ("STRING", {"default": "tiny-faces"})},
            "optional": {"debias": ("STRING", {"default": "", "tooltip": "attributes that must not change, with commas between"})},
        }

    def run(self, space: LoadedSpace, point: Any, attribute: str, strength: float, dataset: str, debias: str = "") -> tuple[Any]:
        import w2wpp as w2w

        held = [name.strip() for name in debias.split(",") if name.strip() and name.strip() != attribute]
        data = w2w.WeightDataset.from_pretrained(dataset)
        direction, *others = w2w.attribute_directions(space.space, data, [attribute, *held])
        return (w2w.edit(point, [w2w.debias(direction, others)], [strength]),)


class Invert(W2WNode):
    """Turn a photo (the first of the batch) into a person; starts from the space's encoder where it has one."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        steps = ("INT", {"default": 10, "min": 0, "max": 1000})
        return {
            "required": {"space": ("W2W_SPACE",), "photo": ("IMAGE",), "steps": steps, "seed": SEED},
            "optional": {"align": ("BOOLEAN", {"default": True})},
        }

    def run(self, space: LoadedSpace, photo: Any, steps: int, seed: int, align: bool = True) -> tuple[Any]:
        from dataclasses import replace

        import numpy as np

        import w2wpp as w2w
        from w2wpp.spaces.pretrained import has_encoder

        base = w2w.BaseModel.load(space.base)
        encoder = w2w.PhotoEncoder.from_pretrained(space.source) if has_encoder(space.source) else None
        pixels = (photo[0].cpu().numpy()[..., :3].clip(0, 1) * 255).round().astype(np.uint8)  # the host's are [n, h, w, 3] in 0..1
        options = replace(w2w.recipe_from(encoder), steps=steps, seed=seed)
        found = w2w.invert_photos(space.space.to(base.device), [pixels], base=base, encoder=encoder, options=options, align=align)
        return (found.z,)


class ApplyToModel(W2WNode):
    """Apply a person's adapter to the host's model, which must be the space's base."""

    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        strength = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})
        return {"required": {"model": ("MODEL",), "space": ("W2W_SPACE",), "point": ("W2W_POINT",), "strength": strength}}

    def run(self, model: Any, space: LoadedSpace, point: Any, strength: float) -> tuple[Any]:
        import tempfile
        from pathlib import Path

        import comfy.sd
        import comfy.utils

        import w2wpp as w2w
        from w2wpp.exchange.exporting import export, of_points

        with tempfile.TemporaryDirectory() as folder:  # the host reads kohya's file, as it reads everybody's
            file = Path(folder) / "person.safetensors"
            denoiser = w2w.Denoiser.load(space.base)
            export(of_points(space.space, point, ["person"], denoiser), file, "kohya", denoiser)
            lora = comfy.utils.load_torch_file(str(file), safe_load=True)
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)
        return (patched,)


NODE_CLASS_MAPPINGS = {
    "W2WLoadSpace": LoadSpace,
    "W2WSample": Sample,
    "W2WEdit": Edit,
    "W2WInvert": Invert,
    "W2WApplyToModel": ApplyToModel,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "W2WLoadSpace": "Load space (w2w)",
    "W2WSample": "Sample person (w2w)",
    "W2WEdit": "Edit person (w2w)",
    "W2WInvert": "Invert photo (w2w)",
    "W2WApplyToModel": "Apply person to model (w2w)",
}
