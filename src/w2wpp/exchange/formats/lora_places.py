"""Where LoRAs lie: which files and folders are one adapter each, and which are left alone."""

from pathlib import Path

from w2wpp.common.errors import W2WError
from w2wpp.exchange.formats import peft
from w2wpp.lora.layout import TEXT_ENCODERS

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
FOLDERS = ("unet", "transformer", *TEXT_ENCODERS)  # how peft's examples call the parts of one adapter


def sources_of(path: Path) -> list[tuple[Path, Path | None, str]]:
    """The tensor files of one adapter, each with its configuration and the part of the pipeline that the folder's name says."""
    if path.is_file() and path.name == peft.TENSORS and (path.parent / peft.CONFIG).is_file():
        path = path.parent
    if (path / peft.CONFIG).is_file():
        return [(path / peft.TENSORS, path / peft.CONFIG, "")]
    parts = [path / name for name in FOLDERS if (path / name / peft.CONFIG).is_file()]
    if parts:
        return [(part / peft.TENSORS, part / peft.CONFIG, part.name if part.name in TEXT_ENCODERS else "") for part in parts]
    if path.suffix != ".safetensors":
        raise W2WError(f"{path} is neither a peft folder nor a .safetensors file. Pickles (.pt, .ckpt, .bin) are not read; convert it.")
    return [(path, None, "")]


def list_loras(source: str | Path) -> list[Path]:
    """The adapters under a folder, sorted: peft folders (one for several parts) and safetensors files; or the one that `source` is."""
    source = Path(source)
    if source.is_file() or (source / peft.CONFIG).is_file() or _in_parts(source):
        return [source]
    if not source.is_dir():
        raise W2WError(f"{source} is not there. Give a LoRA file, a peft folder, or a folder of them.")
    configured = {config.parent for config in source.rglob(peft.CONFIG)}
    folders = {folder.parent if folder.name in FOLDERS and folder.parent != source else folder for folder in configured}
    files = {file for file in source.rglob("*.safetensors") if not {file.parent, file.parent.parent} & (folders | configured)}
    if not folders and not files:
        pickled = pickles(source)
        such = f", but {len(pickled)} pickles such as {pickled[0]}, which may hold code: convert them" if pickled else ""
        raise W2WError(f"{source} holds no peft folder and no .safetensors file{such}.")
    return sorted(folders | files)


def _in_parts(folder: Path) -> bool:
    return any((folder / name / peft.CONFIG).is_file() for name in FOLDERS)


def pickles(source: Path) -> list[Path]:
    """The files under a folder that would have to be unpickled, which is not done, sorted."""
    return sorted(file for file in source.rglob("*") if file.suffix.lower() in PICKLES) if source.is_dir() else []
