"""Table 1: how well each method's pictures show the person, by the ID Score (`evaluation/id_score.py`), and at what cost."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from w2wpp.adapters.train import AdapterOptions, from_start
from w2wpp.base.model import BaseModel
from w2wpp.common.errors import W2WError
from w2wpp.common.files import read_json, write_json
from w2wpp.common.mapping import Mapper
from w2wpp.common.progress import track
from w2wpp.common.runs import command_line, resolved, versions
from w2wpp.dataset.weights import WeightDataset
from w2wpp.evaluation.id_score import score_embedded
from w2wpp.evaluation.paired import compared
from w2wpp.evaluation.table1_methods import Subject, Table1Options, adapter_options, check_skip, methods
from w2wpp.evaluation.table1_parts import Head, Scored, Scorer, scored
from w2wpp.inversion.encoder import PhotoEncoder
from w2wpp.photos.alignment import AlignedFaces
from w2wpp.photos.faces import Embedding, FaceRecogniser, embed_pictures
from w2wpp.photos.images import Image, grid, write_image
from w2wpp.spaces.base import Adapters, Space

SCORES = ("id_input", "id_other", "id_other_people")


@dataclass(frozen=True)
class Subjects:
    """The people of table 1 and the embeddings of their real photos, index by index."""

    people: list[Subject]
    inputs: list[Embedding]
    held_out: list[list[Embedding]]
    left_out: list[str]  # people whose input photo, or all of whose other photos, show no face to the face recogniser

    @classmethod
    def of(cls, faces: AlignedFaces, split: str, recogniser: FaceRecogniser | None, least: int = 2) -> "Subjects":
        """The people of a split with `least` or more photos, two at the least. Raises W2WError if nobody can be scored."""
        people = [person for person in faces.of_split(split) if len(faces.people[person]) >= max(2, least)]
        subjects = cls([], [], [], [])
        for person in track(people, "embed photos", "people"):
            subject = Subject.of(person, faces.photos(person))
            shown, others = embed_pictures([subject.input_photo], recogniser)[0], embed_pictures(subject.held_out, recogniser)
            if shown is None or all(face is None for face in others):
                subjects.left_out.append(person)
                continue
            subjects.people.append(subject)
            subjects.inputs.append(shown)
            subjects.held_out.append(others)
        if not subjects.people:
            raise W2WError(
                f"{faces.folder} has nobody in split {split!r} with {max(2, least)} photos that show a face. Choose another --split."
            )
        return subjects


def table1(
    base: BaseModel,
    dataset: WeightDataset,
    faces: AlignedFaces,
    split: str = "test",
    *,
    seed: int = 0,
    options: Table1Options | None = None,
    folder: Path | None = None,
    recogniser: FaceRecogniser | None = None,
    mapper: Mapper | None = None,
) -> dict[str, Any]:
    """Compare base, DreamBooth and inversion in PCA and VAE spaces on the people of a split: the table as JSON holds it.

    The input photo is a person's first; DreamBooth from many photos sees the first half of them; `id_other` is the
    score against the second half, which no method saw, and `id_other_people` the one against the next person's.
    Rows of a space hold their paired differences to PCA's at the same m under `against`.
    Scores are means over people of each person's mean; rows keep the persons' own under `people`. The last row,
    real photos, is the ceiling: the input photo scored in place of pictures.
    folder: finished rows and sheets of pictures are kept there, and not made again by a later call, which may ask for other rows
    and other trained spaces.
    mapper: workers of a `Table1Recipe` for the same, who each take some people of a row.
    Raises W2WError if the dataset belongs to another base, if it or an encoder learned from scored people, or if the folder is
    of another table.
    """
    options = options or Table1Options()
    adapters = adapter_options(dataset)
    dataset.check(adapters.layout_of(base), base.id, f"base {base.source}")
    trained = _given_spaces(options, dataset)
    check_skip(base, dataset, adapters, options)
    subjects = Subjects.of(faces, split, recogniser, options.min_photos)
    people = [subject.person for subject in subjects.people]
    _refuse_known(people, dataset, options)
    about = {"split": split, "base": base.source, "seed": seed}
    settings = _settings(base, dataset, adapters, options)
    if folder:
        _keep_settings(folder, {**about, **settings, "people": people})
    heads = [Head.of(i, method) for i, method in enumerate(methods(base, dataset, adapters, options, seed))]
    rows = _kept_rows(folder, heads, trained) if folder else {}
    todo = [head for head in heads if head not in rows]
    by_name = {subject.person: subject for subject in subjects.people}
    scorer = Scorer(base, dataset, adapters, options, seed, recogniser, by_name.__getitem__)
    for head, parts in scored(todo, people, options, mapper, scorer):
        row, sheet = _row(subjects, head, options, parts)
        row |= _origin(head, trained)
        if folder:
            write_image(folder / "sheets" / f"{_slug(head)}.png", sheet)
            write_json(folder / "rows" / f"{_slug(head)}.json", row)
        rows[head] = row
    return {
        **about,
        "command": command_line(),
        "versions": versions(),
        "left_out": subjects.left_out,
        "settings": settings | resolved({"table": replace(options, skip=()), "trained": trained}),
        "rows": compared([*(rows[head] for head in heads), _ceiling(subjects)]),
    }


def _settings(base: BaseModel, dataset: WeightDataset, adapters: AdapterOptions, options: Table1Options) -> dict[str, Any]:
    """What all rows depend on, beside the people: not on which others there are, or which trained spaces they are of."""
    given = {"base_id": base.id, "dataset": dataset.fingerprint, "n_adapters": len(dataset), "adapters": adapters}
    table = replace(options, skip=(), trained=(), searches_m=None)
    return resolved(given | {"table": table, "started": from_start(adapters)})


def _origin(head: Head, trained: Sequence[tuple[str, str, str]]) -> dict[str, list[str]]:
    """The digest of the space that was given, for a row of one, and that of its encoder where the row begins at it."""
    if head.space is None or head.needs is not None:
        return {}
    space, encoder = next(digests for name, *digests in trained if name == f"{head.space}-{head.m}")
    return {"trained": [space, encoder] if head.name.startswith("encoder") else [space]}


def _kept_rows(folder: Path, heads: Sequence[Head], trained: Sequence[tuple[str, str, str]]) -> dict[Head, dict[str, Any]]:
    """The rows that a folder holds already. Raises W2WError if one is of another space, or another encoder, of that name."""
    rows = {}
    for head in heads:
        path = folder / "rows" / f"{_slug(head)}.json"
        if not path.exists():
            continue
        rows[head] = read_json(path)
        if rows[head].get("trained") != _origin(head, trained).get("trained"):
            found = f"{path} is of another {head.space} of m = {head.m}, or another encoder of it, than is given"
            raise W2WError(f"{found}. Choose another folder, or delete that row.")
    return rows


def _given_spaces(options: Table1Options, dataset: WeightDataset) -> list[tuple[str, str, str]]:
    """What is recorded of each trained space.

    Raises W2WError, now and not hours later, if two cannot be told apart, none suits the searches, or there are too few adapters.
    """
    if options.ms:
        Adapters.of(dataset).check_m(max(options.ms))
    trained = [_checked(*pair, dataset) for pair in options.trained]
    if len({name for name, *_ in trained}) < len(trained):
        raise W2WError("two of the spaces are of one kind and m: their rows could not be told apart. Score them in tables of their own.")
    searched = [name for name, *_ in trained if name.endswith(f"-{options.searches_m}") and not name.startswith("pca")]
    if options.searches_m is not None and not searched:
        raise W2WError(f"no --space but PCA's has m = {options.searches_m}, at which searches are asked for. Give one, or leave them out.")
    return trained


def _refuse_known(people: Sequence[str], dataset: WeightDataset, options: Table1Options) -> None:
    """Raise W2WError if the dataset or an encoder learned from people who are to be scored."""
    learned_from = {"the dataset": {labels.get("person", "") for labels in dataset.labels}}
    learned_from |= {f"encoder {file}": set(PhotoEncoder.from_pretrained(file).people) for _, file in options.trained if file}
    for source, learned in learned_from.items():
        if known := sorted(learned & set(people)):
            raise W2WError(f"{source} learned from {len(known)} people to be scored, such as {known[0]}. Choose another --split.")


def _row(subjects: Subjects, head: Head, options: Table1Options, parts: Sequence[Scored]) -> tuple[dict[str, Any], Image]:
    """A row of what came of all people under one method, and a sheet with the input photo left of the pictures."""
    faces = [person for part in parts for person in part.faces]
    scores = summary([_person_scores(subjects, i, pictures) for i, pictures in enumerate(faces)])
    cost = {key: _mean([(getattr(part, key), len(part.faces)) for part in parts]) for key in ("photos", "unet_evals", "seconds")}
    drawn = [pictures for part in parts for pictures in part.pictures]
    sheet = [[subject.input_photo, *pictures] for subject, pictures in zip(subjects.people, drawn, strict=False)]
    named = {"method": head.name, "space": head.space, "m": head.m}
    return {**named, **scores, "pictures": options.pictures * len(faces), **cost}, grid(sheet)


def _mean(values: Sequence[tuple[float, int]]) -> float:
    """The mean of values that stand for so many people each; the value itself where all are the same."""
    first, n = values[0][0], sum(people for _, people in values)
    return first if all(value == first for value, _ in values) else sum(value * people for value, people in values) / n


def _ceiling(subjects: Subjects) -> dict[str, Any]:
    """The row of real photos: what pictures would score if they were the input photo."""
    people = [{**_person_scores(subjects, i, [face]), "id_input": None} for i, face in enumerate(subjects.inputs)]
    cost = {"pictures": 0, "photos": 1, "unet_evals": None, "seconds": None}
    return {"method": "real photos", "space": None, "m": None, **summary(people), **cost}


def _person_scores(subjects: Subjects, i: int, pictures: Sequence[Embedding]) -> dict[str, Any]:
    """Scores of one person's pictures against the input photo, the held-out photos, and the next person's photos."""
    after = (i + 1) % len(subjects.people)
    strangers = [subjects.inputs[after], *subjects.held_out[after]] if after != i else []
    found = [score_embedded(pictures, photos) for photos in ([subjects.inputs[i]], subjects.held_out[i], strangers)]
    means = {key: score.mean if score.n_pairs else None for key, score in zip(SCORES, found, strict=True)}
    return {"person": subjects.people[i].person, **means, "missed": found[0].missed}


def summary(people: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over people of their scores; None where nobody, or one person, has a score.

    n: people with a score against their held-out photos. missed: pictures without a face, of all people.
    """
    row: dict[str, Any] = {}
    for key in SCORES:
        values = [person[key] for person in people if person[key] is not None]
        row[key] = fmean(values) if values else None
        row[f"{key}_se"] = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    n = sum(person["id_other"] is not None for person in people)
    return {**row, "n": n, "missed": sum(person["missed"] for person in people), "people": list(people)}


def _checked(space: str, encoder: str, dataset: WeightDataset) -> tuple[str, str, str]:
    """What a trained space is called in the table, and digests of it and of its encoder. Raises W2WError unless all fit the dataset."""
    opened = Space.from_pretrained(space)
    opened.check(dataset.layout, dataset.base_id, "the dataset")
    network = PhotoEncoder.from_pretrained(encoder) if encoder else None
    if network:
        network.check(opened)
    return f"{opened.kind}-{opened.m}", _digest(opened), _digest(network) if network else ""


def _digest(module: nn.Module) -> str:
    """16 hex digits over a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if path.exists() and read_json(path) != settings:
        raise W2WError(f"{folder} holds rows of a table with other settings ({path.name} says which). Choose another folder.")
    write_json(path, settings)


def _slug(head: Head) -> str:
    words = f"{head.name} {head.space or ''} {head.m or ''}".replace(",", "").lower().split()
    return "-".join(words)
