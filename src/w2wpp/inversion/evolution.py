"""Invert photos without gradients: CMA-ES and the cross-entropy method, every candidate on the same noise pairs.

CMA-ES is pycma's (Hansen 2016), with its diagonal variant (Ros and Hansen 2008) from `DIAGONAL_FROM` dimensions on; the
cross-entropy method is EvoTorch's (Rubinstein 1999). Both need the extra: pip install 'w2wpp[evolution]'.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.common.seeds import generator
from w2wpp.inversion.gradient import Inverted
from w2wpp.inversion.objective import NoisePairs, PairOptions
from w2wpp.inversion.watching import InversionStep, Watch
from w2wpp.spaces.base import Space

DIAGONAL_FROM = 64  # dimensions from which on CMA-ES learns a diagonal covariance only
METHODS = ("cma-es", "cem")


@dataclass(frozen=True)
class EvolutionOptions:
    """How to invert without gradients."""

    method: str = "cma-es"
    generations: int = 25
    population: int = 16  # candidates a generation
    batch: int = 1  # pairs that all candidates of a generation share
    sigma: float = 0.5  # initial standard deviation, in prior units of z
    diagonal: bool | None = None  # CMA-ES learns variances only; None: from `DIAGONAL_FROM` dimensions on
    bounds: float | None = None  # candidates of CMA-ES lie within plus and minus this, in prior units of z
    best: bool = False  # the answer is the best candidate of the last generation, not the mean of the search
    parents: float = 0.5  # share of a generation that the cross-entropy method keeps
    prompt: str | None = None  # of the photos; the one that the space's adapters were trained with unless given
    prior_weight: float = 0.01  # of |z|^2 / 2m (eq. 6)
    pairs: PairOptions = field(default_factory=PairOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise W2WError(f"no search is called {self.method!r}. Choose {' or '.join(METHODS)}.")
        if self.bounds is not None and not (self.bounds > 0 and self.method == "cma-es"):
            raise W2WError(f"{self.method} cannot be held within {self.bounds:g}. Bounds are CMA-ES's, and above 0.")
        if not self.prior_weight >= 0:
            raise W2WError(f"nothing can be searched with prior weight {self.prior_weight:g}. It must be at least 0.")


# The search of Weights2Weights++'s code: full covariance, wide, within a box that cuts off a fifth of the prior.
SEED_SEARCH = EvolutionOptions(
    generations=50,
    population=10,
    batch=10,
    sigma=0.75,
    bounds=1.3,
    diagonal=False,
    best=True,
    prior_weight=0.0,
    pairs=PairOptions(draws=500, stratified=False, antithetic=False),
)


def evolve(
    base: BaseModel,
    space: Space,
    latents: Sequence[Tensor],
    keys: Sequence[str],
    options: EvolutionOptions,
    mask: Tensor | None = None,
    start: Tensor | None = None,
    watch: Watch | None = None,
) -> Inverted:
    """Find, for each person, the point whose adapter denoises the photos best; arguments and result as of `gradient.invert`.

    A generation meets the same draws, and the next one the next (common random numbers).
    Raises W2WError without the extra, or if the space belongs to another base.
    """
    space.check(space.layout, base.id, f"base {base.source}")
    space = space.to(base.device)
    pairs = NoisePairs.draw(base, latents, keys, options.prompt or space.prompting.prompt, options.pairs, options.seed, mask)
    begin = torch.zeros(len(keys), space.m) if start is None else start.float()
    points, losses, paths = [], [], []
    for i, key in enumerate(track(keys, f"invert by {options.method}", "photos")):
        path, found = _search(base, space, pairs.of(slice(i, i + 1)), key, begin[i], options, watch)
        points.append(path[-1])
        paths.append(path)
        losses.append(found)
    return Inverted(
        torch.stack(points), torch.stack(losses, 1), torch.stack(paths, 1), options.generations * options.population * options.batch
    )


def _search(
    base: BaseModel, space: Space, pairs: NoisePairs, key: str, start: Tensor, options: EvolutionOptions, watch: Watch | None
) -> tuple[Tensor, Tensor]:
    """One person: the search's means [generations + 1, m] and the mean losses [generations]."""
    n = options.population
    seed = int(torch.randint(1, 2**31, (1,), generator=generator(options.seed, "evolution", key)))
    search = _Cma(start, options, seed) if options.method == "cma-es" else _Cem(start, options, seed)
    path, losses = [start], torch.zeros(options.generations)
    for step in range(options.generations):
        z = search.ask()
        draws = [i % pairs.size for i in range(step * options.batch, (step + 1) * options.batch)]
        with torch.no_grad():
            weights = space.decode(z.to(base.device))
            own = pairs.repeated(n).loss(base, space.layout, weights, draws).mean(1).cpu()
        search.tell(z, own + options.prior_weight * z.square().mean(1) / 2)
        losses[step] = own.mean()
        path.append(z[own.argmin()].clone() if options.best else search.mean())
        if watch:
            watch(InversionStep([key], step + 1, options.generations, losses[step : step + 1].clone(), path[-1][None].clone()))
    return torch.stack(path), losses


class _Cma:
    """pycma, candidates as tensors."""

    def __init__(self, start: Tensor, options: EvolutionOptions, seed: int) -> None:
        try:
            import cma
        except ImportError as error:
            raise W2WError("CMA-ES needs pycma. Install it: pip install 'w2wpp[evolution]'.") from error
        diagonal = len(start) >= DIAGONAL_FROM if options.diagonal is None else options.diagonal
        given: dict[str, object] = {"popsize": options.population, "seed": seed, "CMA_diagonal": diagonal, "verbose": -9}
        given |= {} if options.bounds is None else {"bounds": [-options.bounds, options.bounds]}
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
