"""Every command of README and the pages runs, in order and as written, on a small edition of tiny-faces.

A page's commands are the lines of its ```bash blocks that begin with `w2w`. A page starts in an empty folder with what its text
assumes: `photos/` (ten people, two photos of Ada), `labels.csv`, `beards.csv`, `me.jpg`, `pictures/`, and on the page on LoRAs what
its Python block makes. `tiny-faces` stands for `edition`: the pico pipeline, sixteen random adapters, a space, an encoder. Only
sizes are changed (`SMALL`, `ADDED`). A block after `<!-- not run: why -->` is parsed, not run.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conftest import Ended
from test_cli import COMMANDS
from w2wpp.adapters.train import options_for
from w2wpp.base.model import BaseModel
from w2wpp.common import assets
from w2wpp.common.files import write_text
from w2wpp.dataset.weights import WeightDataset
from w2wpp.inversion.bound import EncoderOptions
from w2wpp.inversion.person_photos import PersonPhotos
from w2wpp.inversion.teaching import fit_encoder
from w2wpp.photos import descriptors, faces
from w2wpp.photos.images import Image, write_image
from w2wpp.spaces.anchored_vae import AnchoredOptions, AnchoredVaeSpace
from w2wpp.spaces.pca import PcaSpace

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?:bash|sh)\n(?P<text>.*?)```", re.S)
OTHERS = "Chien Dorothy Emmy Grace Katherine Lise Maria Mary Rosalind"
PHOTOS = ["Ada/1.jpg", "Ada/2.jpg", *(f"{person}/1.jpg" for person in OTHERS.split())]


# Sizes that a command names, and those added where it has the option and names none.
SMALL = {"--m": "3", "--size": "16", "--trajectory": "1"}
ADDED = {"--pictures": "1", "--solver-steps": "2", "--encoder-steps": "2", "--epochs": "1", "--widths": "8,8,8", "--components": "4"}
STEPS = {"adapters train", "fit anchored-vae", "invert"}  # whose --steps are those of training; the published recipe has its own


def blocks(page: Path) -> Iterator[tuple[str | None, list[list[str]]]]:
    """A page's blocks of commands, in order: why one is not run, or None; and its `w2w` lines as words."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        lines = [line for line in found["text"].splitlines() if line.startswith("w2w ")]
        yield found["why"], [shlex.split(line, comments=True)[1:] for line in lines]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """A command's verb, and the rest of its words."""
    depth = 1 if words[0] in COMMANDS else 2
    return " ".join(words[:depth]), words[depth:]


def smaller(words: list[str]) -> list[str]:
    """The same command with small sizes."""
    verb, rest = verb_of(words)
    flags = {flag for option in COMMANDS[verb].params for flag in option.opts}
    changed = [SMALL.get(before, word) for before, word in zip(["", *rest], rest, strict=False)]
    added = dict(ADDED)
    if verb in STEPS and "--published" not in rest:
        added["--steps"] = "2"
    if verb.startswith("fit "):
        added["--m"] = "3"
    if verb == "faces align":
        added["--size"] = "16"
    extra = [word for flag, value in added.items() if flag in flags and flag not in rest for word in (flag, value)]
    return [*verb.split(), *changed, *extra]


class Recogniser:
    """A face in the middle of every picture, embedded as its mean colours: no network is loaded."""

    def detect(self, image: Image) -> list[faces.Face]:
        height, width = image.shape[:2]
        points = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.55], [0.4, 0.74], [0.6, 0.74]], np.float32) * (width, height)
        return [faces.Face((0, 0, width, height), 1.0, points.astype(np.float32))]

    def embed(self, image: Image, face: faces.Face) -> NDArray[np.float32]:
        colours = np.append(image.reshape(-1, 3).mean(0), 1).astype(np.float32)
        return colours / np.linalg.norm(colours)


def described(images: list[Image]) -> NDArray[np.float32]:
    """What stands for dlib's descriptions: [n, 128] float32 of the pictures' means."""
    return np.stack([np.resize(image.reshape(-1, 3).mean(0) / 255, 128).astype(np.float32) for image in images])


