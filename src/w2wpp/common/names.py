"""From a name that came from elsewhere to a file's name: the id of a person, a point or a photo never is a path."""

import unicodedata
from collections.abc import Sequence
from urllib.parse import quote

from w2wpp.common.errors import W2WError

PLAIN = " ._-#'(),+=@!~"  # stay as they are, beside letters and digits of all scripts; no system gives them a meaning
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in "0123456789¹²³")}  # of Windows
LONGEST = 200  # bytes; most systems allow 255, and a suffix and a temporary name must fit too


def file_name(name: str) -> str:
    """A name as one part of a path, safe on every system: letters of all scripts stay, the rest is written as %XX.

    `a/../b` and `.hidden` become `a%2F..%2Fb` and `%2Ehidden`, `NUL` becomes `%4EUL`. Two names never become one (but see
    `file_names`). Raises W2WError for an empty name, or one of more than 200 bytes when written so.
    """
    if not name:
        raise W2WError("an id is empty, and cannot name a file. Give every person, point and photo a name.")
    letters = [letter if _stays(letter) else _quoted(letter) for letter in name]
    if letters[0] in (".", " ", "~") or name.split(".")[0].strip().upper() in DEVICES:
        letters[0] = _quoted(name[0])
    if letters[-1] in (".", " "):  # Windows drops them
        letters[-1] = _quoted(name[-1])
    safe = "".join(letters)
    if len(safe.encode()) > LONGEST:
        raise W2WError(f"{name[:40]}... is too long to name a file: {len(safe.encode())} bytes, {LONGEST} at most. Give it a shorter name.")
    return safe


def file_names(names: Sequence[str]) -> list[str]:
    """`file_name` of each name. Raises W2WError if two names are one file, here or where case or accents do not tell files apart."""
    safe, taken = [file_name(name) for name in names], dict[str, str]()
    for name, file in zip(names, safe, strict=True):
        if (same := same_file(file)) in taken:
            told = f"{taken[same]!r} and {name!r} would be one file"
            raise W2WError(f"{told}. Give them names that differ in more than case, or write them apart.")
        taken[same] = name
    return safe


def same_file(file: str) -> str:
    """What two file names have in common if some system takes them for one: macOS and Windows ignore case, macOS how accents are made."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", file).casefold())


def _stays(letter: str) -> bool:
    return letter in PLAIN or (letter.isalnum() and unicodedata.is_normalized("NFC", letter))


def _quoted(letter: str) -> str:
    """A letter as %XX; also those that `quote` leaves alone. Half a letter (a lone surrogate) has bytes here, too."""
    written = quote(letter, safe="", errors="surrogatepass")
    return written if written != letter else f"%{ord(letter):02X}"
