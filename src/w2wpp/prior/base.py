"""What every prior can do: draw points of one space, save and load.

A new prior is a subclass of `Prior`, one line in `REGISTRY`, and one row in `tests/test_prior.py`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_checked, write_checked
from w2wpp.common.seeds import generator
from w2wpp.prior.conditions import Asked
from w2wpp.prior.examples import Examples
from w2wpp.spaces.base import Space
from w2wpp.spaces.point_files import alike, fingerprint

FORMAT = "w2wpp-prior-1"
LEAST_SPREAD = 1e-3  # of a latent in which points differ, over that of the latent in which they differ most

# kind -> where its class is.
REGISTRY = {
    "gaussian": "w2wpp.prior.gaussians:GaussianPrior",
    "mixture": "w2wpp.prior.gaussians:MixturePrior",
    "noisy-rows": "w2wpp.prior.rows:NoisyRowsPrior",
    "mean-of-two": "w2wpp.prior.rows:MeanOfTwoPrior",
    "flow": "w2wpp.prior.flow:FlowPrior",
}


class Prior(nn.Module, ABC):
    """A distribution over the points z [n, m] of one space, fitted to those of real people."""

    kind: ClassVar[str]
    fitted: ClassVar[bool] = True  # to points; else it is the same for any
    space: Tensor  # the fingerprint of the space that the points lie in
    varying: Tensor  # [space's m] bool: the m latents in which its points differ, all that a prior is about
    centre: Tensor  # [space's m]: the points' mean, which is their value in each of the other latents

    def __init__(self, m: int) -> None:
        super().__init__()
        self.m = m
        self.people: frozenset[str] = frozenset()  # to whose points it was fitted, held-out people included
        self.history: dict[str, Any] = {}  # what its fit saw
        self.register_buffer("space", torch.zeros(0))
        self.register_buffer("varying", torch.ones(m, dtype=torch.bool))
        self.register_buffer("centre", torch.zeros(m))

    @classmethod
    @abstractmethod
    def fit(cls, train: Examples, held_out: Examples, *, attributes: Sequence[str] = (), seed: int = 0) -> Self:
        """Fit to the points of `train`; what is to be chosen is chosen on those of other people, `held_out`.

        attributes: labels that can be asked for later, of a prior that knows conditions.
        """

    @abstractmethod
    def drawn(self, draws: Sequence[torch.Generator], asked: Asked, guidance: float) -> Tensor:
        """One point per generator, which decides it alone: [n, m] float32."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `blank` needs to build this prior without its numbers. Plain JSON."""

    @classmethod
    @abstractmethod
    def blank(cls, config: Mapping[str, Any]) -> Self:
        """A prior of this kind whose tensors have the right shapes and no meaning yet."""

    def sound(self) -> bool:
        """Whether numbers that were read can be drawn from."""
        return True

    @torch.no_grad()
    def sample(
        self, n: int, seed: int = 0, *, first: int = 0, asked: Asked | None = None, guidance: float = 2.0, factor: float = 1.0
    ) -> Tensor:
        """Draw the n points from number `first` on: [n, m] float32. A point depends on its seed and number alone.

        asked: what these people should be like. guidance: how much more than asked; 1 is as asked. factor: multiplies the differences
        from the mean of the points that it was fitted to. Raises W2WError for a condition that the prior does not know, or one so far
        out that no numbers come of it.
        """
        asked = asked or Asked()
        self.check_asked(asked)
        z = self.drawn([generator(seed, "point", i) for i in range(first, first + n)], asked, guidance)
        z = self.centre.repeat(n, 1).masked_scatter(self.varying, z)
        z = self.centre + factor * (z - self.centre) if factor != 1 else z
        if not torch.isfinite(z).all():
            raise W2WError("the prior drew points that are not numbers. Ask for values such as the labels have, and less guidance.")
        return z

    def check_asked(self, asked: Asked) -> None:
        """Raise W2WError unless this prior can draw what is asked."""
        if asked:
            raise W2WError(f"a prior of kind {self.kind} knows no conditions. Fit one of kind flow: `w2w fit prior --kind flow`.")

    def check(self, space: Space) -> None:
        """Raise W2WError unless this prior was fitted to points of `space`."""
        if len(self.varying) != space.m or not alike(self.space.cpu(), fingerprint(space)):
            raise W2WError(f"the prior was fitted in another space (m = {len(self.varying)}) than {space.source}. Fit it: `w2w fit prior`.")

    def save(self, path: str | Path) -> None:
        """Write the prior as one safetensors file."""
        told = {"config": self.config(), "people": sorted(self.people), "history": self.history}
        write_checked(path, self.state_dict(), {"format": FORMAT, "kind": self.kind, **{key: json.dumps(v) for key, v in told.items()}})

    @classmethod
    def load(cls, path: str | Path) -> "Prior":
        """Read what `save` wrote. Raises W2WError if the file is not a whole prior, or was altered."""
        tensors, about = read_checked(path, "prior")
        if about.get("format") != FORMAT or about.get("kind") not in REGISTRY:
            raise W2WError(f"{path} holds no prior ({FORMAT} was expected). Make one with `w2w fit prior`.")
        try:
            prior = prior_class(about["kind"]).blank(json.loads(about["config"]))
            tensors = {"varying": prior.varying, "centre": prior.centre, **tensors}  # files of early versions are about all latents
            for name, blank in prior.state_dict().items():
                if tensors[name].dtype != blank.dtype:
                    raise ValueError(f"its {name} is {tensors[name].dtype}, not {blank.dtype}")
            prior.space, prior.varying, prior.centre = tensors["space"], tensors["varying"], tensors["centre"]
            if prior.varying.dim() != 1 or prior.varying.shape != prior.centre.shape or int(prior.varying.sum()) != prior.m:
                raise ValueError(f"it does not say which {prior.m} latents vary")
            prior.load_state_dict(tensors, assign=True)
            if not prior.sound():
                raise ValueError("its numbers are none of this kind")
            prior.people = frozenset(json.loads(about["people"]))
            prior.history = json.loads(about["history"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise W2WError(f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Fit it again.") from error
        return prior.requires_grad_(False).eval()


def prior_class(kind: str) -> type[Prior]:
    """The class of a kind. Raises W2WError for an unknown one."""
    if kind not in REGISTRY:
        raise W2WError(f"no prior is of kind {kind!r}. Choose {', '.join(REGISTRY)}.")
    module, name = REGISTRY[kind].split(":")
    found: type[Prior] = getattr(import_module(module), name)
    return found


def fit_prior(space: Space, examples: Examples, kind: str = "flow", *, attributes: Sequence[str] = (), seed: int = 0) -> Prior:
    """Fit a prior of some kind to points of a space; a tenth of the people is held out.

    Latents in which all points have one value keep it: noise there would tell drawn points from real ones, for nothing.
    Raises W2WError for an unknown kind, too few people, or attributes that the points lack or the kind does not know.
    """
    chosen = prior_class(kind)
    if attributes and kind != "flow":
        raise W2WError(f"a prior of kind {kind} knows no conditions. Leave out --attribute, or fit one of kind flow.")
    train, held_out = examples.split(seed)
    varying = varying_latents(train.z) if chosen.fitted else torch.ones(space.m, dtype=torch.bool)
    prior = chosen.fit(*(replace(some, z=some.z[:, varying]) for some in (train, held_out)), attributes=attributes, seed=seed)
    prior.varying, prior.centre = varying, train.z.mean(0) if chosen.fitted else torch.zeros(space.m)
    prior.space, prior.people = fingerprint(space), frozenset(examples.people)
    prior.history |= {"points": len(train), "held_out_points": len(held_out)}
    return prior.requires_grad_(False).eval()


def varying_latents(z: Tensor) -> Tensor:
    """In which latents points z [n, m] differ: [m] bool; all of them, if the points are one."""
    spread = z.double().std(0, correction=0)
    return spread >= LEAST_SPREAD * spread.max()
