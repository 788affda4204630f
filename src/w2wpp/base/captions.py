"""What the base is told about a photo: its person's name, or man/woman and smiling, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2wpp.base.build import PLACEHOLDERS
from w2wpp.common.files import read_json


@dataclass(frozen=True)
class Shares:
    """How often a photo is shown with which kind of caption; the rest, 1 - sum, is the empty caption for guidance."""

    name: float = 0.56  # "photo of aaron eckhart"
    someone: float = 0.14  # "photo of sks person": anyone, so that a word the base does not know means someone
    attributes: float = 0.08  # "photo of a smiling man"
    person: float = 0.12  # "photo of a person"


def full_name(person: str) -> str:
    """A folder's name as a caption writes it: Aaron_Eckhart -> Aaron Eckhart."""
    return person.replace("_", " ")


def gender(person: str) -> str:
    """`man`, `woman`, or `person` where the first name does not tell."""
    return _genders().get(person.split("_")[0].lower(), "person")


@cache
def _genders() -> dict[str, str]:
    return {name: kind for kind, names in read_json(Path(__file__).parent / "first_names.json").items() for name in names}


def captions_of(person: str, labels: dict[str, str], shares: Shares) -> list[tuple[str, float]]:
    """Every caption that a photo is shown with, and how often. The shares are the same, in order, for every photo.

    labels: `emotion` "happiness" is called smiling, in half of the captions with which it fits.
    """
    smiles = labels.get("emotion") == "happiness"
    after, before = ("", " smiling" if smiles else ""), ("", "smiling " if smiles else "")
    return [
        *((f"photo of {full_name(person)}{smile}", shares.name / 2) for smile in after),
        *((f"photo of {word} person{smile}", shares.someone / 2 / len(PLACEHOLDERS)) for word in PLACEHOLDERS for smile in after),
        *((f"photo of a {smile}{gender(person)}", shares.attributes / 2) for smile in before),
        ("photo of a person", shares.person),
        ("", 1 - shares.name - shares.someone - shares.attributes - shares.person),
    ]


@dataclass(frozen=True)
class CaptionTable:
    """The captions of all photos as tokens, to draw from without a loop."""

    tokens: Tensor  # [captions, length] int64, each caption once
    rows: Tensor  # [photos, kinds] int64: where a photo's captions stand in `tokens`
    ends: Tensor  # [kinds] float32: the shares of the kinds, summed up

    @classmethod
    def of(cls, tokenizer: Any, people: Sequence[str], labels: Sequence[dict[str, str]], shares: Shares) -> "CaptionTable":
        """The captions of photos of these people. tokenizer: a pipeline's."""
        listed = [captions_of(person, label, shares) for person, label in zip(people, labels, strict=True)]
        place = {words: i for i, words in enumerate(dict.fromkeys(words for captions in listed for words, _ in captions))}
        rows = torch.tensor([[place[words] for words, _ in captions] for captions in listed])
        ends = torch.tensor([share for _, share in listed[0]], dtype=torch.float64).cumsum(0).float()
        return cls(token_rows(tokenizer, list(place)), rows, ends)

    def to(self, device: torch.device) -> "CaptionTable":
        """The same table on another device."""
        return CaptionTable(self.tokens.to(device), self.rows.to(device), self.ends.to(device))

    def kinds(self, chance: Tensor) -> Tensor:
        """Kinds of captions [b] by their shares; chance: [b], uniform in [0, 1). The last kind is the empty caption."""
        return torch.searchsorted(self.ends, chance, right=True).clamp_max(len(self.ends) - 1)

    def of_kinds(self, photos: Tensor, kinds: Tensor) -> Tensor:
        """Tokens [b, length] of the captions of these kinds of the photos [b]."""
        return self.tokens[self.rows[photos, kinds]]


def token_rows(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Captions as rows of tokens, padded to the length that the text encoder takes: [n, length] int64."""
    ids: Tensor = tokenizer(list(captions), padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    return ids
