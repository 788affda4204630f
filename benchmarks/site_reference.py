"""A hook of MkDocs: writes the reference of every verb and every public name where the pages ask for it.

`<!-- verbs -->` becomes the help of all verbs, from typer's own tree; `<!-- names -->` becomes one mkdocstrings block per
public name of `w2wpp`, by the folder that it lives in.
"""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer

import w2wpp
from w2wpp.cli import app

ROOMS = {
    "spaces": "Spaces",
    "inversion": "Inversion",
    "dataset": "Datasets",
    "adapters": "Adapters",
    "base": "Base models and drawing",
    "exchange": "Other people's files",
    "evaluation": "Evaluation",
    "report": "Reports",
    "photos": "Photos and pictures",
    "lora": "Layouts",
    "common": "Errors and files",
    "demo": "The demo",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls for each page: the page's text with the two marks replaced."""
    if "<!-- verbs -->" in markdown:
        markdown = markdown.replace("<!-- verbs -->", "\n".join(verb_text(*verb) for verb in verbs(typer.main.get_command(app))))
    if "<!-- names -->" in markdown:
        markdown = markdown.replace("<!-- names -->", names_text())
    return markdown.replace(" ± ", "\u00a0±\u00a0")  # a figure and its error stay on one line


def verbs(command: Any, path: tuple[str, ...] = ("w2w",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb with its full name, in the order of `w2w --help`."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from verbs(command.commands[name], (*path, name))


def verb_text(path: tuple[str, ...], command: Any) -> str:
    """One verb as Markdown: its help, its arguments, and its options by panel."""
    name = " ".join(path)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    needed = [signature(p) if p.required else f"[{signature(p)}]" for p in arguments]
    usage = " ".join([name, *needed, "[OPTIONS]"])
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if not getattr(param, "hidden", False):
            panel = "Arguments" if param in arguments else getattr(param, "rich_help_panel", None) or "Options"
            panels.setdefault(panel, []).append(param)
    lines = [f"## {name}", "", plain(command.help or ""), "", "```text", usage, "```", "", plain(command.epilog or ""), ""]
    for panel, params in panels.items():
        lines += [f"| {panel} | what it does | default |", "| --- | --- | --- |"]
        lines += [f"| `{signature(p)}` | {cell(p.help)} | {default(p)} |" for p in params]
        lines += [""]
    return "\n".join(lines)


def plain(help_text: str) -> str:
    """A verb's help as Markdown: an indented or `$`-led example becomes a block of code."""
    paragraphs = help_text.replace("\b", "").split("\n\n")
    texts = []
    for paragraph in paragraphs:
        stripped = paragraph.strip()
        example = stripped.removeprefix("Example:").removeprefix("$").strip()
        texts.append(f"```bash\n{example}\n```" if example.startswith("w2w ") else stripped)
    return "\n\n".join(text for text in texts if text)


def signature(param: Any) -> str:
    """An option's flags and the kind of its value, or an argument's name."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name).upper()
    return ", ".join([*param.opts, *param.secondary_opts]) + ("" if param.is_flag else f" {kind(param.type_descriptor.annotation)}")


def kind(annotation: Any) -> str:
    """What a value is: the choices of an enum, or a word for a type."""
    annotation = next((part for part in get_args(annotation) if part is not type(None)), annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "/".join(str(choice.value) for choice in annotation)
    return {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}.get(annotation, str(annotation))


def cell(text: str | None) -> str:
    """Help as one cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def default(param: Any) -> str:
    """A default as a cell: what the help says of it, or the value; nothing where there is none."""
    value = param.default
    if isinstance(param.show_default, str):  # one that depends on other options
        return param.show_default
    if param.required:
        return "required"
    if value is None or value == "" or callable(value) or value is False or isinstance(value, list | tuple):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def names_text() -> str:
    """A heading per room and an mkdocstrings block per public name of it."""
    by_room: dict[str, list[str]] = {}
    for name in w2wpp.__all__:
        thing = getattr(w2wpp, name)
        home = getattr(thing, "__module__", None) or type(thing).__module__
        if home.startswith("w2wpp."):
            by_room.setdefault(home.split(".")[1], []).append(f"{home}.{name}{with_inherited(thing)}")
    lines = []
    for room, title in ROOMS.items():
        if room in by_room:
            lines += [f"## {title}", "", *(f"::: {block}\n" for block in sorted(by_room.pop(room)))]
    if by_room:
        raise RuntimeError(f"rooms without a title in the reference: {', '.join(by_room)}")
    return "\n".join(lines)


def with_inherited(thing: Any) -> str:
    """For a class with a base of ours that is not public itself: the option that shows what it has from there."""
    bases = getattr(thing, "__mro__", (thing,))[1:]
    hidden = any(base.__module__.startswith("w2wpp.") and base.__name__ not in w2wpp.__all__ for base in bases)
    return "\n    options:\n      inherited_members: true" if hidden else ""
