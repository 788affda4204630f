"""What a drawn person is asked to be like: attributes by number, and the description of a face.

As the flow sees them: each value in its standard deviations over the points that it was fitted to, and a 1 beside what is told;
what is not told is 0 and 0. So one network draws with any of them, and with none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError
from w2wpp.prior.examples import Examples
from w2wpp.spaces.edits import attributes

LEAST = 10  # points with a value
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of standardised conditions
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Asked:
    """What drawn people should be like."""

    where: Mapping[str, float] = field(default_factory=dict)  # attribute -> its value, as in the labels
    like: Tensor | None = None  # [f], the description of a face

    def __bool__(self) -> bool:
        return bool(self.where) or self.like is not None


class Conditions(nn.Module):
    """The attributes and descriptions that a prior knows, and how they are standardised."""

    mean: Tensor  # [a + f]
    scale: Tensor  # [a + f]

    def __init__(self, names: Sequence[str], features: int) -> None:
        super().__init__()
        self.names, self.features = tuple(names), features
        self.register_buffer("mean", torch.zeros(len(names) + features))
        self.register_buffer("scale", torch.ones(len(names) + features))

    @property
    def width(self) -> int:
        """How many numbers the network sees."""
        return 2 * len(self.names) + self.features + 1

    @classmethod
    def of(cls, examples: Examples, names: Sequence[str]) -> "Conditions":
        """Those of some points: the attributes named, and descriptions where there are any.

        Raises W2WError for an attribute that the labels lack, that too few points have, or that never varies.
        """
        given = _values(examples, names)
        for name, column in zip(names, given[:, : len(names)].T, strict=True):
            told = column[torch.isfinite(column)]
            if len(told) < LEAST or told.min() == told.max():
                found = f"in {len(told)} of {len(column)} points" + (f", always {float(told[0]):g}" if len(told) else "")
                raise W2WError(f"attribute {name} has a value {found}; {LEAST} that differ are needed. Label more, or leave it out.")
        made = cls(names, 0 if examples.described is None else examples.described.shape[1])
        told = torch.isfinite(given)
        count = told.sum(0)
        made.mean = (given.nan_to_num().sum(0) / count).float()
        made.scale = (((given - made.mean).nan_to_num().square().sum(0) / count).sqrt().clamp_min(1e-6)).float()
        return made

    def of_examples(self, examples: Examples) -> Tensor:
        """What is known of each point: [n, width]."""
        return self._seen(_values(examples, self.names).float())

    def of_asked(self, asked: Asked) -> Tensor:
        """What is asked: [1, width]. Raises W2WError for an attribute or a description that this prior does not know."""
        values = torch.full((1, len(self.mean)), math.nan)
        for name, value in asked.where.items():
            if name not in self.names:
                raise W2WError(
                    f"the prior knows no attribute {name!r}; it knows {', '.join(self.names) or 'none'}. `w2w fit prior` says how."
                )
            values[0, self.names.index(name)] = value
        if asked.like is not None:
            if len(asked.like) != self.features:
                raise W2WError(
                    "the prior knows no descriptions of faces. Fit it to photos or to what adapters draw: `w2w fit prior --faces`."
                )
            values[0, len(self.names) :] = asked.like
        return self._seen(values)

    def dropped(self, seen: Tensor, share: float, draw: torch.Generator) -> Tensor:
        """The same [n, width] with each attribute, and each description, left out of a share of the rows."""
        kept = (torch.rand(len(seen), len(self.names) + 1, generator=draw) >= share).to(seen)
        a = len(self.names)
        faces = kept[:, a:].expand(-1, seen.shape[1] - 2 * a)
        return seen * torch.cat([kept[:, :a], kept[:, :a], faces], 1)

    def undescribed(self, seen: Tensor) -> Tensor:
        """The same [n, width] without descriptions."""
        a = len(self.names)
        return torch.cat([seen[:, : 2 * a], torch.zeros_like(seen[:, 2 * a :])], 1)

    def regression(self, seen: Tensor, points: Tensor, others_seen: Tensor, others: Tensor) -> Tensor:
        """The ridge regression [width, m] of points [n, m] on conditions, of the ridge that predicts other people's points best."""
        x, y = seen.double(), points.double()
        covariance, eye = x.T @ x / len(x), torch.eye(x.shape[1], dtype=x.dtype)
        fits = [torch.linalg.solve(covariance + ridge * eye, x.T @ y / len(x)) for ridge in RIDGES]
        errors = [float((others_seen.double() @ fit - others.double()).square().mean()) for fit in fits]
        return fits[errors.index(min(errors))].float()

    def _seen(self, values: Tensor) -> Tensor:
        """Values [n, a + f], NaN where nothing is told -> attributes, who has them, description, who has one: [n, width]."""
        told = torch.isfinite(values).to(values)
        standard = ((values - self.mean) / self.scale).nan_to_num()
        a = len(self.names)
        seen = told[:, a : a + 1] if self.features else torch.zeros(len(values), 1)
        return torch.cat([standard[:, :a], told[:, :a], standard[:, a:], seen], 1)


def _values(examples: Examples, names: Sequence[str]) -> Tensor:
    """The attributes and descriptions of points: [n, a + f] float64, NaN where nothing is told."""
    known = attributes(examples.labels)
    for name in names:
        if name not in known:
            raise W2WError(f"there is no attribute {name!r}; the labels have {', '.join(sorted(known)) or 'none'}. Name one of them.")
    columns = [known[name][:, None] for name in names]
    faces = [] if examples.described is None else [examples.described.double()]
    return torch.cat([torch.zeros(len(examples), 0, dtype=torch.float64), *columns, *faces], 1)


def parsed_where(text: str) -> dict[str, float]:
    """The values of "smiling=1,man=0" by name. Raises W2WError for anything else, and a name given twice."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name.strip() or not abs(value) <= LARGEST:
            raise W2WError(f"--where {text!r} is no list of NAME=VALUE. Write it like smiling=1,man=0.")
        if name.strip() in found:
            raise W2WError(f"--where names {name.strip()} twice. Give it once.")
        found[name.strip()] = value
    return found