@pytest.fixture(scope="session")
def edition(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the data package, over the pico pipeline."""
    folder = tmp_path_factory.mktemp("edition")
    (folder / "pipeline").symlink_to(pico)
    base = BaseModel.load(pico, device="cpu")
    options, draw = options_for("tiny-faces"), torch.Generator().manual_seed(0)
    layout = options.layout_of(base)
    data = WeightDataset.create(folder / "weights", layout, base.id, {})
    ids = [f"Person_{i}" for i in range(16)]
    labels = [{"person": name, "split": "train", "gender": ("man", "woman")[i % 2], "smiling": i // 2 % 2} for i, name in enumerate(ids)]
    data.append(0.02 * torch.randn(16, layout.d, generator=draw), ids, labels)
    space = AnchoredVaeSpace.fit(data, AnchoredOptions(m=4, components=8, steps=1))
    photos = PersonPhotos(
        base,
        {name: torch.randn(2, *base.latent_shape, generator=draw) for name in ids},
        {name: torch.randn(2, 128, generator=draw) for name in ids},
        base.encode_text(["photo of sks person"]).float(),
    )
    encoder, _ = fit_encoder(space, photos, EncoderOptions(steps=1))
    space.save(folder / "space" / "space.safetensors")
    encoder.save(folder / "space" / "encoder.safetensors")
    return folder


@pytest.fixture
def desk(edition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a page's reader works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assets, "files", lambda package: edition)
    monkeypatch.setattr(faces, "MtcnnFaceNet", Recogniser)
    monkeypatch.setattr(descriptors, "each_described", described)
    faces.default_recogniser.cache_clear()
    draw = np.random.default_rng(0)
    for name in ("me.jpg", "pictures/1.png", *(f"photos/{photo}" for photo in PHOTOS)):
        write_image(Path(name), draw.integers(0, 256, (32, 32, 3), np.uint8))
    write_text(Path("labels.csv"), "\n".join(["file,split", *(f"{photo},train" for photo in PHOTOS)]) + "\n")
    write_text(Path("beards.csv"), "\n".join(["id,beard", *(f"Person_{i},{i % 3}" for i in range(16))]) + "\n")
    yield tmp_path
    faces.default_recogniser.cache_clear()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_commands_of_a_page_parse(page: Path) -> None:
    for _, commands in blocks(page):
        for words in commands:
            verb, rest = verb_of(words)
            COMMANDS[verb].make_context("w2w", list(rest))  # raises for an option that is not there


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(commands and not why for why, commands in blocks(page))],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_the_commands_of_a_page_run_in_order(page: Path, desk: Path, w2w: Callable[..., Ended]) -> None:
    prepare(page, w2w)
    for why, commands in blocks(page):
        for words in [] if why else commands:
            ended = w2w(*smaller(words))
            assert ended.code == 0, f"w2w {' '.join(words)}\n{ended.err}"


def prepare(page: Path, w2w: Callable[..., Ended]) -> None:
    """Make what a page assumes beyond the desk: LoRAs by the Python block of the page on LoRAs, aligned faces, a space."""
    text = page.read_text(encoding="utf-8")
    if page.stem == "fleets":
        many_loras(w2w)
    elif "my-loras" in text:
        lora_page = (REPOSITORY / "docs/tutorials/your-loras.md").read_text(encoding="utf-8")
        code = re.findall(r"```python\n(.*?)```", lora_page, re.S)[0]
        exec(compile(code, "your-loras.md", "exec"), {})  # the page's own code
    commands = " ".join(" ".join(words) for why, found in blocks(page) if not why for words in found)
    if " faces " in commands and "faces align" not in commands:
        from w2wpp.photos.alignment import align_photos

        align_photos("photos", "faces", size=16, labels="labels.csv", processes=1)
    if "pca.safetensors" in commands and "fit pca" not in commands:
        PcaSpace.fit(WeightDataset.load("tiny-faces"), m=3).save("pca.safetensors")


def many_loras(w2w: Callable[..., Ended]) -> None:
    """The files and the dataset `mine` that the page on many LoRAs assumes, from rows of tiny-faces."""
    for i, file in enumerate(("my-loras/ada", "my-loras/grace", "my-loras/lise", "my-loras/mary", "a", "b", "big")):
        Path(file).parent.mkdir(exist_ok=True)
        ended = w2w("export", "--dataset", "tiny-faces", "--id", f"Person_{i}", "--format", "kohya", "--out", f"{file}.safetensors")
        assert ended.code == 0, ended.err
    ended = w2w("import", "my-loras", "--base", "tiny-faces", "--out", "mine")
    assert ended.code == 0, ended.err
    write_image(Path("thumbnails/ada.png"), np.zeros((8, 8, 3), np.uint8))


def test_no_page_has_commands_outside_blocks_that_are_run() -> None:
    for page in PAGES:
        outside = BLOCK.sub("", page.read_text(encoding="utf-8"))
        assert not re.findall(r"^(?: {4})?w2w .*$", outside, re.M), f"{page} has commands that no test reads"


def test_every_page_begins_with_what_the_reader_can_do_after_it() -> None:
    for page in PAGES[1:]:
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line]
        assert lines[0].startswith("# ") and lines[1].startswith("After this page you "), page


def test_readme_is_short_and_no_page_uses_the_words_that_were_replaced() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150
    replaced = re.compile(r"\b(the judge|sitters?|noise bank|gone on with|drawn on|surprise|an? (?:row|line|column) an? \w+)\b")
    for page in PAGES:
        assert not (found := replaced.search(page.read_text(encoding="utf-8"))), f"{page}: {found}"
