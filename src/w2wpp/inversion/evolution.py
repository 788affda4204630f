"""Invert photos without gradients: CMA-ES and the cross-entropy method, every candidate on the same draws of the bank.

CMA-ES is pycma's (Hansen 2016), with its diagonal variant (Ros and Hansen 2008) from `DIAGONAL_FROM` dimensions on; the
cross-entropy method is EvoTorch's (Rubinstein 1999). Both need the extra: pip install 'w2wpp[evolution]'.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2wpp.base_model import BaseModel
from w2wpp.errors import W2WError
from w2wpp.inversion.gradient import Inverted
from w2wpp.inversion.objective import Bank, BankOptions
from w2wpp.progress import track
from w2wpp.seeds import generator
from w2wpp.spaces.base import Space

DIAGONAL_FROM = 64  # dimensions from which on CMA-ES learns a diagonal covariance only
METHODS = ("cma-es", "cem")


@dataclass(frozen=True)
class EvolutionOptions:
    """How to search."""

    method: str = "cma-es"
    generations: int = 25
    population: int = 16  # candidates a generation
    batch: int = 1  # draws of the bank that all candidates of a generation share
    sigma: float = 0.5  # initial standard deviation, in prior units of z
    parents: float = 0.5  # share of a generation that the cross-entropy method keeps
    prompt: str = "photo of sks person"
    prior_weight: float = 0.01  # of |z|^2 / 2m (eq. 6)
    bank: BankOptions = field(default_factory=BankOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise W2WError(f"no search is called {self.method!r}. Choose {' or '.join(METHODS)}.")
        if not self.prior_weight >= 0:
            raise W2WError(f"nothing can be searched with prior weight {self.prior_weight:g}. It must be at least 0.")


def evolve(
    base: BaseModel, space: Space, photos: Sequence[Tensor], keys: Sequence[str], options: EvolutionOptions, start: Tensor | None = None
) -> Inverted:
    """Find, for each person, the point whose adapter denoises the photos best; arguments and result as of `gradient.invert`.

    A generation meets the same draws, and the next one the next (common random numbers).
    Raises W2WError without the extra, or if the space belongs to another base.
    """
    space.check(space.layout, base.id, f"base {base.source}")
    space = space.to(base.device)
    bank = Bank.draw(base, photos, keys, options.prompt, options.bank, options.seed)
    begin = torch.zeros(len(keys), space.m) if start is None else start.float()
    points, losses, paths = [], [], []
    for i, key in enumerate(track(keys, options.method)):
        path, found = _search(base, space, bank.of(slice(i, i + 1)), key, begin[i], options)
        points.append(path[-1])
        paths.append(path)
        losses.append(found)
    return Inverted(
        torch.stack(points), torch.stack(losses, 1), torch.stack(paths, 1), options.generations * options.population * options.batch
    )


def _search(base: BaseModel, space: Space, bank: Bank, key: str, start: Tensor, options: EvolutionOptions) -> tuple[Tensor, Tensor]:
    """One person: the search's means [generations + 1, m] and the mean losses [generations]."""
    n = options.population
    seed = int(torch.randint(1, 2**31, (1,), generator=generator(options.seed, "evolution", key)))
    search = _Cma(start, options, seed) if options.method == "cma-es" else _Cem(start, options, seed)
    path, losses = [start], torch.zeros(options.generations)
    for step in range(options.generations):
        z = search.ask()
        draws = [i % bank.size for i in range(step * options.batch, (step + 1) * options.batch)]
        with torch.no_grad():
            weights = space.decode(z.to(base.device))
            own = bank.repeated(n).loss(base, space.layout, weights, draws).mean(1).cpu()
        search.tell(z, own + options.prior_weight * z.square().mean(1) / 2)
        losses[step] = own.mean()
        path.append(search.mean())
    return torch.stack(path), losses


class _Cma:
    """pycma, candidates as tensors."""

    def __init__(self, start: Tensor, options: EvolutionOptions, seed: int) -> None:
        try:
            import cma
        except ImportError as error:
            raise W2WError("CMA-ES needs pycma. Install it: pip install 'w2wpp[evolution]'.") from error
        given = {"popsize": options.population, "seed": seed, "CMA_diagonal": len(start) >= DIAGONAL_FROM, "verbose": -9}
        self._es = cma.CMAEvolutionStrategy(start.double().numpy(), options.sigma, given)

    def ask(self) -> Tensor:
        import numpy as np

        self._given = self._es.ask()
        return torch.from_numpy(np.stack(self._given)).float()

    def tell(self, z: Tensor, losses: Tensor) -> None:
        self._es.tell(self._given, losses.double().tolist())

    def mean(self) -> Tensor:
        return torch.from_numpy(self._es.mean.copy()).float()


class _Cem:
    """EvoTorch's cross-entropy method; it draws from PyTorch's global generator, which is given a seed of its own."""

    def __init__(self, start: Tensor, options: EvolutionOptions, seed: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from evotorch.algorithms.functional import cem, cem_ask, cem_tell
        except ImportError as error:
            raise W2WError("the cross-entropy method needs EvoTorch. Install it: pip install 'w2wpp[evolution]'.") from error
        self._ask, self._tell, self._n, self._seed = cem_ask, cem_tell, options.population, seed
        self._state = cem(center_init=start, parenthood_ratio=options.parents, objective_sense="min", stdev_init=options.sigma)

    def ask(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._seed += 1
            return self._ask(self._state, popsize=self._n)

    def tell(self, z: Tensor, losses: Tensor) -> None:
        self._state = self._tell(self._state, z, losses)

    def mean(self) -> Tensor:
        return self._state.center.clone()
