"""The methods that table 1 compares: each makes, for every person, an adapter from what it may see of the person."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial

import torch
from torch import Tensor

from w2wpp.adapters.portraits import photo_latents
from w2wpp.adapters.start import Start
from w2wpp.adapters.train import AdapterOptions, from_start, prior_latents, train_adapters
from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import track
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.encoder import PhotoEncoder, encoder_start
from w2wpp.inversion.evolution import METHODS as SEARCHES
from w2wpp.inversion.evolution import EvolutionOptions
from w2wpp.inversion.gradient import PUBLISHED, REFINED, InversionOptions
from w2wpp.inversion.invert_photos import How, points_of, recipe_from
from w2wpp.inversion.resembling import LikenessOptions
from w2wpp.photos.images import Image
from w2wpp.spaces.base import Space
from w2wpp.spaces.pca import PcaSpace
from w2wpp.spaces.vae import VaeSpace
from w2wpp.spaces.vae_options import VaeOptions

FittedSpace = tuple[str, int]  # pca or vae, and m


@dataclass(frozen=True)
class Table1Options:
    """Sizes of table 1. Prompt and DreamBooth's options are those that the dataset's adapters were trained with."""

    ms: tuple[int, ...] = (32, 128, 512)  # dimensions of the spaces
    min_photos: int = 2  # that a person must have to be scored
    pictures: int = 5  # per person and method, with the same image seeds for every method
    guidance: float = 2.0
    negative: str = ""  # the caption that guidance leads away from
    solver_steps: int = 20
    group: int = 32  # people that share each forward pass
    vae: VaeOptions = field(default_factory=VaeOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)  # ours; the published one stands beside it
    refined: InversionOptions = REFINED  # ours where an encoder gave the start that likeness did not teach
    patience: int = 4  # times the steps of the dataset's adapters, for a row of DreamBooth that has converged further
    trained: tuple[tuple[str, str], ...] = ()  # files of spaces, each with its encoder's, or ""
    searches_m: int | None = None  # dimensions at which evolution and eq. 7 are tried too
    skip: tuple[str, ...] = ()  # beginnings of rows that are left out, such as "DreamBooth" or "inversion, published, vae 512"


@dataclass(frozen=True)
class Subject:
    """A person to be scored. The methods see the first half of the photos, or only the first one of all."""

    person: str
    seen: tuple[Image, ...]
    held_out: tuple[Image, ...]

    @property
    def input_photo(self) -> Image:
        """The one photo that every method sees."""
        return self.seen[0]

    @classmethod
    def of(cls, person: str, photos: Sequence[Image]) -> "Subject":
        """Halve a person's photos, at least two; the methods get the odd one."""
        half = (len(photos) + 1) // 2
        return cls(person, tuple(photos[:half]), tuple(photos[half:]))


@dataclass(frozen=True)
class Fitted:
    """What a method made of k people."""

    weights: Tensor | None  # [k, d] float32; None is the base alone
    photos: float  # seen a person, on average
    unet_evals: float  # pictures a person that went through the UNet
    seconds: float  # of wall time a person


@dataclass(frozen=True)
class Method:
    """A row of table 1."""

    name: str
    space: str | None
    m: int | None
    fit: Callable[[Sequence[Subject]], Fitted]
    needs: FittedSpace | None = None  # which has to be fitted to the dataset first

    @property
    def title(self) -> str:
        """The name, and the space where it has one: "inversion, published, vae 512"."""
        return self.name if self.space is None else f"{self.name}, {self.space} {self.m}"


def adapter_options(dataset: WeightDataset) -> AdapterOptions:
    """How the dataset's adapters were trained, which is how DreamBooth is trained for table 1."""
    if "start" in dataset.meta:
        raise W2WError("the dataset's adapters began where an encoder put the photos; table 1 needs some that were trained from nothing.")
    try:
        return AdapterOptions.of(dataset.meta["adapters"])
    except (KeyError, TypeError) as error:
        raise W2WError(f"the dataset does not say how its adapters were trained ({error!r}). Make it with `w2w adapters train`.") from error


