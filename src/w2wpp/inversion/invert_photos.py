"""Photos in, models out: the one function behind the command `invert`, the demo and table 1."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from os.path import abspath
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from w2wpp.base.model import BaseModel
from w2wpp.common.batches import batches
from w2wpp.common.errors import W2WError
from w2wpp.common.files import checksum
from w2wpp.common.names import file_names
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.inversion.evolution import METHODS as SEARCHES
from w2wpp.inversion.evolution import EvolutionOptions, evolve
from w2wpp.inversion.gradient import REFINED, InversionOptions, Inverted, invert
from w2wpp.inversion.inverted_photos import InvertedPhotos
from w2wpp.inversion.photo import Photo, ready_mask, ready_photo
from w2wpp.inversion.progress import Progress
from w2wpp.inversion.published import PublishedOptions, invert_published
from w2wpp.inversion.resembling import LikenessOptions, invert_by_likeness
from w2wpp.inversion.watching import Watch
from w2wpp.photos.images import Image, to_tensor
from w2wpp.photos.listing import pictures_in
from w2wpp.spaces.base import Space

Method = Literal["gradient", "likeness", "cma-es", "cem", "encoder"]
Options: TypeAlias = InversionOptions | LikenessOptions | EvolutionOptions | PublishedOptions
How: TypeAlias = Options | None  # None takes the encoder's point as it is


def invert_photos(
    space: Space,
    photos: Photo | Sequence[Photo | Sequence[Photo]],
    *,
    base: BaseModel,
    encoder: PhotoEncoder | None = None,
    method: Method | None = None,
    options: Options | None = None,
    mask: Photo | None = None,
    ids: Sequence[str] | None = None,
    prompt: str | None = None,
    seed: int | None = None,
    align: bool = True,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> InvertedPhotos:
    """Find the model of each person in a space: the point whose adapter denoises the photos best (eq. 5 to 7), or draws their likeness.

    photos: one entry per person: a photo, a folder of photos, or a sequence of photos. A photo is a path, a PIL picture
    or pixels [h, w, 3] uint8. encoder: where to start; z = 0, the mean adapter, without one.
    method: `gradient`, `likeness`, `cma-es`, `cem`, or `encoder` (its point as it is); that of the options, or of `recipe_from`.
    options: those of `recipe_from` for gradient and likeness, else the class's own defaults; `published.RAW` is the published recipe.
    mask: a picture over the aligned photo; white is what counts. ids: a name per person; the file's or folder's, or
    `photo-0` and so on. prompt: that of the options, or of the space's adapters. seed: that of the options.
    align: find the face and align it; without, photos must have the base's size. folder: where finished people are kept,
    so that the same call resumes after it was cut short; give it to `save` as well. watch: called with an `InversionStep` after
    every step, with the loss and the point so far; what it raises ends the inversion.
    Raises W2WError for a photo without a face, a space or encoder of something else, equal ids, options of another
    method, or a folder that holds models of other photos or options.
    """
    how = _how(method, options, encoder, seed, mask is not None)
    entries = _people(photos)
    names = list(ids) if ids is not None else [_name(entry, i) for i, entry in enumerate(entries)]
    if len(names) != len(entries):
        raise W2WError(f"{len(names)} ids were given for {len(entries)} people. Give one per person.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise W2WError(f"two photos have the same name, {twice[0]}, which names their points. Rename one, or give ids.")
    file_names(names)  # now, and not when they are to be saved
    space.check(space.layout, base.id, f"base {base.source}")
    ready = [[ready_photo(photo, base, align_face=align) for photo in _photos_of(entry)] for entry in entries]
    painted = None if mask is None else ready_mask(mask, base)
    caption = prompt or (how.prompt if how else None) or space.prompting.prompt
    how = replace(how, prompt=caption) if how else None
    progress = None if folder is None else Progress.load(folder, space, _settings(how, encoder, painted), names, ready)
    found = points_of(space, ready, names, base=base, encoder=encoder, how=how, mask=painted, progress=progress, watch=watch)
    return InvertedPhotos(base, space, names, ready, found, "zero" if encoder is None else "encoder", caption)


def points_of(
    space: Space,
    photos: Sequence[Sequence[Image]],
    ids: Sequence[str],
    *,
    base: BaseModel,
    encoder: PhotoEncoder | None,
    how: How,
    mask: Tensor | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Inverted:
    """The points of k people from photos that are aligned and sized already; how: None takes the encoder's point as it is.

    progress: what is done already, and where to keep what is done. mask: [1, 1, h, w] on the latents.
    """
    if encoder is not None:
        encoder.check(space)
    done = progress.done if progress else {}
    todo = [i for i, name in enumerate(ids) if name not in done]
    group = how.group if isinstance(how, InversionOptions | LikenessOptions | PublishedOptions) else 1 if how else max(1, len(ids))
    parts: dict[str, Inverted] = dict(done)
    for s in batches(len(todo), group):
        members = [photos[i] for i in todo[s]]
        keys = [ids[i] for i in todo[s]]
        found = _group(space, members, keys, base, encoder, how, mask, progress.unfinished(keys) if progress else None, watch)
        if progress:
            progress.add(keys, found)
        parts |= {key: found.of(i) for i, key in enumerate(keys)}
    return Inverted.joined([parts[name] for name in ids])


def _group(
    space: Space,
    photos: Sequence[Sequence[Image]],
    keys: Sequence[str],
    base: BaseModel,
    encoder: PhotoEncoder | None,
    how: How,
    mask: Tensor | None,
    checkpoint: Path | None,
    watch: Watch | None,
) -> Inverted:
    with torch.no_grad():
        start = None if encoder is None else encoder.points(photos)
    if how is None:
        z = torch.zeros(len(keys), space.m) if start is None else start
        return Inverted(z, torch.zeros(0, len(keys)), z[None], 0.0)
    if isinstance(how, PublishedOptions):
        if start is not None:
            raise W2WError("the published recipe starts at 0 and takes no encoder. Leave it out.")
        return invert_published(base, space, photos, keys, how, mask, watch)
    if isinstance(how, LikenessOptions):
        if encoder is None or mask is not None:
            raise W2WError("likeness starts at an encoder, and looks at the whole face. Give an encoder and no mask, or another method.")
        return invert_by_likeness(base, space, photos, keys, how, encoder, watch)
    latents = [base.encode_images(to_tensor(images)).float() for images in photos]
    if isinstance(how, EvolutionOptions):
        return evolve(base, space, latents, keys, how, mask=mask, start=start, watch=watch)
    return invert(base, space, latents, keys, how, mask=mask, start=start, checkpoint=checkpoint, watch=watch)


def recipe_from(encoder: PhotoEncoder | None, masked: bool = False) -> InversionOptions | LikenessOptions:
    """What inverts best from where this encoder puts photos, or from the mean adapter without one: chosen on val people.

    masked: not all of the photo counts.
    """
    if encoder is None:
        return InversionOptions()
    return LikenessOptions() if encoder.teacher == "likeness" and not masked else REFINED


def _how(
    method: Method | None,
    options: Options | None,
    encoder: PhotoEncoder | None,
    seed: int | None,
    masked: bool,
) -> How:
    """The options to invert with. Raises W2WError for options of another method, or an unknown method."""
    if method == "encoder":
        if encoder is None or options is not None:
            raise W2WError("the method encoder takes an encoder and no options. Give encoder, and leave out options.")
        return None
    if method not in (None, "gradient", "likeness", *SEARCHES):
        raise W2WError(f"no method is called {method!r}. Choose gradient, likeness, {', '.join(SEARCHES)} or encoder.")
    if options is None:
        made: dict[str | None, Options] = {"likeness": LikenessOptions(), "gradient": REFINED if encoder else InversionOptions()}
        options = EvolutionOptions(method) if method in SEARCHES else made.get(method) or recipe_from(encoder, masked)
    own = _method_of(options)
    if method not in (None, own):
        raise W2WError(f"the options are those of {own}, and the method is {method}. Leave out one of them.")
    return options if seed is None else replace(options, seed=seed)


def _method_of(options: Options) -> str:
    if isinstance(options, EvolutionOptions):
        return options.method
    return "likeness" if isinstance(options, LikenessOptions) else "gradient"


def _settings(how: How, encoder: PhotoEncoder | None, mask: Tensor | None) -> dict[str, Any]:
    """What decides the points beside space and photos, as JSON keeps it; how many people share a pass does not."""
    chosen = {} if how is None else {key: value for key, value in asdict(how).items() if key != "group"}
    start = "zero" if encoder is None else f"encoder {checksum(encoder.state_dict(), {})}"
    kind = "encoder" if how is None else "published" if isinstance(how, PublishedOptions) else _method_of(how)
    return {"method": kind, "start": start, "mask": None if mask is None else checksum({"mask": mask}, {}), **chosen}


def _people(photos: Photo | Sequence[Photo | Sequence[Photo]]) -> list[Photo | Sequence[Photo]]:
    """One entry per person; a single photo or folder is one person."""
    entries = [photos] if isinstance(photos, str | Path | np.ndarray | PILImage.Image) else list(photos)
    if not entries:
        raise W2WError("there is no photo to invert. Give one or more.")
    return cast(list[Photo | Sequence[Photo]], entries)


def _photos_of(entry: Photo | Sequence[Photo]) -> list[Photo]:
    if isinstance(entry, str | Path):
        return list(pictures_in(entry))
    if isinstance(entry, np.ndarray | PILImage.Image):
        return [entry]
    return [photo for part in entry for photo in _photos_of(part)]


def _name(entry: Photo | Sequence[Photo], place: int) -> str:
    if not isinstance(entry, str | Path):
        return f"photo-{place}"
    path = Path(abspath(entry))  # `..` has a name, too
    return path.name if path.is_dir() else path.stem
