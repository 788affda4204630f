"""What each control of the page does: from a visitor's state and values to a new state and what is shown."""

import base64
import binascii
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import torch

import w2wpp as w2w
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import as_it_goes
from w2wpp.explore import ROOT, commands, shown
from w2wpp.explore.studio import SHEET, Studio, Words, number
from w2wpp.explore.visit import Person, Visit
from w2wpp.inversion.photo import ready_photo
from w2wpp.photos.decoding import BLACK, decode, picture_bytes

STRIP = 7
NEAR = 4
PREVIEWS = 10  # on the way of an inversion
LARGEST_MASK = 2**22  # characters


@contextmanager
def in_one_line() -> Iterator[None]:
    """What goes wrong, shown on the page in one line; what nobody foresaw in the terminal, too."""
    try:
        yield
    except gr.Error:
        raise
    except W2WError as error:
        told = re.sub(rf"{ROOT}[^\s:;,]*/", "", " ".join(str(error).split()))
        raise gr.Error(told, duration=None, print_exception=False, title="") from error
    except Exception as error:
        raise gr.Error(f"this did not work ({type(error).__name__}). The terminal says more.", duration=None, title="") from error


@contextmanager
def taken(sent: Sequence[str]) -> Iterator[list[Path]]:
    """Files that a visitor sent, in a folder that goes at once; nothing of them stays."""
    with TemporaryDirectory(dir=ROOT) as folder:
        try:
            yield [Path(shutil.move(path, Path(folder) / Path(path).name)) for path in sent]
        except FileNotFoundError as error:
            raise W2WError("what was sent is gone. Send it again.") from error


