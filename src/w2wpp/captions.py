"""What the base is told about a photo: its person's name, or man/woman and smiling, or nothing."""

from dataclasses import dataclass
from functools import cache

import torch

from w2wpp.base_model import ASSETS
from w2wpp.files import read_json


@dataclass(frozen=True)
class Shares:
    """How often a photo is shown with which kind of caption; the rest, 1 - sum, is the empty caption for guidance."""

    name: float = 0.70  # "photo of aaron eckhart"
    someone: float = 0.08  # "photo of sks person": anyone, so that the word means a person not met before
    attributes: float = 0.07  # "photo of a smiling man"
    person: float = 0.07  # "photo of a person"


def full_name(person: str) -> str:
    """A folder's name as a caption writes it: Aaron_Eckhart -> Aaron Eckhart."""
    return person.replace("_", " ")


def gender(person: str) -> str:
    """`man`, `woman`, or `person` where the first name does not tell."""
    return _genders().get(person.split("_")[0].lower(), "person")


@cache
def _genders() -> dict[str, str]:
    return {name: kind for kind, names in read_json(ASSETS / "first_names.json").items() for name in names}


def caption(person: str, labels: dict[str, str], shares: Shares, draw: torch.Generator) -> str:
    """Draw a caption for one photo. labels: `emotion` "happiness" is called smiling, in half the captions it fits."""
    kind, smile = torch.rand(2, generator=draw).tolist()
    smiling = labels.get("emotion") == "happiness" and smile < 0.5
    if (kind := kind - shares.name) < 0:
        return f"photo of {full_name(person)}" + (" smiling" if smiling else "")
    if (kind := kind - shares.someone) < 0:
        return "photo of sks person" + (" smiling" if smiling else "")
    if (kind := kind - shares.attributes) < 0:
        return f"photo of a {'smiling ' if smiling else ''}{gender(person)}"
    if (kind := kind - shares.person) < 0:
        return "photo of a person"
    return ""
