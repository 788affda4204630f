"""One visitor: the current person, undo and redo, favourites. Nothing of it is shared with anybody."""

import re
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from w2wpp.common.errors import W2WError
from w2wpp.photos.images import Image

MOST = 50  # people that undo remembers, and favourites


@dataclass(frozen=True)
class Person:
    """A point [m] with a name, and how a command comes by it."""

    name: str
    z: Tensor
    made: str = ""  # the commands that write the point; without them it has to be exported
    points: str = ""  # the file of points that they write

    @property
    def stem(self) -> str:
        """The name as that of a file, without its ending."""
        return re.sub(r"[^\w.-]+", "_", self.name)[:80].lstrip("-")


@dataclass(frozen=True)
class Visit:
    """What one visitor's page holds. Every change makes a new one."""

    person: Person | None = None
    past: tuple[Person, ...] = ()
    future: tuple[Person, ...] = ()
    favourites: tuple[Person, ...] = ()
    pictures: list[Image] = field(default_factory=list)  # of the current person
    sheet: tuple[Person, ...] = ()  # people that were drawn and may be kept
    edited: Person | None = None  # what may be kept of the tab Edit
    blended: Person | None = None  # likewise of Blend
    photo: Image | None = None  # the aligned face of the photo that was sent
    photo_name: str = ""
    mask: Image | None = None  # what was painted on it

    @property
    def who(self) -> Person:
        """The current person. Raises W2WError if there is none yet."""
        if self.person is None:
            raise W2WError("there is no current person. Keep one from the sheet first.")
        return self.person

    @property
    def people(self) -> dict[str, Person]:
        """Everybody that this visitor may choose again, by name; the current person first."""
        found: dict[str, Person] = {}
        for person in (self.person, *self.favourites, *reversed(self.past), *self.future):
            if person:
                found.setdefault(person.name, person)
        return found

    def keep(self, person: Person | None) -> Self:
        """With another current person; undo brings the last one back. Raises W2WError if there is nobody to keep."""
        if person is None:
            raise W2WError("there is nobody to keep yet. Move a slider first.")
        past = (*self.past, self.person)[-MOST:] if self.person else ()
        return replace(self, person=person, past=past, future=())

    def undo(self) -> Self:
        """With the person before the current one."""
        if not self.past:
            raise W2WError("there is nothing to undo.")
        return replace(self, person=self.past[-1], past=self.past[:-1], future=(self.who, *self.future))

    def redo(self) -> Self:
        """With the person that undo took away."""
        if not self.future:
            raise W2WError("there is nothing to redo.")
        return replace(self, person=self.future[0], past=(*self.past, self.who), future=self.future[1:])

    def favour(self) -> Self:
        """With the current person among the favourites."""
        others = tuple(person for person in self.favourites if person.name != self.who.name)
        return replace(self, favourites=(*others, self.who)[-MOST:])
