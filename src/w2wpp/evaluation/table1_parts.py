"""The rows of table 1 in parts: some people under one method, by this process or by workers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from w2wpp.adapters.train import AdapterOptions
from w2wpp.base.drawing import generate_for
from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Mapper, Work, absolute, asked_precision, begin_work, in_this_process
from w2wpp.common.progress import track
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.table1_methods import FittedSpace, Method, Subject, Table1Options, adapter_options, fit_space, methods
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Embedding, FaceRecogniser, embed_pictures
from w2wpp.photos.images import Image
from w2wpp.spaces.base import Space

SHEET_PEOPLE = 16  # the first ones, whose pictures are shown


@dataclass(frozen=True)
class Head:
    """What is known of a row before it is made."""

    place: int  # among all methods of the table
    name: str
    space: str | None
    m: int | None
    needs: FittedSpace | None

    @classmethod
    def of(cls, place: int, method: Method) -> "Head":
        """Of a method."""
        return cls(place, method.name, method.space, method.m, method.needs)


@dataclass(frozen=True)
class Part:
    """Some people under one method."""

    method: int  # its place in the table
    people: list[str]
    shown: int  # of how many the pictures are wanted


@dataclass(frozen=True)
class Scored:
    """What came of a part."""

    faces: list[list[Embedding]]  # of each person's pictures
    pictures: list[list[Image]]  # of the people who are shown
    photos: float  # these three as those of `Fitted`
    unet_evals: float
    seconds: float


def scored(
    todo: Sequence[Head], people: Sequence[str], options: Table1Options, mapper: Mapper | None, scorer: "Scorer"
) -> Iterator[tuple[Head, list[Scored]]]:
    """What came of all people under each method, row after row; people who share a pass are a part.

    Workers fit the spaces first, each once; one process fits a space when its row is due.
    """
    if not todo:
        return
    slices = list(batches(len(people), options.group))
    parts = [Part(head.place, list(people[s]), max(0, SHEET_PEOPLE - s.start)) for head in todo for s in slices]
    spaces = None
    if mapper:
        wanted = list(dict.fromkeys(head.needs for head in todo if head.needs))
        spaces = dict(zip(wanted, mapper(wanted), strict=True))
    results = iter(track(mapper(parts, spaces), "score", "groups of people", len(parts)) if mapper else in_this_process(scorer)(parts))
    for head in todo:
        yield head, [next(results) for _ in slices]


class Scorer:
    """What makes a part: the base, and the methods on it, one at a time."""

    def __init__(
        self,
        base: BaseModel,
        dataset: WeightDataset,
        adapters: AdapterOptions,
        options: Table1Options,
        seed: int,
        recogniser: FaceRecogniser | None,
        subject: Callable[[str], Subject],
    ) -> None:
        """subject: a person's photos, by name."""
        self.base, self.dataset, self.adapters, self.options = base, dataset, adapters, options
        self.seed, self.recogniser, self.subject = seed, recogniser, subject
        self.spaces: Mapping[FittedSpace, Space] | None = None
        self._methods: Iterator[tuple[int, Method]] = iter(())
        self._current: tuple[int, Method] | None = None

    def __call__(self, task: Part | FittedSpace, spaces: Mapping[FittedSpace, Space] | None) -> Scored | Space:
        """A part. Of a worker also a space, fitted; with it, parts are made in the spaces that are given."""
        if not isinstance(task, Part):
            return fit_space(task, self.dataset, self.options, self.seed, str(self.base.device)).cpu()
        self.spaces = spaces
        options, subjects = self.options, [self.subject(person) for person in task.people]
        fitted = self._method(task.method).fit(subjects)
        drawn = generate_for(
            self.base,
            self.dataset.layout,
            fitted.weights,
            task.people,
            self.adapters.prompt,
            options.pictures,
            guidance=options.guidance,
            negative=options.negative,
            steps=options.solver_steps,
            seed=self.seed,
            group=options.group,
        )
        faces = [embed_pictures(pictures, self.recogniser) for pictures in track(drawn, "embed pictures", "people")]
        return Scored(faces, drawn[: task.shown], fitted.photos, fitted.unet_evals, fitted.seconds)

    def _method(self, place: int) -> Method:
        """The method of a row. Those before it are not kept, as each may hold a space."""
        if self._current is None or place < self._current[0]:
            fitted = None if self.spaces is None else self._given
            self._methods = enumerate(methods(self.base, self.dataset, self.adapters, self.options, self.seed, fitted))
            self._current = next(self._methods)
        while self._current[0] < place:
            self._current = next(self._methods)
        return self._current[1]

    def _given(self, which: FittedSpace) -> Space:
        space = (self.spaces or {})[which]
        return space if which[0] == "pca" else space.to(self.base.device)


@dataclass(frozen=True)
class Table1Recipe:
    """What a worker needs to know to make parts of a table. Paths must mean the same files on every machine."""

    base: str
    base_id: str  # what the base must turn out to be
    dataset: str
    fingerprint: str  # what the dataset must turn out to be
    faces: Path
    options: Table1Options
    seed: int
    recogniser: FaceRecogniser | None = None
    device: str = "auto"
    precision: str = field(default_factory=asked_precision)

    def placed(self, device: str) -> "Table1Recipe":
        """The same for workers in other folders, on a device."""
        trained = tuple((str(absolute(space)), str(absolute(encoder) or "")) for space, encoder in self.options.trained)
        paths = {"base": str(absolute(self.base)), "dataset": str(absolute(self.dataset)), "faces": absolute(self.faces)}
        return replace(self, options=replace(self.options, trained=trained), device=device, **paths)

    def open(self, cores: int) -> Work:
        """Load base, dataset and faces; what makes a part. Raises W2WError if they are others here."""
        begin_work(cores, self.precision)
        base, dataset, faces = (
            BaseModel.load(self.base, self.device),
            WeightDataset.from_pretrained(self.dataset),
            AlignedFaces.load(self.faces),
        )
        if (base.id, dataset.fingerprint) != (self.base_id, self.fingerprint):
            raise W2WError(f"its {self.base} or {self.dataset} is not what this process has. Give all machines the same files.")

        @lru_cache(self.options.group)
        def subject(person: str) -> Subject:
            return Subject.of(person, faces.photos(person))

        return Scorer(base, dataset, adapter_options(dataset), self.options, self.seed, self.recogniser, subject)
