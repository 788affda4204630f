"""Files that were planned become rows: some at a time, by threads of this process or by workers."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Mapper, Work, absolute, asked_precision, begin_work
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats.canonical import to_rows
from w2wpp.exchange.formats.lora_file import Lora, load_lora
from w2wpp.exchange.formats.lora_plan import LoraPlan
from w2wpp.lora.layout import Layout

EXACT = 1e-6  # relative errors below are float32's own


class ToRead(NamedTuple):
    """A file and the base that it is for, as plain data."""

    plan: LoraPlan
    base: str  # where the base comes from
    base_id: str


@dataclass(frozen=True)
class Read:
    """What became of some files: rows [k, d] of those that could be read."""

    weights: Tensor
    errors: dict[int, float]  # by the file's place among these: the relative error of its row
    notes: list[str]  # of the same files
    refused: dict[int, str]  # by the file's place: why it is no row


def read_rows(files: Sequence[ToRead], layout: Layout, strict: bool, base: Callable[[str], Denoiser]) -> Read:
    """Read some files and bring them to one layout. base: opened by where it comes from.

    Raises W2WError for a file that cannot be read if strict.
    """
    loras: dict[int, Lora] = {}
    refused: dict[int, str] = {}
    for i, one in enumerate(files):
        try:
            loras[i] = load_lora(one.plan, base(one.base), layout.rank)
        except W2WError as error:
            if strict:
                raise
            refused[i] = str(error)
    weights, errors = to_rows(list(loras.values()), layout)
    notes = [_note(files[i].plan, lora, error) for (i, lora), error in zip(loras.items(), errors, strict=True)]
    return Read(weights, dict(zip(loras, errors, strict=True)), notes, refused)


def by_threads(base: Callable[[str], Denoiser], threads: int, ahead: int) -> Mapper:
    """The mapper of one process, whose threads read at most `ahead` tasks before the one that is waited for."""

    def mapped(tasks: Sequence[list[ToRead]], shared: Any = None) -> Iterator[Read]:
        layout, strict = shared
        under_way = deque[Future[Read]]()
        with ThreadPoolExecutor(threads) as pool:
            for files in tasks:
                under_way.append(pool.submit(read_rows, files, layout, strict, base))
                if len(under_way) > ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    return mapped


@dataclass(frozen=True)
class ImportRecipe:
    """What a worker needs to know to read files: nothing, as each task names its files and their base."""

    device: str = "cpu"
    precision: str = field(default_factory=asked_precision)

    def placed(self, device: str) -> "ImportRecipe":
        """As it is: tasks hold absolute paths."""
        return self

    def open(self, cores: int) -> Work:
        """What reads some files. Each base is loaded once; raises W2WError if it is another one here."""
        begin_work(cores, self.precision)
        load = lru_cache(Denoiser.load)

        def work(files: list[ToRead], shared: tuple[Layout, bool]) -> Read:
            for source, base_id in {(one.base, one.base_id) for one in files}:
                if load(source).id != base_id:
                    raise W2WError(f"its {source} is another base than this process has. Give all machines the same files.")
            return read_rows(files, *shared, load)

        return work


def plain(plan: LoraPlan, base: Denoiser) -> ToRead:
    """A planned file as a task holds it."""
    return ToRead(plan, str(absolute(base.source)), base.id)


def _note(plan: LoraPlan, lora: Lora, error: float) -> str:
    kinds = "" if plan.kinds == {"LoRA"} else f"{' and '.join(sorted(plan.kinds))}, "
    notes = [f"{kinds}error {error:.2g} of its norm"] if kinds or error > EXACT else []
    if not any(bool(factor.any()) and bool(lora.down[layer].any()) for layer, factor in lora.up.items()):
        notes.append("warning: every product in it is zero, so that it changes nothing: was it trained?")
    return "; ".join([*notes, *plan.notes])