def fit_space(which: FittedSpace, dataset: WeightDataset, options: Table1Options, seed: int, device: str) -> Space:
    """A space of the table, fitted to the dataset."""
    kind, m = which
    return PcaSpace.fit(dataset, m=m) if kind == "pca" else VaeSpace.fit(dataset, replace(options.vae, m=m, seed=seed), device=device)


def methods(
    base: BaseModel,
    dataset: WeightDataset,
    adapters: AdapterOptions,
    options: Table1Options,
    seed: int,
    fitted: Callable[[FittedSpace], Space] | None = None,
) -> Iterator[Method]:
    """The methods in the table's order, without those to skip.

    A space is fitted, or read, when its first row is due; that time is not the person's.
    fitted: where a space comes from that was fitted before.
    """
    every = _every_method(base, dataset, adapters, options, seed, fitted)
    return (method for method in every if not method.title.startswith(options.skip))


def check_skip(base: BaseModel, dataset: WeightDataset, adapters: AdapterOptions, options: Table1Options) -> None:
    """Raise W2WError if something is to be left out that no row begins with."""
    if not options.skip:
        return
    titles = [method.title for method in _every_method(base, dataset, adapters, options, 0, None)]
    for beginning in options.skip:
        if not any(title.startswith(beginning) for title in titles):
            raise W2WError(f"no row begins with {beginning!r}, which was to be left out. The rows are: {'; '.join(titles)}.")


def _every_method(
    base: BaseModel,
    dataset: WeightDataset,
    adapters: AdapterOptions,
    options: Table1Options,
    seed: int,
    fitted: Callable[[FittedSpace], Space] | None,
) -> Iterator[Method]:
    spaces = _Spaces(fitted or partial(fit_space, dataset=dataset, options=options, seed=seed, device=str(base.device)), options)

    @cache
    def prior(options: AdapterOptions) -> Tensor | None:
        return prior_latents(base, options) if options.prior_weight > 0 else None

    def row(
        name: str, kind: str, m: int, space: Callable[[], Space], how: How, start: str = "", needs: FittedSpace | None = None
    ) -> Method:
        def fit(subjects: Sequence[Subject]) -> Fitted:
            return inverted(base, space(), subjects, how, PhotoEncoder.from_pretrained(start) if start else None)

        return Method(name, kind, m, fit, needs)

    def trained(name: str, options: AdapterOptions, *, many: bool) -> Method:
        def fit(subjects: Sequence[Subject]) -> Fitted:
            return dreambooth(base, subjects, options, group, many=many, prior=prior(options))

        return Method(name, None, None, fit)

    group = options.group
    published = replace(PUBLISHED, prompt=adapters.prompt, group=options.group, seed=seed)
    ours = replace(options.inversion, prompt=adapters.prompt, group=options.group, seed=seed)
    refined = replace(options.refined, prompt=adapters.prompt, group=options.group, seed=seed)
    yield Method("base", None, None, lambda subjects: Fitted(None, 0, 0, 0.0))
    yield trained("DreamBooth, one photo", adapters, many=False)
    yield trained("DreamBooth, many photos", adapters, many=True)
    longer = replace(adapters, steps=options.patience * adapters.steps)
    yield trained(f"DreamBooth, many photos, {options.patience} times the steps", longer, many=True)
    for m in options.ms:
        yield row("inversion, published", "pca", m, partial(spaces.pca, m), published, needs=spaces.largest)
        yield row("inversion, prior", "pca", m, partial(spaces.pca, m), ours, needs=spaces.largest)
    for m in options.ms:
        yield row("inversion, published", "vae", m, partial(spaces.vae, m), published, needs=("vae", m))
    for file, encoder in options.trained:
        yield from _in_trained(base, file, encoder, adapters, options, row, prior, (ours, refined), seed)


class _Spaces:
    """The spaces that are fitted to the dataset, each once: PCA at the largest m, and the VAE of the row."""

    def __init__(self, fitted: Callable[[FittedSpace], Space], options: Table1Options) -> None:
        self.largest: FittedSpace = ("pca", max(options.ms, default=0))
        self._largest, self.vae = cache(lambda: fitted(self.largest)), lru_cache(1)(lambda m: fitted(("vae", m)))

    def pca(self, m: int) -> Space:
        """The first m components."""
        found = self._largest()
        return found.truncate(m) if isinstance(found, PcaSpace) else found


