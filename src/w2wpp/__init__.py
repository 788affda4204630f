"""Weights2Weights++: a space of personal diffusion adapters that you can sample, interpolate and invert photos into."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Module -> the public names in it. Loaded on first use, so that `w2w --help` does not wait for torch.
_PUBLIC = {
    "adapters": ("AdapterOptions", "from_start", "options_for", "prior_latents", "train_adapters"),
    "alignment": ("AlignedFaces", "align_photos"),
    "autoencoder_training": ("AutoencoderOptions",),
    "base_build": ("BaseSizes", "build_pipeline"),
    "base_model": ("BaseModel",),
    "base_report": ("check_base",),
    "base_training": ("BaseTraining", "train_base"),
    "denoiser": ("Denoiser",),
    "denoiser_training": ("DenoiserOptions",),
    "demo": ("DemoOptions", "run_demo"),
    "edits": ("attribute_directions", "compose", "debias", "edit", "edited_rows", "fit_direction", "read_labels"),
    "errors": ("W2WError",),
    "evaluate": ("Table1Options", "id_score", "table1"),
    "exporting": ("export", "from_dataset", "from_points"),
    "faces": ("align", "embed_pictures"),
    "files": ("write_json",),
    "figures": ("picture_rows", "write_rows"),
    "formats.gauge": ("to_weights",),
    "formats.lora_file": ("read_lora",),
    "formats.peft": ("read_peft", "write_peft"),
    "formats.published": ("import_published", "is_published"),
    "formats.single_file": ("write_diffusers", "write_kohya"),
    "images": ("grid", "pictures_in", "read_folder", "read_image", "to_tensor", "write_image"),
    "importing": ("import_loras",),
    "inversion.encoder": ("EncoderOptions", "PhotoEncoder", "encoder_start", "fit_encoder"),
    "inversion.evolution": ("EvolutionOptions", "evolve"),
    "inversion.gradient": ("PUBLISHED", "REFINED", "InversionOptions", "invert"),
    "inversion.objective": ("Bank", "BankOptions"),
    "inversion.photos": ("PersonPhotos",),
    "layout": ("Layout",),
    "merging": ("merge", "select"),
    "point_files": ("load_points", "save_points"),
    "points": ("interpolate", "nearest"),
    "photo": ("ready_mask", "ready_photo"),
    "population": ("Start", "train_population"),
    "reconstruction": ("reconstruct",),
    "report": ("table1_report", "write_report"),
    "spaces.anchored_vae": ("AnchoredOptions", "AnchoredVaeSpace"),
    "spaces.base": ("load_space",),
    "spaces.pca": ("PcaSpace",),
    "spaces.vae": ("VaeOptions", "VaeSpace", "collapse"),
    "trajectories": ("trajectory", "write_trajectory"),
    "tables": ("label_from", "read_table", "write_table"),
    "weights": ("WeightDataset",),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
