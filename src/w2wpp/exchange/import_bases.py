"""The base of each LoRA file: the one that was given, or the one that the file itself says or shows that it is made for."""

from pathlib import Path

from w2wpp.common.assets import TINY_FACES
from w2wpp.common.errors import W2WError
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats import peft
from w2wpp.exchange.formats.families import family_of
from w2wpp.exchange.formats.lora_places import sources_of
from w2wpp.exchange.formats.tensors import read_header


class Bases:
    """Bases, each loaded once: `given` for every file, or found for each."""

    def __init__(self, given: Denoiser | None = None) -> None:
        self.given = given
        self._loaded: dict[str, Denoiser | W2WError] = {}

    def for_file(self, file: Path) -> Denoiser:
        """The base that a file's adapter is for. Raises W2WError if it cannot be loaded, saying which it is."""
        if self.given:
            return self.given
        tensors, config, _ = sources_of(file)[0]
        told = peft.read_config(config).get("base_model_name_or_path") if config else None
        family = family_of(read_header(tensors))
        if told and (str(told) == TINY_FACES or Path(str(told)).exists()):
            return self._load(str(told), "its configuration names")
        if family:
            return self._load(family.base, f"it is made for {family.name}, so")
        return self._load(str(told) if told else TINY_FACES, "its configuration names" if told else "nothing in it names")

    def _load(self, source: str, why: str) -> Denoiser:
        if source not in self._loaded:
            try:
                self._loaded[source] = Denoiser.load(source)
            except W2WError as error:
                self._loaded[source] = error
        found = self._loaded[source]
        if isinstance(found, W2WError):
            raise W2WError(f"{why} base {source}: {found}")
        return found