def _in_trained(
    base: BaseModel,
    file: str,
    encoder: str,
    adapters: AdapterOptions,
    options: Table1Options,
    row: Callable[..., Method],
    prior: Callable[[AdapterOptions], Tensor | None],
    inversions: tuple[InversionOptions, InversionOptions | LikenessOptions],
    seed: int,
) -> Iterator[Method]:
    """The methods in a space that was fitted before. inversions: ours, and ours from an encoder."""
    space, (ours, refined) = Space.from_pretrained(file, device=base.device), inversions
    here = partial(_same, space)
    if space.kind != "pca" or space.m not in options.ms:  # whose rows without an encoder are above
        yield row("inversion, prior", space.kind, space.m, here, ours)
    if encoder:
        yield row("encoder", space.kind, space.m, here, None, encoder)
        recipe = recipe_from(PhotoEncoder.from_pretrained(encoder))
        if isinstance(recipe, LikenessOptions):
            refined = replace(recipe, prompt=adapters.prompt, group=options.group, seed=seed)
        yield row("encoder, then inversion", space.kind, space.m, here, refined, encoder)
    if encoder and space.kind != "pca":
        for many in (False, True):
            fit = partial(_started, base, space, encoder, prior, adapters=from_start(adapters), group=options.group, many=many)
            yield Method(f"encoder, then DreamBooth, {'many photos' if many else 'one photo'}", space.kind, space.m, fit)
    if space.m == options.searches_m and space.kind != "pca":
        yield row("inversion, variational", space.kind, space.m, here, replace(ours, variational=True))
        for search in SEARCHES:
            yield row(search, space.kind, space.m, here, EvolutionOptions(search, prompt=adapters.prompt, seed=seed))


def _same(space: Space) -> Space:
    return space


def _started(
    base: BaseModel,
    space: Space,
    encoder: str,
    prior: Callable[[AdapterOptions], Tensor | None],
    subjects: Sequence[Subject],
    *,
    adapters: AdapterOptions,
    group: int,
    many: bool,
) -> Fitted:
    start = encoder_start(space, PhotoEncoder.from_pretrained(encoder))
    return dreambooth(base, subjects, adapters, group, many=many, start=start, prior=prior(adapters))


def dreambooth(
    base: BaseModel,
    subjects: Sequence[Subject],
    options: AdapterOptions,
    group: int,
    *,
    many: bool,
    start: Start | None = None,
    prior: Tensor | None = None,
) -> Fitted:
    """An adapter for each person from the input photo, or from all photos that may be seen, trained from `start`.

    prior: latents of the class, drawn here unless given, and not part of the time.
    """
    if prior is None and options.prior_weight > 0:
        prior = prior_latents(base, options)
    layout = options.layout_of(base)
    begun = time.perf_counter()
    weights, evals = [], 0
    for s in track(list(batches(len(subjects), group)), "DreamBooth", f"groups of {group} people"):
        people = [subject.person for subject in subjects[s]]
        photos = [subject.seen if many else subject.seen[:1] for subject in subjects[s]]
        latents = [photo_latents(base, shown, person, options.seed) for shown, person in zip(photos, people, strict=True)]
        begin = start.weights(photos) if start else None
        trained = train_adapters(base, layout, latents, people, options, prior, start=begin)
        weights.append(trained.weights)
        evals = trained.unet_evals
    seen = sum(len(subject.seen) for subject in subjects) / len(subjects) if many else 1
    return Fitted(torch.cat(weights), seen, evals, (time.perf_counter() - begun) / len(subjects))


def inverted(
    base: BaseModel,
    space: Space,
    subjects: Sequence[Subject],
    how: How,
    encoder: PhotoEncoder | None = None,
) -> Fitted:
    """The adapter of the point to which each person's input photo is inverted, or that the encoder gives it if `how` is None."""
    begin = time.perf_counter()
    photos, people = [[subject.input_photo] for subject in subjects], [subject.person for subject in subjects]
    found = points_of(space, photos, people, base=base, encoder=encoder, how=how)
    with torch.no_grad():
        weights = space.decode(found.z.to(base.device)).cpu()
    return Fitted(weights, 1, found.unet_evals, (time.perf_counter() - begin) / len(subjects))
