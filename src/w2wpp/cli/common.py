"""What the verbs share: their common options, the run folder around a verb, and printing its result.

What brings torch is imported inside functions: `w2w --help` should not wait for it.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml

import w2wpp as w2w
from w2wpp.errors import W2WError

Options = TypeVar("Options")

Seed = Annotated[int, typer.Option("--seed", help="Seed of every random draw.")]
Device = Annotated[str, typer.Option("--device", help="auto (the GPU where there is one), cpu, cuda or cuda:1.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where numbered run folders are made.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved options and what would be written; make nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where the result goes; in the run folder unless given.")]
Base = Annotated[str, typer.Option("--base", help="tiny-faces (embedded), a pipeline folder, or a hub id.")]
Dataset = Annotated[str, typer.Argument(help="tiny-faces (embedded) or the folder of a weight dataset.")]
SpaceFile = Annotated[Path, typer.Argument(help="A space.safetensors that `w2w fit` made, or tiny-faces, the embedded anchored VAE.")]
EncoderFile = Annotated[Path | None, typer.Option("--encoder", help="The space's encoder, by `w2w fit`; tiny-faces has its own.")]
Prompt = Annotated[str, typer.Option("--prompt", help="Caption of the pictures; `sks` stands for the adapter's person.")]
Guidance = Annotated[float, typer.Option("--guidance", help="Classifier-free guidance against the empty caption; 1 is none.")]
Steps = Annotated[int, typer.Option("--solver-steps", min=1, help="Solver steps a picture.")]

SKS = "photo of sks person"
RUNS = Path("runs")


@dataclass
class Run:
    """A run under way: its numbered folder, where its product goes, and what it has found so far."""

    folder: Path
    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    printed: tuple[str, ...] = ()  # which results to print; all of them if empty


@contextmanager
def run(name: str, options: Mapping[str, Any], product: str = "") -> Iterator[Run]:
    """The numbered run folder around a verb that makes files.

    options: the verb's own arguments (`locals()`), with `out`, `runs`, `dry_run` and `as_json` among them.
    product: name of the result in the run folder; the folder itself if empty. With `dry_run` nothing is made.
    """
    from w2wpp import runs

    config = {key: value for key, value in options.items() if key not in ("dry_run", "as_json", "runs")}
    root, as_json = options["runs"], options["as_json"]
    if options["dry_run"]:
        writes = options["out"] or root / f"NNNN-{name}" / product
        show({"dry_run": True, "writes": [str(writes), str(root / f"NNNN-{name}")], "options": config}, as_json)
        raise typer.Exit
    folder = runs.new_run(root, name, config)
    under_way = Run(folder, options["out"] or folder / product)
    yield under_way
    runs.finish(folder, under_way.results)
    results = under_way.results
    shown = {key: results[key] for key in under_way.printed or results}
    show({"out": str(under_way.out), "run": str(folder), **shown}, as_json)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a verb's result: one JSON object, or lines of YAML for people."""
    from w2wpp.runs import resolved

    plain = resolved(result)
    text = json.dumps(plain, ensure_ascii=False) if as_json else yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()
    sys.stdout.write(text + "\n")


def override(options: Options, **given: Any) -> Options:
    """`options` (a dataclass) with those fields replaced that the user gave, which are not None."""
    return replace(options, **{key: value for key, value in given.items() if value is not None})  # type: ignore[type-var]


def those_given(flags: Mapping[str, Any]) -> str:
    """Of flags and their values, the flags that the user gave, whose values are not None, with commas between."""
    return ", ".join(flag for flag, value in flags.items() if value is not None)


def open_space(space: Path, base: str, device: str) -> tuple[Any, Any]:
    """The base model and the space on one device. Raises W2WError unless the space was fitted on this base's adapters."""
    model = w2w.BaseModel.load(base, device)
    opened = w2w.load_space(space, model.device)
    opened.check(opened.layout, model.id, f"base {base}")
    return model, opened


def encoder_of(space: Path, encoder: Path | None) -> Any:
    """The encoder of a space: the one given, or that of tiny-faces. Raises W2WError if there is none."""
    if encoder is None and str(space) != "tiny-faces":
        raise W2WError(f"{space} has no encoder of its own to start from. Give --encoder; `w2w fit encoder` makes one.")
    return w2w.PhotoEncoder.load(encoder or space)


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
