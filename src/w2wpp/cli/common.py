"""What the verbs share: the run folder around a verb, opening what it reads, and printing its result.

What brings torch is imported inside functions: `w2w --help` should not wait for it.
"""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import typer
import yaml

import w2wpp as w2w
from w2wpp.cli.options import BasePrecision, Reading
from w2wpp.common.errors import W2WError

if TYPE_CHECKING:
    import torch

    from w2wpp.lora.prompting import Prompting

Options = TypeVar("Options")

MOST_LOST = 0.5  # share of an adapter that encoding may lose without a word

# Arguments of verbs that may be addresses of a storage, as in `storage.place`.
STORED = ("photos", "faces", "dataset", "datasets", "points", "space", "spaces", "update", "start", "encoder", "prior")

# Arguments of verbs that name what is read: a result may not lie there.
READS = (
    *("photos", "photo", "mask", "source", "labels", "faces", "portraits"),
    *("dataset", "datasets", "points", "space", "spaces", "update", "start", "encoder", "encoders", "adapter", "base", "prior", "like"),
)


@dataclass
class Run:
    """A run under way: its numbered folder, where its product goes, and what it has found so far."""

    folder: Path
    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    printed: tuple[str, ...] = ()  # which results to print; all of them if empty


@contextmanager
def run(
    name: str,
    options: Mapping[str, Any],
    product: str = "",
    *,
    reads: Sequence[str] = READS,
    resumes: bool = True,
    sign: str = "",
    stored: bool = False,
    fresh: Sequence[str] = (),
) -> Iterator[Run]:
    """The numbered run folder around a verb that makes files.

    options: the verb's own arguments (`locals()`), with `out`, `runs`, `dry_run` and `as_json` among them.
    product: name of the result in the run folder; the folder itself if empty. With `dry_run` nothing is made.
    reads: arguments that name what is read. Raises W2WError if `out` is, contains or lies in one of these.
    resumes: whether the verb goes on with what is in its folder `out`; else that must be empty, or `overwrite` given.
    sign: what the verb makes first in `out`; a folder that holds other things without it is refused.
    stored: whether `out` may be an address of a storage.
    fresh: arguments that name files of the result. Raises W2WError if one is there, unless `overwrite` is given, or is a folder.
    """
    from w2wpp.common import runs
    from w2wpp.common.files import ASIDE, apart
    from w2wpp.common.locks import owned, sweep
    from w2wpp.common.places import results_in, resumable
    from w2wpp.common.storage import Address, place

    _refuse_addresses(options, ("out", *STORED) if stored else STORED)
    there = place(options["out"] or "")
    if (away := isinstance(there, Address)) and not options["dry_run"]:
        there.size()  # now, and not after the work: is the bucket there?
    if options["out"]:
        apart(options["out"], *inputs_of(options, reads))
    _refuse_existing(options, fresh)
    config = {key: value for key, value in options.items() if key not in ("dry_run", "as_json", "runs")}
    root, as_json = options["runs"], options["as_json"]
    if options["dry_run"]:
        writes = options["out"] or root / f"NNNN-{name}" / product
        show({"dry_run": True, "writes": [writes, root / f"NNNN-{name}"], "options": config}, as_json)
        raise typer.Exit
    folder = runs.new_run(root, name, config)
    under_way = Run(folder, options["out"] or folder / product)
    if options["out"] is None or product or away:
        yield under_way
    elif resumes:
        with owned(under_way.out):
            sweep(under_way.out, ASIDE)
            if sign:
                resumable(under_way.out, sign)
            yield under_way
    else:
        with results_in(under_way.out, options["overwrite"]) as aside:
            under_way.out = aside
            yield under_way
        under_way.out = options["out"]
        under_way.results = {key: _placed(value, aside, under_way.out) for key, value in under_way.results.items()}
    runs.finish(folder, under_way.results)
    shown = {key: under_way.results[key] for key in under_way.printed or under_way.results}
    show({"out": under_way.out, "run": folder, **shown}, as_json)


def _refuse_addresses(options: Mapping[str, Any], but: Sequence[str]) -> None:
    """Raise W2WError for an argument that is an address of a storage, where only a path can be read or written."""
    from w2wpp.common.storage import here

    for key, value in options.items():
        if key not in but and (isinstance(value, Path) or (key == "base" and value)):
            here(value, "Give a path. `w2w dataset merge` copies a dataset to an address, or from one.")


