"""How the commands explain themselves: the pipeline in order, options in panels, and one example for each verb."""

import math
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from w2wpp.common.errors import W2WError

ABOUT = "Weights2Weights++: from photos to a space of personal diffusion adapters, and back from a photo to a new model."
PHOTOS, BASE, ADAPTERS, DATASET, SPACES, INVERSION, EXCHANGE, EVALUATION = STAGES = (
    "Photos",
    "Base",
    "Adapters",
    "Dataset",
    "Spaces",
    "Inversion",
    "Exchange",
    "Evaluation",
)
WHAT = {
    PHOTOS: "faces of people, at one place and size",
    BASE: "the frozen pipeline that all adapters share",
    ADAPTERS: "one DreamBooth-LoRA for each person",
    DATASET: "the adapters of many people as one table",
    SPACES: "points that stand for adapters: draw, walk, edit",
    INVERSION: "from a photo to a point, and its pictures",
    EXCHANGE: "files of peft, diffusers, kohya and others",
    EVALUATION: "whether it is any good",
}
FIRST = (
    ("w2w demo", "everything once, with the embedded files"),
    ("w2w sample tiny-faces", "draw people who do not exist"),
    ("w2w invert tiny-faces me.jpg --out me", "turn a photo into a model of its person"),
    ("w2w generate --adapter me/adapters/me", "draw that person"),
    ("w2w import my-loras --out mine", "use LoRAs that you have"),
)

INPUT, METHOD, OUTPUT, MACHINE = PANELS = ("Input", "Method", "Output", "Machine")
# What is not named here is a matter of the method. A verb may say otherwise by `rich_help_panel`.
PANEL_OF = {
    flag: panel
    for panel, flags in {
        INPUT: "adapter all base dataset encoder faces from held-out id labels like mask min-photos people photo points portraits prior "
        "set space split start-space table to where",
        OUTPUT: "dry-run dtype format guidance help negative-prompt image-seed json licence n out overwrite pictures prompt runs samples "
        "sheet size solver-steps trajectory",
        MACHINE: "auth browser cores device group host low-memory memory port precision processes ray retry-failed shard share "
        "threads workers",
    }.items()
    for flag in flags.split()
}


LARGEST = 2**62  # of a whole number: seeds, of which the next ones are taken too, have 63 bits


class Verb(TyperCommand):
    """A verb whose help shows its options in the panels Input, Method, Output and Machine."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.help = "\n\n".join(" ".join(part.split()) for part in (self.help or "").split("\n\n"))  # lines break where the terminal does
        for option in self.params:
            if isinstance(option, TyperOption) and not option.rich_help_panel:
                option.rich_help_panel = PANEL_OF.get(option.opts[0].lstrip("-"), METHOD)
        self.params.sort(key=lambda param: PANELS.index(param.rich_help_panel) if isinstance(param, TyperOption) else -1)

    def invoke(self, ctx: Any) -> Any:
        for option in self.params:
            refuse_unusable(option.opts[0], ctx.params.get(option.name or ""))
        return super().invoke(ctx)

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        option = super().get_help_option(ctx)
        if option:
            option.rich_help_panel = OUTPUT
        return option


def refuse_unusable(name: str, value: Any) -> None:
    """Raise W2WError for a number that is NaN, infinite, or larger than any computer counts to."""
    if isinstance(value, float) and not math.isfinite(value):
        raise W2WError(f"{name} is {value}; a finite number was expected. Write one, such as 1.5.")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise W2WError(f"{name} is {value}; a whole number below 2^62 was expected. Take a smaller one.")


class Root(TyperGroup):
    """The command itself, whose verbs are listed in the order of the pipeline."""

    def list_commands(self, ctx: Any) -> list[str]:
        def place(name: str) -> tuple[int, bool]:
            command = self.commands[name]
            stage = getattr(command, "rich_help_panel", "")
            return STAGES.index(stage), not isinstance(command, TyperGroup)  # what makes a space comes before what uses it

        return sorted(super().list_commands(ctx), key=place)


def verb(app: typer.Typer, name: str, example: str, stage: str | None = None) -> Callable[..., Any]:
    """Make a function the verb `name` of `app`; its help ends with the example.

    stage: where it stands in the pipeline; only for verbs of `w2w` itself.
    """
    return app.command(name, cls=Verb, epilog=f"Example: {example}", rich_help_panel=stage)


def overview(root: Any) -> str:
    """What `w2w` alone prints: the pipeline with its verbs, and what most people want first."""
    lines = [ABOUT, "", " -> ".join(STAGES).lower(), ""]
    for stage in STAGES:
        names = []
        for name in root.list_commands(None):
            command = root.commands[name]
            if command.rich_help_panel == stage:
                names.append(f"{name} {'|'.join(command.commands)}" if hasattr(command, "commands") else name)
        lines += [f"  {stage.lower():<12}{WHAT[stage]}", f"{'':<14}w2w {', '.join(names)}"]
    width = max(len(command) for command, _ in FIRST)
    lines += ["", "What most people want first:", *(f"  {command:<{width}}  {what}" for command, what in FIRST)]
    return "\n".join([*lines, "", "`w2w --help` lists every verb, and `w2w VERB --help` its options with an example."])
