"""Load the parts of a pipeline, each whole: a file that lacks a tensor would else be filled up with random numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from w2wpp.base.identity import NO_WEIGHT
from w2wpp.common.assets import TINY_FACES, tiny_faces
from w2wpp.common.errors import W2WError

LIBRARIES = ("diffusers", "transformers")


def pipeline_folder(source: str | Path) -> Path:
    """Where a pipeline's files lie: `tiny-faces`' own, the folder given, or what the hub has of that id, as safetensors alone."""
    if str(source) == TINY_FACES:
        return tiny_faces("pipeline")
    if Path(source).is_dir():
        return Path(source)
    pipeline = import_module("diffusers").DiffusionPipeline
    return Path(pipeline.download(str(source), use_safetensors=True, safety_checker=None, requires_safety_checker=False))


def load_part(folder: str | Path, described: Mapping[str, Any], part: str, dtype: torch.dtype) -> Any:
    """A network of a pipeline, in `dtype`, on the CPU.

    described: the pipeline's model_index.json. Raises ValueError naming a tensor that the file lacks, has too many, or has in
    another shape, or that holds NaN or infinity; what the library raises for a file that it cannot read.
    """
    library, name = described.get(part) or ("nothing", "missing")
    if library not in LIBRARIES:  # of another, a file would say which code to run
        raise ValueError(f"its {part} is {name} of {library}; one of {' or '.join(LIBRARIES)} was expected.")
    network = getattr(import_module(library), name)
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    options["dtype" if library == "transformers" else "torch_dtype"] = dtype
    module, found = network.from_pretrained(str(folder), subfolder=part, **options)
    for kind, message in (
        ("missing_keys", "its {part} lacks the tensor {name}."),
        ("unexpected_keys", "its {part} has a tensor {name} that belongs to no layer."),
        ("mismatched_keys", "its {part} has the tensor {name} in another shape than its configuration says."),
    ):
        names = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in found.get(kind) or ())
        names = [entry for entry in names if not NO_WEIGHT.search(entry)]
        if names:
            raise ValueError(message.format(part=part, name=names[0]))
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not all(torch.isfinite(edge) for edge in torch.aminmax(tensor)):
            raise ValueError(f"its {part} holds NaN or infinity in the tensor {key}.")
    return module


@contextmanager
def without_advice() -> Iterator[None]:
    """Hide what diffusers remarks on parts that it did not load itself, and on configurations of other versions."""
    logging = import_module("diffusers.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def not_loaded(source: str | Path, error: Exception) -> W2WError:
    """What to tell the user of an error of diffusers, of its hub, or of `load_part`."""
    if isinstance(error, W2WError) and isinstance(error.__cause__, ModuleNotFoundError):
        return error  # tiny-faces is not installed, and the error says how to install it
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not Path(source).exists() and _unreached(error):
        reason = "this hub id is not in the cache, and the network is absent or switched off (HF_HUB_OFFLINE)."
    return W2WError(f"base model {source} does not load: {reason} Give a pipeline folder or a hub id.")


def _unreached(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the hub was not reached."""
    while error is not None:
        if any(sign in type(error).__name__ for sign in ("Offline", "LocalEntryNotFound", "Connection", "ConnectError", "Timeout")):
            return True
        error = error.__cause__ or error.__context__
    return False
