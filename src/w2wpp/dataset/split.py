"""Split the rows of a dataset into train, validation and test by person."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.seeds import generator


def split_by_person(people: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Row positions of a seeded 80/10/10 split; all adapters of a person fall into one part.

    Raises W2WError for fewer than three people.
    """
    names = list(dict.fromkeys(people))
    if len(names) < 3:
        raise W2WError(f"{len(names)} people are too few to split 80/10/10 for a VAE. Give three or more.")
    order = torch.randperm(len(names), generator=generator(seed, "vae split")).tolist()
    tenth = max(1, len(names) // 10)
    part = {names[i]: "val" if k < tenth else "test" if k < 2 * tenth else "train" for k, i in enumerate(order)}
    return {name: torch.tensor([i for i, person in enumerate(people) if part[person] == name]) for name in ("train", "val", "test")}
