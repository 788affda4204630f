"""A dataset as a folder or a repository of the hub: its files and its card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2wpp import __version__
from w2wpp.common.cards import card
from w2wpp.common.files import new_folder
from w2wpp.common.storage import Address, fill, here, place

if TYPE_CHECKING:
    from w2wpp.dataset.weights import WeightDataset

PATTERNS = ("dataset.json", "manifest.jsonl", "shards/*.safetensors", "README.md")
USAGE = """
import w2wpp as w2w

dataset = w2w.WeightDataset.from_pretrained("{name}")
space = w2w.PcaSpace.fit(dataset, m=64)
"""


def published_files(dataset: "WeightDataset", licence: str, name: str) -> dict[str, Path | bytes]:
    """The dataset's files by their names in a repository, and its card; the one that makes it a dataset comes last."""
    folder = here(dataset.folder, "Copy the dataset here with `w2w dataset merge` first.")
    card_text = dataset_card(dataset, licence, name).encode()
    return {"README.md": card_text, **{file: folder / file for file in reversed(dataset.files)}}


def write_folder(folder: str | Path, files: Mapping[str, Path | bytes], what: Mapping[str, Any]) -> None:
    """Write these files to a new folder, whole or not at all, or below an address, the last one last (`storage.fill`).

    Raises W2WError if it holds something.
    """
    if isinstance(out := place(folder), Address):
        fill(out, what, files.items())
        return
    with new_folder(folder) as aside:
        for name, content in files.items():
            (aside / name).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                (aside / name).write_bytes(content)
            else:
                shutil.copyfile(content, aside / name)


def dataset_card(dataset: "WeightDataset", licence: str, name: str) -> str:
    """The README of a published dataset."""
    layout, words, base = dataset.layout, dataset.prompting, str(dataset.meta.get("base", ""))
    head: dict[str, Any] = {"license": licence, "library_name": "w2wpp", "tags": ["w2wpp", "lora"]}
    if "/" in base and not Path(base).is_absolute():
        head["base_model"] = base
    facts = {
        "Adapters": f"{len(dataset):,}",
        "Base": f"{base or 'unknown'} (weights {dataset.base_id})",
        "Layout": f"rank {layout.rank}, alpha {layout.alpha:g}, {layout.d:,} numbers on {', '.join(layout.targets)}",
        "Prompt": f"`{words.prompt}`, guidance {words.guidance:g}",
        "Licence": licence,
        "Made by": f"w2wpp {__version__}",
    }
    return card(head, "LoRA adapters as one table of numbers", facts, USAGE.format(name=name))
