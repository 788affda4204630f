"""Copy as command: the `w2w` commands that make what the page shows, pixel by pixel."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from w2wpp.explore.studio import PICTURES, SHEET, Studio, Words
from w2wpp.explore.visit import Person


def line(verb: str, *words: object) -> str:
    """One command."""
    return shlex.join(["w2w", verb, *map(str, words)])


def flags(words: Words) -> list[str]:
    """The options of a verb that draws as the tab Prompt says."""
    told = ["--guidance", f"{words.guidance:g}", "--solver-steps", str(words.steps), "--seed", str(words.seed)]
    return [*told, *(["--negative-prompt", words.negative] if words.negative else [])]


def of_point(studio: Studio, person: Person) -> tuple[str, list[object]]:
    """How a person's point comes into a file, and the options that name it there."""
    made = person.made or f"# first export the point as {person.stem}.safetensors"
    return made, ["--points", person.points or f"{person.stem}.safetensors", f"--id={person.name}", "--base", studio.base.source]


def drawing(studio: Studio, person: Person, words: Words) -> str:
    """The commands that draw a person."""
    made, point = of_point(studio, person)
    return f"{made}\n{line('generate', words.prompt, '--space', studio.source, *point, '--n', PICTURES, *flags(words))}"


def sampled(studio: Studio, people: Sequence[Person], seed: int) -> tuple[Person, ...]:
    """People of one seed, with the command that samples them."""
    out = f"people-{seed}"
    made = line(
        "sample", studio.source, "--base", studio.base.source, "--n", SHEET, "--seed", seed, "--pictures", 1, "--out", out, "--overwrite"
    )
    return tuple(replace(person, made=made, points=f"{out}/points.safetensors") for person in people)


def inverted(studio: Studio, person: Person, photo: str, steps: int) -> Person:
    """The person of a photo, with the command that inverts it."""
    encoder = ["--encoder", studio.encoder_file] if studio.encoder_file else []
    made = line(
        "invert", studio.source, photo, "--base", studio.base.source, "--steps", steps, "--pictures", 1, *encoder, "--out", person.stem
    )
    return replace(person, made=f"# beside the photo {shlex.quote(photo)}\n{made}", points=f"{person.stem}/points.safetensors")


def edited(
    studio: Studio, before: Person, after: Person, strengths: Mapping[str, float], held: Sequence[str], at: float, words: Words
) -> Person:
    """An edited person, with the command that makes and draws the edit."""
    made, point = of_point(studio, before)
    data = ["--dataset", studio.data.folder if studio.data and studio.source != "tiny-faces" else "tiny-faces"]
    changes = [word for name, value in strengths.items() for word in ("--attribute", f"{name}={value:g}")]
    stays = [word for name in held if name not in strengths for word in ("--debias", name)]
    drawn = ["--inject-at", f"{at:g}", "--pictures", PICTURES, "--prompt", words.prompt, *flags(words)]
    edit = line("edit", studio.source, *point, *data, *changes, *stays, *drawn, "--out", after.stem, "--overwrite")
    return replace(after, made=f"{made}\n{edit}", points=f"{after.stem}/points.safetensors")
