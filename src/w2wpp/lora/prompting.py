"""With which words and guidance the adapters of a dataset or a space are drawn: those they were trained with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

PUBLISHED = {"prompt": "sks person", "prior_prompt": "person", "guidance": 3.0}  # of the published Weights2Weights files


@dataclass(frozen=True)
class Prompting:
    """What a dataset and a space remember of their adapters, and the verbs use unless told otherwise."""

    prompt: str = "photo of sks person"  # the caption of a person's photos; `sks` stands for the person
    prior_prompt: str = "photo of a person"  # the caption of the class, which adapters were trained to leave alone
    guidance: float = 2.0  # classifier-free guidance of pictures, against the empty caption

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Self:
        """From what a dataset says about how it was made; for an unknown origin, the defaults.

        `prompting` is what an import was told or a space remembered, `adapters` are the options of a training.
        """
        imported, trained = meta.get("imported"), meta.get("adapters")
        found: dict[str, Any] = dict(PUBLISHED) if isinstance(imported, Mapping) and imported.get("published") else {}
        if isinstance(trained, Mapping):
            found |= {key: trained[key] for key in ("prompt", "prior_prompt") if key in trained}
        return cls.known({**found, **dict(meta.get("prompting") or {})})

    @classmethod
    def known(cls, given: Mapping[str, Any]) -> Self:
        """From a mapping, as JSON keeps it; what it lacks is as by default, and what later versions add is left out."""
        return cls(**{key: given[key] for key in ("prompt", "prior_prompt", "guidance") if given.get(key) is not None})

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as plain values."""
        return asdict(self)