def _refuse_existing(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise W2WError where no file of the result can be, or one is there already and `overwrite` was not given."""
    from w2wpp.common.files import replaceable
    from w2wpp.common.storage import Address, place

    for name in names:
        if options[name] and not (isinstance(place(options[name]), Address) and options["dry_run"]):  # a dry run asks no storage
            replaceable(options[name], options["overwrite"], f"--{name.replace('_', '-')}")


def _placed(value: Any, aside: Path, out: Path) -> Any:
    """A result's path, once what was written aside is where it belongs."""
    return out / value.relative_to(aside) if isinstance(value, Path) and value.is_relative_to(aside) else value


def inputs_of(options: Mapping[str, Any], reads: Sequence[str] = READS) -> list[Path]:
    """The paths among a verb's arguments that name what it reads; the embedded files have none of their own."""
    values = [options.get(key) for key in reads]
    given = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return [Path(path) for path in given if isinstance(path, str | Path) and str(path) not in ("", "tiny-faces")]


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a verb's result: one JSON object, or lines of YAML for people."""
    from w2wpp.common.runs import resolved

    plain = resolved(result)
    plain_letters = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(plain, ensure_ascii=plain_letters) if as_json else yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()
    sys.stdout.write(text + "\n")


def print_table(rows: Sequence[Mapping[str, str]], of: Path, most: int = 40) -> None:
    """Print the first rows of a table to stderr, in columns, and where all of it is."""
    shown = rows[:most]
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in rows[0]}
    for row in ({key: key for key in rows[0]}, *shown):
        print("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip(), file=sys.stderr)
    if len(rows) > most:
        print(f"... and {len(rows) - most} more: {of}", file=sys.stderr)


def save_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table as csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    from w2wpp.common.files import write_text

    write_text(path, text.getvalue())


def warn(message: str) -> None:
    """Say on stderr, and in the run's log, what the user should know of a result that is not wrong."""
    from w2wpp.common.runs import log

    log.warning(message)
    print("warning: " + " ".join(message.split()), file=sys.stderr)


def told_of_loss(space: Path, lost: Sequence[float]) -> dict[str, Any]:
    """What encoding keeps of adapters, for a verb's results; with a warning, on stderr too, where that is less than half."""
    share = sum(lost) / len(lost)
    if share <= MOST_LOST:
        return {"kept": 1 - share}
    message = (
        f"{space} loses {min(share, 1.0):.0%} of the weights of {len(lost)} adapters that it was given to encode, on average. Pictures "
        "show what it keeps of their people: `w2w reconstruct`. To keep more of the weights, fit a space of a larger --m, or to more "
        "adapters."
    )
    warn(message)
    return {"kept": 1 - share, "warning": message}


def override(options: Options, **given: Any) -> Options:
    """`options` (a dataclass) with those fields replaced that the user gave, which are not None."""
    return replace(options, **{key: value for key, value in given.items() if value is not None})  # type: ignore[type-var]


def asked(known: "Prompting", prompt: str | None, guidance: float | None = None) -> "Prompting":
    """With which words and guidance to draw: those given, else those that a space or dataset remembers of its adapters."""
    return override(known, prompt=prompt, guidance=guidance)


class Drawing(TypedDict):
    """With which words, and how, pictures are drawn: keywords of `picture_rows`, `edited_rows` and `InvertedPhotos.save`."""

    prompt: str
    guidance: float
    negative: str
    steps: int


def drawing(known: "Prompting", prompt: str | None, guidance: float | None, negative: str, steps: int) -> Drawing:
    """The words given, or those that a space or dataset remembers, and how to draw with them."""
    words = asked(known, prompt, guidance)
    return {"prompt": words.prompt, "guidance": words.guidance, "negative": negative, "steps": steps}


def those_given(flags: Mapping[str, Any]) -> str:
    """Of flags and their values, the flags that the user gave, whose values are not None, with commas between."""
    return ", ".join(flag for flag, value in flags.items() if value is not None)


def open_base(base: str, device: str, precision: BasePrecision = BasePrecision.auto, low_memory: bool = False) -> "w2w.BaseModel":
    """The base model, loaded once, in the precision that was asked for."""
    return w2w.BaseModel.load(base, device, precision_of(precision), low_memory)


def precision_of(precision: BasePrecision) -> "torch.dtype | None":
    """What torch calls it; None for auto."""
    return None if precision == BasePrecision.auto else getattr(import_module("torch"), precision.value)


def open_space(
    space: Path, base: str, device: str, precision: BasePrecision = BasePrecision.auto, low_memory: bool = False
) -> "tuple[w2w.BaseModel, w2w.Space]":
    """The base model and the space on one device. Raises W2WError unless the space was fitted on this base's adapters."""
    model = open_base(base, device, precision, low_memory)
    opened = w2w.Space.from_pretrained(space, device=model.device)
    opened.check(opened.layout, model.id, f"base {base}")
    return model, opened


def encoder_of(space: Path, encoder: Path | None) -> "w2w.PhotoEncoder":
    """The encoder of a space: the one given, or the one that the space comes with. Raises W2WError if there is none."""
    from w2wpp.spaces.pretrained import has_encoder

    if encoder is None and not has_encoder(space):
        raise W2WError(f"{space} has no encoder of its own. Give --encoder; `w2w fit encoder` makes one.")
    return w2w.PhotoEncoder.from_pretrained(encoder or space)


def read_through(space: Path, reading: Reading | None, encoder: Path | None) -> "w2w.PhotoEncoder | None":
    """The encoder through which a space reads adapters by their pictures; None where it reads their weights.

    Raises W2WError for an encoder that weights would not use, where there is none, or without the extra that describes faces.
    """
    from w2wpp.photos.descriptors import face_models
    from w2wpp.spaces.pretrained import has_encoder

    if reading == Reading.weights and encoder:
        raise W2WError("--encoder reads pictures, and --reading weights reads none. Leave one of them out.")
    if reading == Reading.weights or (reading is None and not (encoder or has_encoder(space))):
        return None
    face_models()
    return encoder_of(space, encoder)


def position(ids: Sequence[str], wanted: str) -> int:
    """Where `wanted` stands in `ids`. Raises W2WError if it is not there."""
    if wanted not in ids:
        raise W2WError(f"there is no {wanted!r} among {len(ids)} ids such as {', '.join(ids[:3])}.")
    return list(ids).index(wanted)


def numbers(text: str) -> tuple[int, ...]:
    """The whole numbers of "512,256". Raises W2WError for anything else."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise W2WError(f"{text!r} is no list of whole numbers with commas between. Write them like 512,256.") from error


def decimals(text: str) -> tuple[float, ...]:
    """The numbers of "0.25,0.5"; none of an empty text. Raises W2WError for anything else."""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise W2WError(f"{text!r} is no list of numbers with commas between. Write them like 0.25,0.5.") from error
