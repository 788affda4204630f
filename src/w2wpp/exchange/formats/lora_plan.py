"""What the files of one LoRA are, from their headers alone: which layers of the base are meant, and what stands in the way.

No key is skipped in silence, and alpha is taken from where each format keeps it; `docs/tutorials/your-loras.md` says
where that is.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2wpp.common.errors import W2WError
from w2wpp.exchange.denoiser import Denoiser
from w2wpp.exchange.formats import peft, products
from w2wpp.exchange.formats.families import Family, family_of
from w2wpp.exchange.formats.first_generation import first_generation
from w2wpp.exchange.formats.keys import FIRST_GENERATION, other_method, split_key, what_it_is
from w2wpp.exchange.formats.lora_places import sources_of
from w2wpp.exchange.formats.peft import Told
from w2wpp.exchange.formats.tensors import Header, few, read_header
from w2wpp.exchange.names import TEXT
from w2wpp.lora.layout import TEXT_ENCODERS, part_of, sides_of

WORDS = ("bundle_emb.", "<", "emb_params")  # learned words, that come with some LoRAs
MOST = 64  # the rank that a LoHa, LoKr or DoRA is brought to unless a larger one is asked for


@dataclass(frozen=True)
class Piece:
    """What a file holds for one layer, or for several that it fuses: the keys of its tensors by role."""

    layers: tuple[str, ...]
    header: Header
    keys: dict[str, str]
    told: Told | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each role's tensor."""
        return {role: self.header.entries[key].shape for role, key in self.keys.items()}


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA of a base that can be read: nothing stands in the way but its numbers."""

    path: Path
    pieces: tuple[Piece, ...]
    rank: int  # that its rows should have
    kinds: frozenset[str]
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> frozenset[str]:
        """The layers that it adapts."""
        return frozenset(layer for piece in self.pieces for layer in piece.layers)


def plan_lora(path: str | Path, base: Denoiser, *, alpha: float | None = None, drop_text_encoder: bool = False) -> LoraPlan:
    """Find the layer of `base` that each key of a file, or of a peft folder, stands for, without reading numbers.

    alpha: of a file with peft's keys that lies without its configuration. drop_text_encoder: leave text encoders' parts out.
    Raises W2WError with all that is wrong with the file.
    """
    path = Path(path)
    found = _Findings(path, base, alpha, drop_text_encoder)
    for file, config, part in sources_of(path):
        found.take(file, config, part)
    return found.plan()


class _Findings:
    """What is found in the files of one adapter, good and bad, until all of it is known."""

    def __init__(self, path: Path, base: Denoiser, alpha: float | None, drop_text_encoder: bool) -> None:
        self.path, self.base, self.alpha, self.drop = path, base, alpha, drop_text_encoder
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.pieces: list[Piece] = []

    def take(self, file: Path, config: Path | None, part: str) -> None:
        """Place every key of one file."""
        if part and self.drop:
            return
        header = read_header(file)
        keys = list(header.entries)
        if what := what_it_is(keys):
            raise W2WError(f"{self.path} is {what}; w2w reads LoRAs. Leave it out.")
        told = self._told(header, config)
        pieces: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
        strangers: list[str] = []
        no_encoder: list[str] = []
        dropped = 0
        firsts = first_generation(header, self.base.layers)
        for key in keys:
            if key.startswith(WORDS):
                self.notes.append(f"{key} is a learned word, and was left out")
                continue
            text = part or next((name for prefix, name in TEXT if key.startswith(prefix)), "")
            text = "text_encoder" if key.startswith("text_encoder:") else text
            if text and self.drop:
                dropped += 1
                continue
            placed = firsts.get(key) if FIRST_GENERATION.fullmatch(key) else self._placed(key, part)
            if placed is None:
                (no_encoder if text and text not in self.base.text_encoders else strangers).append(key)
                continue
            layers, role = placed
            if role in pieces[layers]:
                self.reasons.append(f"two keys for {role} of {layers[0]}, one of them {key}: keep one")
            pieces[layers][role] = key
        if dropped:
            self.notes.append(f"{dropped} keys of text encoders were left out")
        if no_encoder:
            self.reasons.append(
                f"{len(no_encoder)} keys such as {no_encoder[0]} adapt a text encoder that this base lacks: --drop-text-encoder"
            )
        if strangers:
            self._strange(strangers, header)
        for layers, roles in pieces.items():
            by_part = told.get(part_of(layers[0])) if told else None
            self._check(Piece(layers, header, roles, by_part))
        self._check_alpha(header, told)

    def _told(self, header: Header, config: Path | None) -> dict[str, Told]:
        """Rank and alpha by part of the pipeline, from the configuration beside the file or its metadata."""
        try:
            if config:
                read = peft.told_by(peft.read_config(config), config)
                return dict.fromkeys(("", *TEXT_ENCODERS), read)
            return _metadata_told(header)
        except W2WError as error:
            self.reasons.append(str(error).removeprefix(f"{self.path} ").rstrip("."))
            return {}

    def _placed(self, key: str, part: str) -> tuple[tuple[str, ...], str] | None:
        split = split_key(key)
        layers = self.base.names.find(f"{part}.{split[0]}" if part else split[0]) if split else None
        return (layers, split[1]) if layers and split else None

    def _strange(self, keys: list[str], header: Header) -> None:
        """Say of keys that have no place what they are."""
        methods = sorted({method for key in keys if (method := other_method(key))})
        if methods:
            self.reasons.append(f"it holds {', '.join(methods)}, which no product of two matrices is: leave it out")
        unknown = [key for key in keys if not other_method(key)]
        no_factor = [key for key in unknown if not split_key(key) and not FIRST_GENERATION.fullmatch(key)]
        no_layer = [key for key in unknown if key not in no_factor]
        if no_factor:
            self.reasons.append(f"{few(no_factor)}: no factor of a LoRA that w2w knows (lora_A, lora_down, alpha, ...)")
        if no_layer:
            family = family_of(header)
            made_for = f"; it is made for {family.name}: --base {family.base}" if family and not fits(family, self.base) else ""
            self.reasons.append(
                f"{len(no_layer)} of its keys, such as {no_layer[0]}, match no layer of base {self.base.source}"
                + (made_for or "; is it of another model? Give its --base")
            )

    def _check(self, piece: Piece) -> None:
        """Keep a piece if its tensors make a product of the shape of its layers."""
        roles, layer = set(piece.keys), piece.layers[0]
        if not products.kind_of(roles):
            self.reasons.append(f"{' and '.join(sorted(roles))} of {layer} without factors: was it cut short?")
            return
        if lacks := products.missing(roles):
            self.reasons.append(f"one factor of {layer} without the other ({', '.join(sorted(lacks))} is missing): was it cut short?")
            return
        sides = [sides_of(self.base.layers[name]) for name in piece.layers]
        wanted = (sides[0][0] if sides[0] else 0, sum(side[1] for side in sides if side))
        try:
            found = products.product_shape(piece.shapes)
        except (ValueError, IndexError, KeyError) as error:
            self.reasons.append(f"factors of {layer} do not fit each other ({error})")
            return
        if found != wanted:
            self.reasons.append(f"factors of {layer} are for a layer of {found[0]} -> {found[1]}; this base has {wanted[0]} -> {wanted[1]}")
            return
        rank = products.rank_of(piece.shapes)
        told = piece.told.rank_for(plain_name(layer)) if piece.told else None
        if told and rank and told != rank and "alpha" not in roles:
            self.reasons.append(f"factors of {layer} have rank {rank}, but its configuration says {told}: save it again")
            return
        if piece.told and piece.told.dora and products.kind_of(roles) == "LoRA":
            self.reasons.append(f"its configuration says DoRA, but {layer} has no magnitudes: was it cut short?")
            return
        self.pieces.append(piece)

    def _check_alpha(self, header: Header, told: Mapping[str, Told]) -> None:
        """peft keeps alpha beside its file: without it the scale could only be guessed."""
        own = [key for key in header.entries if key.startswith(peft.PREFIX) and not key.endswith(".alpha")]
        alphas = any(key.endswith(".alpha") for key in header.entries)
        if not own or told or alphas or self.reasons:
            return
        if self.alpha is None:
            self.reasons.append(
                f"its keys are peft's, whose scale is in {peft.CONFIG} alone, and none lies beside it: put it there, or give --alpha"
            )
            return
        told_now = Told(None, self.alpha)
        self.pieces = [piece if piece.told else Piece(piece.layers, piece.header, piece.keys, told_now) for piece in self.pieces]

    def plan(self) -> LoraPlan:
        """What was found. Raises W2WError with all that is wrong."""
        if not self.pieces and not self.reasons:
            self.reasons.append("nothing in it adapts this base's UNet or text encoder")
        if self.reasons:
            shown = "; ".join(dict.fromkeys(self.reasons[:6]))
            more = f"; and {len(self.reasons) - 6} more" if len(self.reasons) > 6 else ""
            raise W2WError(f"{self.path}: {shown}{more}.")
        rank, kinds = 1, set()
        for piece in self.pieces:
            kind = products.kind_of(set(piece.keys))
            sides = [sides_of(self.base.layers[name]) for name in piece.layers]
            inner = products.inner_rank(piece.shapes, min((side[:2] for side in sides if side), key=min))
            rank = max(rank, inner if kind == "LoRA" else min(inner, MOST))
            kinds.add(kind)
        return LoraPlan(self.path, tuple(self.pieces), rank, frozenset(kinds), tuple(dict.fromkeys(self.notes)))


def plain_name(layer: str) -> str:
    part = part_of(layer)
    return layer.removeprefix(f"{part}.") if part else layer


def _metadata_told(header: Header) -> dict[str, Told]:
    """Rank and alpha in diffusers' metadata, by part; nothing without, where diffusers itself takes alpha = r."""
    if "lora_adapter_metadata" not in header.metadata:
        return {}
    by_part: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        described: dict[str, Any] = json.loads(header.metadata["lora_adapter_metadata"])
        for key, value in described.items():
            part, _, name = key.rpartition(".")
            by_part[part if part in TEXT_ENCODERS else ""][name] = value
    except (ValueError, AttributeError, RecursionError) as error:
        raise W2WError(f"metadata without a usable lora_alpha and r ({error!r:.80}): save it again with diffusers.") from error
    return {part: peft.told_by(found, header.file) for part, found in by_part.items() if found}


def fits(family: Family, base: Denoiser) -> bool:
    """Whether a base may be of this family, by the class and the text's width of its denoiser."""
    width = getattr(base.module, "config", {}).get("cross_attention_dim")
    return family.part == base.part and (family.width is None or width is None or family.width == width)