@dataclass(frozen=True)
class Desk:
    """The handlers of one page. They keep nothing of a visitor: state comes in, and goes out."""

    studio: Studio

    def current(self, visit: Visit, *words: Any) -> tuple[Any, ...]:
        """The visit, and everything that shows the current person, drawn anew."""
        how = Words.of(*words)
        visit = replace(visit, pictures=self.studio.draw(visit.who.z, how))
        mine = visit.people
        names = [*mine, *(name for name in self.studio.ids if name not in mine)]
        return (
            visit,
            shown.pictures(visit.who.name, visit.pictures),
            commands.drawing(self.studio, visit.who, how),
            gr.update(interactive=bool(visit.past)),
            gr.update(interactive=bool(visit.future)),
            gr.update(choices=[person.name for person in visit.favourites]),
            gr.update(choices=names, value=visit.who.name),
            gr.update(choices=names),
        )

    def person(self, visit: Visit, name: str) -> Person:
        """Somebody by name: of this visit, or of the dataset."""
        if name in visit.people:
            return visit.people[name]
        if name not in self.studio.ids:
            raise W2WError(f"there is nobody called {str(name)[:80]!r} here. Choose a name from the list.")
        return Person(name, self.studio.z[self.studio.ids.index(name)])

    def opened(self, visit: Visit, seed: float, *words: Any) -> tuple[Any, ...]:
        """The page as it first stands: a sheet, and its first person."""
        visit, sheet = self.sheet(visit, seed, *words)
        return (*self.current(visit.keep(visit.sheet[0]), *words), sheet)

    def sheet(self, visit: Visit, seed: float, *words: Any) -> tuple[Visit, str]:
        """New people, one picture each."""
        of = int(number(seed))
        z = self.studio.space.sample(SHEET, seed=of)
        people = commands.sampled(self.studio, [Person(f"sample-{of}-{i}", z[i]) for i in range(SHEET)], of)
        drawn = self.studio.each(z, Words.of(*words))
        return replace(visit, sheet=people), shown.pictures(f"{SHEET} people of seed {of}", drawn, range(SHEET))

    def pick(self, event: gr.EventData, visit: Visit, *words: Any) -> tuple[Any, ...]:
        """Keep one of the sheet."""
        return self.current(visit.keep(_numbered(event, visit.sheet)), *words)

    def step(self, which: str, visit: Visit, *words: Any) -> tuple[Any, ...]:
        """undo, redo, favour."""
        return self.current(getattr(visit, which)(), *words)

    def keep(self, which: str, visit: Visit, *words: Any) -> tuple[Any, ...]:
        """Make what was `edited` or `blended` the current person."""
        return self.current(visit.keep(getattr(visit, which)), *words)

    def load(self, visit: Visit, name: str, *words: Any) -> tuple[Any, ...]:
        """Make somebody the current person, by name."""
        return self.current(visit.keep(self.person(visit, name)), *words)

    def load_place(self, event: gr.EventData, visit: Visit, *words: Any) -> tuple[Any, ...]:
        """Make somebody of the map the current person."""
        return self.load(visit, _numbered(event, self.studio.ids), *words)

    def neighbours(self, visit: Visit, *words: Any) -> tuple[str, str]:
        """The map with the current person, and the people nearest to it."""
        studio, z = self.studio, visit.who.z
        if not len(studio.places):
            return shown.scatter(studio.places, []), ""
        distances, at = w2w.nearest(z[None], studio.z, min(NEAR, len(studio.ids)))
        people = at[0].tolist()
        told = ", ".join(f"{studio.ids[i]} ({far:.1f})" for i, far in zip(people, distances[0].tolist(), strict=True))
        near = shown.pictures(f"nearest, with distance: {told}", studio.each(studio.z[people], Words.of(*words)), people)
        return shown.scatter(studio.places, studio.ids, studio.axes[:2] @ z), near

    def photo(self, visit: Visit, path: str | None) -> tuple[Visit, str, None]:
        """Find the face in a photo that was sent, and show it aligned."""
        if not path:
            return visit, gr.skip(), None
        with taken([path]) as [file]:
            face = ready_photo(decode(picture_bytes(file), Path(path).name), self.studio.base)
        return replace(visit, photo=face, photo_name=Path(path).name, mask=None), shown.canvas(face), None

    def mask(self, event: gr.EventData, visit: Visit) -> Visit:
        """What the brush painted on the face."""
        sent = str(event.mask)
        kind, _, data = sent.partition(",")
        try:
            if len(sent) > LARGEST_MASK or kind not in ("", "data:image/png;base64"):
                raise ValueError
            return replace(visit, mask=decode(base64.b64decode(data, validate=True), "the mask", BLACK) if data else None)
        except (binascii.Error, ValueError) as error:
            raise W2WError("what was painted did not arrive as a picture. Paint again.") from error

    def invert(self, visit: Visit, steps: float, *words: Any) -> Iterator[tuple[Any, str]]:
        """Turn the photo into a person: what each step finds while it runs, then before and after with the ID Score."""
        with in_one_line():
            studio, how, n, face = self.studio, Words.of(*words), int(number(steps)), visit.photo
            if face is None:
                raise W2WError("there is no photo. Send one first.")
            yield gr.skip(), shown.pictures("the photo; the inversion begins", [face])
            name, seen = Path(visit.photo_name).stem, list[float]()
            options = replace(w2w.recipe_from(studio.encoder, visit.mask is not None), steps=n)

            def run(tell: Any) -> w2w.InvertedPhotos:
                def watch(step: w2w.InversionStep) -> None:
                    seen.append(step.losses.item())
                    if step.done % -(-n // PREVIEWS) == 0:
                        told = f"the photo, and step {step.done} of {n}: loss {seen[-1]:.3f}"
                        preview = studio.each(step.z, how)
                        tell((gr.skip(), shown.pictures(told, [face, *preview]) + shown.losses(seen, n)))

                given: dict[str, Any] = {"base": studio.base, "encoder": studio.encoder, "options": options, "mask": visit.mask}
                return w2w.invert_photos(studio.space, [face], ids=[name], align=False, watch=watch, **given)

            found = yield from as_it_goes(run)
            path = found.history.path[:, 0]
            told = shown.pictures("the photo", [face])
            for when, z in (("before, where the inversion starts", path[0]), ("after", path[-1])):
                drawn = studio.draw(z, how)
                score = w2w.id_score(drawn, [face])
                told += shown.pictures(f"{when}: ID Score {score.mean:.2f}, {score.missed} of {len(drawn)} pictures without a face", drawn)
            person = Person(name, path[-1])
            if visit.mask is None:
                person = commands.inverted(studio, person, visit.photo_name, n)
            yield visit.keep(person), told + shown.losses(seen, n)

    def adapter(self, visit: Visit, sent: Sequence[str] | None, *words: Any) -> tuple[Any, ...]:
        """Make an adapter's point the current person: a safetensors file, or the two files of a peft folder."""
        with taken(sent or []) as files:
            found = {path.suffix: path for path in files}
            if len(files) != len(found) or found.keys() not in ({".safetensors"}, {".safetensors", ".json"}):
                raise W2WError("give one .safetensors file, or adapter_config.json and adapter_model.safetensors together.")
            path = found[".safetensors"]
            name = "adapter" if ".json" in found else path.stem
            if ".json" in found:
                found[".json"].rename(path.with_name("adapter_config.json"))
                path = path.rename(path.with_name("adapter_model.safetensors")).parent
            z, lost = self.studio.read(path)
        kept = "The encoder has read this adapter by the pictures that it draws."
        if not self.studio.encoder:
            kept = f"The space keeps {max(0.0, 1 - lost):.0%} of this adapter's weights."
        return (*self.current(visit.keep(Person(name, z)), *words), kept)

    def edit(self, visit: Visit, held: Sequence[str], inject_at: float, *values: Any) -> tuple[Visit, str, str]:
        """The current person above, edited below, at the same image seeds."""
        studio, n, who = self.studio, len(self.studio.directions), visit.who
        how, sliders = Words.of(*values[-5:]), [number(value) for value in values[:-5]]
        strengths = {name: value for name, value in zip(studio.directions, sliders, strict=False) if value}
        if not any(sliders):
            return replace(visit, edited=None), shown.pictures(f"{who.name}: move a slider", visit.pictures), ""
        after = Person(f"{who.name}-edited", studio.edit(who.z, strengths, held, sliders[n:]))
        if any(sliders[n:]):
            told = "# keep the edit and export its point: no command moves along principal directions"
        else:
            after = commands.edited(studio, who, after, strengths, held, inject_at, how)
            told = after.made
        drawn = studio.draw_edited(who.z, after.z, inject_at, how)
        return replace(visit, edited=after), shown.pictures(who.name, visit.pictures) + shown.pictures("edited", drawn), told

    def strip(self, visit: Visit, first: str | None, last: str | None, *words: Any) -> str:
        """The walk from one person to another at one image seed."""
        if not first or not last:
            return ""
        walk = w2w.interpolate(self.person(visit, first).z, self.person(visit, last).z, STRIP)
        return shown.pictures(f"{first} to {last}", self.studio.each(walk, Words.of(*words)))

    def blend(self, visit: Visit, first: str | None, last: str | None, share: float, *words: Any) -> tuple[Visit, str]:
        """The person at a share of the way from one to another."""
        if not first or not last:
            return replace(visit, blended=None), "<p>Choose two people.</p>"
        z = torch.lerp(self.person(visit, first).z, self.person(visit, last).z, number(share))
        person = Person(f"{first[:30]}-{round(100 * share)}-{last[:30]}", z)
        return replace(visit, blended=person), shown.pictures(person.name, self.studio.draw(z, Words.of(*words)))

    def redraw(self, visit: Visit, locked: bool, *words: Any) -> tuple[Any, ...]:
        """Draw the current person as the fields say; without the lock, at new image seeds."""
        how = Words.of(*words) if locked else Words.of(*words)._replace(seed=random.randrange(10**6))
        return (*self.current(visit, *how), gr.skip() if locked else how.seed)  # what was typed meanwhile stays

    def export(self, visit: Visit, form: str) -> str:
        """The current person as files."""
        with TemporaryDirectory(dir=ROOT) as folder:
            return shown.downloads(self.studio.write(visit.who, form, Path(folder)))


def _numbered(event: gr.EventData, among: Sequence[Any]) -> Any:
    """One of several, by the number that a page sent. Raises W2WError unless it counts one."""
    at = getattr(event, "index", None)
    if not isinstance(at, int) or not 0 <= at < len(among):
        raise W2WError("that is not there any more. Draw again.")
    return among[at]
