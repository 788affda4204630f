"""A space as a folder or a repository of the hub: its file, its encoder, its description and its card."""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from w2wpp import __version__
from w2wpp.common.assets import located
from w2wpp.common.cards import card
from w2wpp.common.files import new_folder, write_json, write_text
from w2wpp.common.hub import fetched
from w2wpp.common.storage import Address, fill, place

if TYPE_CHECKING:
    from w2wpp.spaces.base import Space

SPACE, ENCODER, CONFIG, CARD = "space.safetensors", "encoder.safetensors", "config.json", "README.md"
PATTERNS = (SPACE, ENCODER, CONFIG, CARD)
USAGE = """
import w2wpp as w2w

space = w2w.Space.from_pretrained("{name}")
pipe.load_lora_weights(space.lora_state_dict(space.sample(1)))  # pipe: the base, as a pipeline of diffusers
"""


def has_encoder(source: str | Path) -> bool:
    """Whether a space comes with its encoder: `tiny-faces`, a folder of `save_pretrained`, or a hub id."""
    found = located(fetched(source, PATTERNS), f"space/{ENCODER}")
    return found.name == ENCODER and found.is_file()


class Encoder(Protocol):
    """A `PhotoEncoder`, as far as a space needs to know it."""

    def check(self, space: "Space") -> None:
        """Raise W2WError unless it was trained for this space."""

    def save(self, path: str | Path) -> None:
        """Write it as one file."""


def write_folder(space: "Space", folder: str | Path, encoder: Encoder | None, base_model: str, licence: str, name: str) -> None:
    """Write a space's folder, whole or not at all. Raises W2WError if it holds something, or the encoder is another space's.

    Below an address the space's file comes last.
    """
    if isinstance(out := place(folder), Address):
        files = files_of(space, encoder, base_model, licence, name)
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        fill(out, sums, files.items())
        return
    if encoder is not None:
        encoder.check(space)
    with new_folder(folder) as aside:
        space.save(aside / SPACE)
        if encoder is not None:
            encoder.save(aside / ENCODER)
        write_json(aside / CONFIG, described(space))
        write_text(aside / CARD, space_card(space, encoder is not None, base_model, licence, name))


def files_of(space: "Space", encoder: Encoder | None, base_model: str, licence: str, name: str) -> dict[str, bytes]:
    """The same files in memory, by name; the space's own, without which there is none, comes last."""
    with TemporaryDirectory() as folder:
        write_folder(space, Path(folder) / "space", encoder, base_model, licence, name)
        return {path.name: path.read_bytes() for path in sorted((Path(folder) / "space").iterdir())}


def described(space: "Space") -> dict[str, Any]:
    """What a reader without w2wpp wants to know; the space's own file is what is loaded."""
    return {
        "library": f"w2wpp {__version__}",
        "kind": space.kind,
        "m": space.m,
        "base_id": space.base_id,
        "prompting": space.prompting.to_dict(),
        "layout": json.loads(space.layout.to_json()),
    }


def space_card(space: "Space", has_encoder: bool, base_model: str, licence: str, name: str) -> str:
    """The README of a space's folder."""
    layout, words = space.layout, space.prompting
    head: dict[str, Any] = {"license": licence, "library_name": "w2wpp", "tags": ["w2wpp", "lora", "weight-space"]}
    if base_model:
        head["base_model"] = base_model
    facts = {
        "Kind": f"{space.kind}, m = {space.m}",
        "Base": f"{base_model or 'unknown'} (weights {space.base_id})",
        "Layout": f"rank {layout.rank}, alpha {layout.alpha:g}, {layout.d:,} numbers on {', '.join(layout.targets)}",
        "Prompt": f"`{words.prompt}`, guidance {words.guidance:g}",
        "Encoder from photos": "encoder.safetensors" if has_encoder else "none",
        "Licence": licence,
        "Made by": f"w2wpp {__version__}",
    }
    return card(head, "A space of LoRA adapters", facts, USAGE.format(name=name))
